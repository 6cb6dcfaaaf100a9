"""Makes the golden files of models/tests/data: tiny random Stable Diffusion 1.x pipelines and what the reference
(Hugging Face diffusers, f32, CPU) computes with them, module by module and as whole pictures.

    pip install -r scripts/goldens-requirements.txt
    python scripts/goldens.py             # writes models/tests/data anew
    python scripts/goldens.py --check     # makes everything in a temporary folder and compares it with what is there

All randomness is seeded. Weights, texts and noise come out the same anywhere; other processors round the reference's
arithmetic a little differently, so --check compares its tensors and pictures with a tolerance.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import goldens_flux
import goldens_gguf
import goldens_image_prompts
import goldens_klein
import goldens_models
import goldens_sd3
import goldens_sdxl
import goldens_z_image
from goldens_pictures import PICTURES, picture_files, psnr, start_image

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "models" / "tests" / "data"
DEFAULT_MODEL = ROOT / "scripts" / "default-model" / "weights"

TEXTS = [
    "", " ", "\n", "a photo of a cat", "A Photo Of A CAT", "a  photo\tof\n\na   cat ",
    " leading and trailing  ", "it's they'll we've I'm he'd don't you're rock'n'roll IT'S WE'LL",
    "it’s a “quoted” ‘prompt’ — with… dashes–", "42 1234567890 3.14 1,000,000 2nd 4k 8K f/1.4 50mm", "²½٣ Ⅷ ①",
    "(masterpiece:1.2), [best|quality] {very_detailed} <lora:x:0.8>", "!!! ??? ... !?;:.,-_+=*/\\|@#$%^&~`",
    "hello! world!", "snake_case __init__ CamelCase kebab-case", "café crème brûlée naïve façade",
    "cafe\u0301 cre\u0300me nai\u0308ve", "ÀÉÎÕÜ ŠŽ ĐŁØ Æ Œ ß ẞ İ ı ΣΑΣ", "Привет, мир! красный круг",
    "山の上の城と桜の花、夜空。", "고양이 사진", "مرحبا بالعالم", "שלום עולם", "ภาพถ่ายของแมว", "नमस्ते दुनिया",
    "😀 🐈\u200d⬛ 👩\u200d🚀 🇫🇷 ❤\ufe0f 👍🏽", "a😀b🐈c", "&amp; &lt;b&gt; &quot;x&quot; &#39; &eacute;",
    "<b>bold</b> <br/>", "<|startoftext|>", "a <|endoftext|> b <|ENDOFTEXT|> c<|endoftext|>",
    "zero\u200bwidth\u200djoin\ufeffbom", "nul\u0000bell\u0007esc\u001bdel\u007f",
    "non\u00a0breaking\u3000ideographic\u2028line", "\r\nwindows\r\nlines", "ﬁ ﬂ ℌ ｆｕｌｌｗｉｄｔｈ Å Å", "a" * 200,
    "ab " * 60, "tree " * 100, "，。！？「」", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒻𝒶𝓃𝒸𝓎", "\ud7ff\ue000\ufffd\U0010ffff", "a,b,c;d",
    "''' 's 'S ''re",
    "portrait of an old wizard, oil painting, dramatic lighting, trending on artstation, highly "
    "detailed, 4k, masterpiece, best quality, swirling stars, night sky, village, "
    "watercolor landscape with mountains and a river, sunset, golden hour",
]

# Texts whose CLIP states are kept: empty, short, exact case, unicode, longer than any context.
STATE_TEXTS = ["", "a photo of a cat", "café 山の上 😀, it's 4k!", "tree " * 100]

# Families with a script and a folder of their own.
FAMILIES = {"flux": goldens_flux, "sd3": goldens_sd3, "sdxl": goldens_sdxl, "flux2": goldens_klein, "z_image": goldens_z_image,
            "gguf": goldens_gguf}

# What other scripts make.
OTHERS = ("samplers", "true_configs", "resize")

NOISE_SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**64 - 1]
# Successive draws from one generator; the sizes lie on both sides of torch's two paths and of its blocks of 16.
NOISE_DRAWS = [
    *([[n]] for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33, 100]),
    [[4, 8, 8]], [[4, 9, 11]], [[1, 4, 9, 11], [1, 4, 9, 11]],
    [[3], [3], [16], [2], [5], [17], [1], [31], [4, 8, 8], [7]],
]


def randn(rng, *shape):
    """Inputs that f16 holds exactly, so that they can be stored in half the space."""
    return torch.randn(shape, generator=rng).half().float()


@torch.no_grad()
def text_goldens(pipe, out):
    tok, enc = pipe.tokenizer, pipe.text_encoder
    ids = tok(STATE_TEXTS, padding="max_length", max_length=tok.model_max_length, truncation=True,
              return_tensors="pt").input_ids
    full = enc(ids, output_hidden_states=True)
    out["text.ids"] = ids.int()
    for skip in (0, 1, 2):
        if skip < len(full.hidden_states):
            out[f"text.skip{skip}"] = enc.final_layer_norm(full.hidden_states[-(skip + 1)])
    assert torch.equal(out["text.skip0"], full.last_hidden_state)
    out["text.pooled"] = full.pooler_output
    short = ids[1:3, :9]
    out["text.short.ids"] = short.int()
    out["text.short.states"] = enc(short).last_hidden_state
    mask = torch.ones_like(short)
    mask[0, 6:] = 0
    mask[1, 3:] = 0
    out["text.masked.mask"] = mask.int()
    out["text.masked.states"] = enc(short, attention_mask=mask).last_hidden_state


@torch.no_grad()
def unet_goldens(pipe, rng, out):
    unet, context = pipe.unet, pipe.unet.config.cross_attention_dim
    cases = {"even": ((8, 8), 7, [1.0, 500.25, 999.0, 0.0]), "odd": ((9, 11), 77, [731.0625, 20.0])}
    for name, ((h, w), length, steps) in cases.items():
        x, states = randn(rng, len(steps), 4, h, w), randn(rng, len(steps), length, context)
        steps = torch.tensor(steps)
        out[f"unet.{name}.x"], out[f"unet.{name}.t"], out[f"unet.{name}.states"] = x, steps, states
        out[f"unet.{name}.y"] = unet(x, steps, states).sample
    # What a ControlNet adds: one tensor for each skip connection and one for the middle.
    x, states, steps = randn(rng, 1, 4, 8, 8), randn(rng, 1, 5, context), torch.tensor([321.5])
    skips = []
    hooks = [unet.conv_in.register_forward_hook(lambda m, a, y: skips.append(y))]
    hooks += [b.register_forward_hook(lambda m, a, y: skips.extend(y[1])) for b in unet.down_blocks]
    hooks.append(unet.mid_block.register_forward_hook(lambda m, a, y: skips.append(y)))
    unet(x, steps, states)
    for hook in hooks:
        hook.remove()
    added = [randn(rng, *y.shape) for y in skips]
    out["unet.residuals.x"], out["unet.residuals.t"], out["unet.residuals.states"] = x, steps, states
    for i, y in enumerate(added):
        out["unet.residuals.mid" if i == len(added) - 1 else f"unet.residuals.{i}"] = y
    out["unet.residuals.y"] = unet(x, steps, states, down_block_additional_residuals=tuple(added[:-1]),
                                   mid_block_additional_residual=added[-1]).sample


@torch.no_grad()
def vae_goldens(pipe, rng, out, tiled):
    vae = pipe.vae
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    # 45 and 57 are no multiples of 8: the downsampling pads at the right and the bottom only.
    for name, (b, h, w) in {"even": (2, 32, 32), "odd": (1, 45, 57)}.items():
        x = (torch.rand((b, 3, h, w), generator=rng) * 2 - 1).half().float()
        posterior = vae.encode(x).latent_dist
        out[f"vae.encode.{name}.x"] = x
        out[f"vae.encode.{name}.mean"], out[f"vae.encode.{name}.logvar"] = posterior.mean, posterior.logvar
    for name, (b, h, w) in {"even": (2, 4, 4), "odd": (1, 5, 7)}.items():
        z = randn(rng, b, 4, h, w)
        out[f"vae.decode.{name}.z"], out[f"vae.decode.{name}.y"] = z, vae.decode(z).sample
    if tiled:
        z = randn(rng, 1, 4, 9, 11)
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 4 * factor, 4
        out["vae.tiled.z"], out["vae.tiled.y"] = z, vae.decode(z).sample
        vae.disable_tiling()


def tokens(tok):
    """Each text's ids with its marks, as the pipeline truncates them, the padding left out."""
    rows = []
    for text in TEXTS:
        ids = tok(text, max_length=tok.model_max_length, truncation=True).input_ids
        row = dict(text=text, ids=ids)
        whole = tok(text).input_ids
        if len(whole) > len(ids):
            row["whole"] = len(whole)
            # What the pipeline's warning says was left out.
            row["removed"] = tok.batch_decode([whole[tok.model_max_length - 1:-1]])[0]
        rows.append(row)
    return dict(context=tok.model_max_length, pad=tok.pad_token_id, rows=rows)


def noise():
    tensors, table = {}, []
    for seed in NOISE_SEEDS:
        # The short sequences are kept whole for two seeds; the others prove the seeding.
        for draws in NOISE_DRAWS if seed in (0, 2**32 + 5) else NOISE_DRAWS[-2:]:
            rng = torch.Generator("cpu").manual_seed(seed)
            key = f"{len(table)}"
            tensors |= {f"{key}.{i}": torch.randn(shape, generator=rng) for i, shape in enumerate(draws)}
            table.append(dict(key=key, seed=seed, draws=draws))
    return tensors, table


def save(tensors, file):
    """As safetensors: what f16 holds exactly as f16, the rest as f32 or i32."""
    def pack(t):
        t = t.detach().contiguous().clone()
        return t.half() if t.dtype == torch.float32 and torch.equal(t.half().float(), t) else t
    save_file({k: pack(v) for k, v in tensors.items()}, file)


def write_json(value, file):
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_rows(value, file):
    """JSON with each element of `rows` or of the top-level lists on its own line."""
    text = json.dumps(value, ensure_ascii=True)
    file.write_text(text.replace(', {"text"', ',\n{"text"').replace('[{"text"', '[\n{"text"') + "\n", encoding="utf-8")


def generate(data, only):
    """Writes everything under `data`."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    (data / "modules").mkdir(parents=True)
    (data / "pictures").mkdir()
    (data / "pipelines").mkdir()
    versions = {m.__name__: m.__version__ for m in (torch, diffusers, transformers, tokenizers)}
    manifest = dict(versions=versions, models=[], noise=None, pictures=[])
    tensors, manifest["noise"] = noise()
    save(tensors, data / "noise.safetensors")
    for size in ((64, 64), (72, 88)):
        start_image(*size).save(data / "pictures" / f"start-{size[0]}x{size[1]}.png", optimize=True)
    texts, latents = {}, {}
    for name in [*goldens_models.MODELS, "default"]:
        if only and name not in only:
            continue
        print(name, flush=True)
        folder = DEFAULT_MODEL
        if name != "default":
            folder = data / "pipelines" / name
            goldens_models.make(name, folder)
            manifest["models"].append(dict(name=name, about=goldens_models.MODELS[name].about))
        pipe = goldens_models.load(name, folder)
        texts[name] = tokens(pipe.tokenizer)
        if name != "default":
            rng, out = torch.Generator().manual_seed(7), {}
            text_goldens(pipe, out)
            unet_goldens(pipe, rng, out)
            vae_goldens(pipe, rng, out, tiled=name in ("sd15", "wide"))
            save(out, data / "modules" / f"{name}.safetensors")
        if name == "sd15":
            goldens_image_prompts.unet(folder / "unet", data / "modules" / "image_prompts.safetensors")
        rows, finished = picture_files(pipe, name, PICTURES[name], data / "pictures")
        manifest["pictures"] += rows
        latents |= finished
    save(latents, data / "latents.safetensors")
    write_rows(texts, data / "tokens.json")
    write_json(manifest, data / "manifest.json")
    for family, script in FAMILIES.items():
        if not only or family in only:
            script.generate(data / family)


def differences(made, kept):
    """What differs between two files, as a sentence; `None` when they agree."""
    if made.read_bytes() == kept.read_bytes():
        return None
    if made.suffix == ".png":
        a, b = (np.asarray(Image.open(f)) for f in (made, kept))
        if a.shape != b.shape:
            return f"size {a.shape} instead of {b.shape}"
        return None if psnr(a, b) >= 55 else f"PSNR {psnr(a, b):.1f} dB"
    if made.suffix == ".safetensors":
        a, b = load_file(made), load_file(kept)
        if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
            return "other tensors or shapes"
        worst = max(((a[k].double() - b[k].double()).norm() / (b[k].double().norm() + 1e-30)).item() for k in a)
        exact = "pipelines" in made.parts or made.name == "noise.safetensors"
        return None if worst <= (0 if exact else 1e-5) else f"relative error {worst:.2g}"
    return "other text"


def check(data):
    """Makes everything anew beside the committed files and tells what differs."""
    with tempfile.TemporaryDirectory() as temp:
        generate(Path(temp) / "data", None)
        made = {f.relative_to(Path(temp) / "data") for f in (Path(temp) / "data").rglob("*") if f.is_file()}
        kept = {f.relative_to(data) for f in data.rglob("*") if f.is_file()}
        kept = {f for f in kept if not f.parts[0].startswith(OTHERS)}
        wrong = [f"{f}: not committed" for f in made - kept] + [f"{f}: no longer made" for f in kept - made]
        for file in sorted(made & kept):
            if why := differences(Path(temp) / "data" / file, data / file):
                wrong.append(f"{file}: {why}")
        print("\n".join(wrong) or f"{len(made)} files agree")
        return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    parser.add_argument("--data", type=Path, default=DATA, help="where the files are (default: models/tests/data)")
    parser.add_argument("--only", nargs="*", help="these models only; with --data elsewhere, for trying things out")
    args = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.check:
        sys.exit(check(args.data))
    if args.only and args.data == DATA:
        parser.error("--only would leave the manifest incomplete; give --data too")
    if args.data.exists():
        for entry in args.data.iterdir():
            if not entry.name.startswith(OTHERS):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    generate(args.data, args.only)


if __name__ == "__main__":
    main()
