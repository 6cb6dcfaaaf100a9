"""Makes the golden files of models/tests/data/sd3: tiny random Stable Diffusion 3 and 3.5 pipelines, the pictures that the
reference (Hugging Face diffusers, f32, CPU) makes with them, and what T5 and its tokenizer give. scripts/goldens.py calls
it; alone it writes into a folder:

    python scripts/goldens_sd3.py FOLDER [--random N]      # N random configurations instead, for trying things out
"""
import io
import json
import math
import random
import shutil

import diffusers
import numpy as np
import sentencepiece
import torch
from diffusers import (AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Img2ImgPipeline,
                       StableDiffusion3InpaintPipeline, StableDiffusion3Pipeline)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

import goldens_image_prompts
from goldens_family import run
from goldens_models import BOS, CORPUS, EOS, Tiny, level_vae, make_tokenizer, write_json
from goldens_pictures import psnr, start_image

CAT, WORLD = "a photo of a cat", "café 山の上の城 😀 it's 4k! <extra_id_0> Ｆｕｌｌ ½"
LONG = "a painting in the style of Vincent van Gogh, swirling stars, night sky, village, " * 24

# The solvers' forms for flows, and what they are called here; the shift is the model's.
SAMPLERS = {
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_dpmpp_2m": ("DPMSolverMultistepScheduler", dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
    "unipc": ("UniPCMultistepScheduler", dict(use_flow_sigmas=True, prediction_type="flow_prediction")),
}
SCHEDULES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}


def case(prompt=CAT, size=(64, 64), *, steps=4, guidance=5.0, seed=0, negative=None, strength=None, mask=False, sampler=None,
         schedule=None, clip_skip=0):
    """One call of the pipeline: with a strength from the start image, with a mask into it."""
    return dict(prompt=prompt, width=size[0], height=size[1], steps=steps, guidance=guidance, seed=seed, negative=negative,
                strength=strength, mask=mask, sampler=sampler, schedule=schedule, clip_skip=clip_skip, references=[])


VAE = dict(block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=16, sample_size=64,
           scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)

MODELS = {
    "sd3": dict(
        about="Stable Diffusion 3 medium's choices: plain attention, T5 from spiece.model, shift 3",
        seed=301, transformer=dict(num_layers=3, attention_head_dim=8, num_attention_heads=3, sample_size=8,
                                   pos_embed_max_size=12),
        scheduler=dict(shift=3.0), vae=VAE, clips=[dict(hidden_size=16, projection_dim=16, num_hidden_layers=3),
                                                   dict(hidden_size=24, projection_dim=20, num_hidden_layers=4,
                                                        hidden_act="gelu", num_attention_heads=3)],
        t5=dict(d_model=48), t5_tokenizer="spiece", half=True,
        cases=[
            case(), case(WORLD, (96, 64), seed=1, steps=7), case(LONG, seed=2, negative="blurry, text"),
            case("", (48, 112), seed=3, steps=1), case(seed=4, guidance=1.0), case(seed=5, guidance=0.0, negative=WORLD),
            case("tree", seed=6, clip_skip=1, negative="low quality"), case(seed=7, steps=6, sampler="flow_heun"),
            case(WORLD, (64, 96), seed=8, steps=6, sampler="flow_dpmpp_2m"), case(seed=9, steps=5, sampler="unipc"),
            case(seed=10, steps=5, schedule="karras", sampler="flow_euler"),
            case(seed=11, steps=7, strength=0.6), case(WORLD, (96, 64), seed=12, steps=10, strength=0.33),
            case(seed=13, strength=1.0, guidance=1.0), case(seed=14, steps=5, strength=0.7, sampler="flow_heun"),
            case(seed=15, steps=6, strength=0.75, mask=True), case(WORLD, (64, 96), seed=16, strength=1.0, mask=True),
            case("tree", seed=17, steps=5, strength=0.5, mask=True, guidance=1.0),
        ]),
    "sd35": dict(
        about="3.5 medium's: normalised queries and keys, second attentions, dynamic shifting, variant and shards",
        seed=302, transformer=dict(num_layers=4, attention_head_dim=4, num_attention_heads=4, sample_size=8,
                                   pos_embed_max_size=24, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        scheduler=dict(shift=1.0, use_dynamic_shifting=True, base_shift=0.6, max_shift=1.4, base_image_seq_len=64),
        vae=VAE | dict(block_out_channels=(4, 4, 8), norm_num_groups=2),
        clips=[dict(hidden_size=12, projection_dim=8, num_attention_heads=2, num_hidden_layers=2),
               dict(hidden_size=16, projection_dim=16, num_hidden_layers=2, hidden_act="gelu_new")],
        t5=dict(d_model=40, feed_forward_proj="gated-silu", num_layers=1), t5_tokenizer="json", half=True, variant="fp16",
        shard="40KB",
        cases=[
            case(size=(32, 32), guidance=7.0), case(WORLD, (56, 32), seed=1, steps=6, negative=LONG),
            case(LONG, (64, 40), seed=2, steps=3), case(size=(48, 32), seed=3, steps=5, strength=0.5),
            case(WORLD, (40, 64), seed=4, steps=6, strength=0.9, mask=True),
        ]),
    "large": dict(
        about="3.5 large without T5: one attention, GELU, weights in f32, patches of one, other channels",
        seed=303, transformer=dict(num_layers=2, attention_head_dim=12, num_attention_heads=2, sample_size=12, patch_size=1,
                                   pos_embed_max_size=16, qk_norm="rms_norm", joint_attention_dim=36, out_channels=None),
        scheduler=dict(shift=5.0), vae=VAE | dict(block_out_channels=(8, 8), latent_channels=4, shift_factor=-0.2,
                                                  scaling_factor=0.8, use_quant_conv=True, use_post_quant_conv=True),
        clips=[dict(hidden_size=16, projection_dim=8, num_hidden_layers=2), dict(hidden_size=8, projection_dim=12,
                                                                                 num_hidden_layers=3)],
        t5=None, half=False,
        cases=[case(size=(24, 24)), case(LONG, (32, 18), seed=1, steps=5, negative=WORLD), case(seed=2, size=(20, 24),
               strength=0.6, steps=5)]),
    "inpaint": dict(
        about="a model that is told what to keep: 33 channels",
        seed=304, transformer=dict(num_layers=2, attention_head_dim=8, num_attention_heads=2, sample_size=8,
                                   pos_embed_max_size=8, in_channels=33, joint_attention_dim=32),
        scheduler=dict(shift=3.0), vae=VAE | dict(block_out_channels=(4, 8), norm_num_groups=4),
        clips=[dict(hidden_size=16, projection_dim=8, num_hidden_layers=2), dict(hidden_size=16, projection_dim=8,
                                                                                 num_hidden_layers=2)],
        t5=None, half=True,
        cases=[case(size=(32, 32), strength=0.6, steps=6, mask=True), case(WORLD, (24, 32), seed=1, strength=1.0, mask=True),
               case("tree", (32, 32), seed=2, steps=3, strength=1.0, guidance=1.0, mask=True)]),
}

TEXTS = [
    "", " ", CAT, WORLD, "  double  spaces   and a tail  ", "\tTab\nnew line\r\n", "<extra_id_0>", "a <extra_id_0> b<extra_id_99>c  "
    "<extra_id_1>  ", "<pad> </s> <unk>", "x</s>y<pad>z", "▁under▁score", "a" * 700, "ﬃ ﬁve ½ ㎏ ™ ﷺ Ｆｕｌｌ", "e\u0301 é",
    "<EXTRA_ID_0> <extra_id_100>", "山の上の城。桜の花、夜空！", "😀 🐈\u200d⬛ 👩\u200d🚀", "zero\u200bwidth\ufeffbom nul\u0000 bell\u0007",
    "non\u00a0breaking\u3000ideographic", "it's (masterpiece:1.2), [best|quality]", LONG, "Привет мир مرحبا שלום ภาพ नमस्ते",
]


def train_t5(rule, vocabulary=320):
    """A SentencePiece model with T5's marks, as bytes."""
    model = io.BytesIO()
    lines = [line for text in (CORPUS, *TEXTS[2:]) for line in text.replace("\0", " ").split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocabulary, model_type="unigram", num_threads=1,
        normalization_rule_name=rule, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False)
    return model.getvalue()


def write_t5_tokenizer(folder, kind):
    """Writes the tokenizer's folder: `spiece`, as transformers 4 left it, or `json`, as 5 saves it."""
    folder.mkdir(parents=True)
    model = train_t5("nmt_nfkc" if kind == "spiece" else "identity")
    (folder / "spiece.model").write_bytes(model)
    if kind == "spiece":
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        mark = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
        marks = {0: "<pad>", 1: "</s>", 2: "<unk>"} | {size + 99 - i: f"<extra_id_{i}>" for i in range(100)}
        write_json(folder / "tokenizer_config.json", dict(
            added_tokens_decoder={str(i): dict(content=text, **mark) for i, text in marks.items()},
            additional_special_tokens=[f"<extra_id_{i}>" for i in range(100)], eos_token="</s>", extra_ids=100,
            model_max_length=512, pad_token="<pad>", tokenizer_class="T5Tokenizer", unk_token="<unk>"))
        return
    tokenizer = T5TokenizerFast.from_pretrained(folder)
    shutil.rmtree(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # Where the tokenizer was loaded from is no property of it.
    write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if "local" not in k and k != "vocab_file"})


@torch.no_grad()
def draw(module, rng, gain=1.0):
    """Random weights with about unit gain a layer, norms away from the identity and biases away from zero."""
    for name, p in module.named_parameters():
        if p.ndim > 1:
            scale = 0.5 if "embedding" in name else 1.0 if "shared" in name else gain / math.sqrt(p[0].numel())
            p.copy_(scale * torch.randn(p.shape, generator=rng))
        elif name.endswith("weight"):
            p.copy_(1 + 0.3 * torch.randn(p.shape, generator=rng))
        else:
            p.copy_(0.1 * torch.randn(p.shape, generator=rng))


def make(folder, spec):
    """Writes the pipeline's folder and loads it as the reference does."""
    shutil.rmtree(folder, ignore_errors=True)
    rng = torch.Generator().manual_seed(spec["seed"])
    tokenizers, clips = [], []
    for name, text in zip(("tokenizer", "tokenizer_2"), spec["clips"]):
        tiny = Tiny(0, "", {}, {}, {}, {}, merges=40, context=spec.get("context", 77),
                    pad="!" if name == "tokenizer_2" else EOS)
        size, vocab = make_tokenizer(tiny, folder / name)
        tokenizers.append(CLIPTokenizer.from_pretrained(folder / name))
        clips.append(CLIPTextModelWithProjection(CLIPTextConfig(**dict(
            vocab_size=size, max_position_embeddings=77, bos_token_id=vocab[BOS], eos_token_id=vocab[EOS], pad_token_id=1,
            num_attention_heads=2, intermediate_size=32, hidden_act="quick_gelu") | text)).eval())
    t5, t5_tokenizer, transformer = None, None, dict(spec["transformer"])
    if spec["t5"]:
        write_t5_tokenizer(folder / "tokenizer_3", spec["t5_tokenizer"])
        t5_tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer_3")
        t5 = T5EncoderModel(T5Config(**dict(vocab_size=len(t5_tokenizer) + 3, d_kv=8, d_ff=64, num_layers=2, num_heads=3,
                                            feed_forward_proj="gated-gelu", tie_word_embeddings=False) | spec["t5"])).eval()
        transformer["joint_attention_dim"] = spec["t5"]["d_model"]
    vae = spec["vae"]
    levels = len(vae["block_out_channels"])
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
                        **vae).eval()
    transformer = SD3Transformer2DModel(**dict(
        in_channels=vae.config.latent_channels, out_channels=vae.config.latent_channels,
        caption_projection_dim=transformer["attention_head_dim"] * transformer["num_attention_heads"],
        pooled_projection_dim=sum(text["projection_dim"] for text in spec["clips"])) | transformer).eval()
    for module in [*clips, *([t5] if t5 else []), vae]:
        draw(module, rng)
    draw(transformer, rng, 1.3)
    level_vae(vae, rng)
    scheduler = spec["scheduler"]
    scheduler = getattr(diffusers, scheduler.get("_class_name", "FlowMatchEulerDiscreteScheduler")).from_config(scheduler)
    pipe = StableDiffusion3Pipeline(transformer, scheduler, vae, clips[0], tokenizers[0], clips[1], tokenizers[1], t5,
                                    t5_tokenizer)
    if spec["half"]:
        pipe = pipe.to(torch.float16)
    saved = folder / "saved"
    pipe.save_pretrained(saved, variant=spec.get("variant"))
    if spec.get("shard"):
        shutil.rmtree(saved / "transformer")
        transformer.save_pretrained(saved / "transformer", max_shard_size=spec["shard"], variant=spec.get("variant"))
    for part in saved.iterdir():
        # The tokenizers' files as they were made, not as the reference saves them again.
        shutil.rmtree(part) if part.name.startswith("tokenizer") else part.rename(folder / part.name)
    saved.rmdir()
    for file in [*folder.glob("*/config.json"), folder / "model_index.json"]:
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        write_json(file, config)
    # The scheduler's file as it was given, and not completed by the class's defaults: which keys are absent matters.
    write_json(folder / "scheduler" / "scheduler_config.json",
               dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000) | spec["scheduler"])
    absent = {} if spec["t5"] else dict(text_encoder_3=None, tokenizer_3=None)
    return StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=torch.float32, variant=spec.get("variant"), **absent)


def mask_image(size):
    """White in the middle, and a thin white line that most latents miss; its greys lie on both sides of the threshold."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4: height * 3 // 4, width // 3: width * 5 // 6] = 255
    mask[height // 8] = 200
    mask[:, 1] = 127
    return Image.fromarray(mask)


@torch.no_grad()
def picture(pipe, c):
    """The case's picture, and the latents that it is decoded from."""
    parts, kind = pipe.components, StableDiffusion3Pipeline
    size = c["width"], c["height"]
    call = dict(prompt=c["prompt"], negative_prompt=c["negative"], height=size[1], width=size[0], guidance_scale=c["guidance"],
                num_inference_steps=c["steps"], clip_skip=c["clip_skip"] or None)
    if c["strength"] is not None:
        call |= dict(image=start_image(*size), strength=c["strength"])
        kind = StableDiffusion3Img2ImgPipeline
    if c["mask"]:
        call |= dict(mask_image=mask_image(size))
        kind = StableDiffusion3InpaintPipeline
    if c["sampler"]:
        name, keys = SAMPLERS[c["sampler"]]
        keys = keys | ({SCHEDULES[c["schedule"]]: True} if c["schedule"] else {})
        if "use_flow_sigmas" in keys:
            keys |= dict(flow_shift=pipe.scheduler.config.shift)
        parts = parts | dict(scheduler=getattr(diffusers, name).from_config(pipe.scheduler.config, **keys))
    task = kind(**parts)
    task.set_progress_bar_config(disable=True)
    seeded = lambda: torch.Generator().manual_seed(c["seed"])
    latents = task(**call, generator=seeded(), output_type="latent").images[0]
    if c["mask"]:
        # This pipeline decodes without the shift, which easel takes off the latents.
        latents = latents - task.vae.config.shift_factor * task.vae.config.scaling_factor
    return np.asarray(task(**call, generator=seeded()).images[0]), latents


def write_pictures(folder, name, pipe, cases):
    """Makes the cases' pictures; gives their rows of cases.json and the finished latents."""
    rows, finished, seen = [], {}, {}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number, c in enumerate(cases):
        file = f"{name}-{number:02}.png"
        made, latents = picture(pipe, c)
        print(f"  {file}: deviation {made.std():.0f}", flush=True)
        key = c | dict(negative=c["negative"] if c["guidance"] > 1 else None)
        for other, (other_key, kept) in seen.items():
            if other_key != key and kept.shape == made.shape and psnr(kept, made) > 40:
                print(f"  {file} looks like {other}")
        seen[file] = (key, made)
        Image.fromarray(made).save(folder / "pictures" / file, optimize=True)
        size = (c["width"], c["height"])
        if c["strength"] is not None:
            start_image(*size).save(folder / "pictures" / f"start-{size[0]}x{size[1]}.png", optimize=True)
        if c["mask"]:
            mask_image(size).save(folder / "pictures" / f"mask-{size[0]}x{size[1]}.png", optimize=True)
        rows.append(c | dict(file=file, model=name))
        finished[file] = latents.contiguous()
    return rows, finished


@torch.no_grad()
def texts(name, pipe, folder):
    """What T5 and its tokenizer make of the texts."""
    tokenizer, encoder, rows, states = pipe.tokenizer_3, pipe.text_encoder_3, [], {}
    for at, text in enumerate(TEXTS):
        for length in (8, 256):
            tokens = tokenizer(text, padding="max_length", max_length=length, truncation=True)
            count = len(tokenizer(text, add_special_tokens=False).input_ids)
            ids = tokens.input_ids[: sum(tokens.attention_mask)]
            rows.append(dict(text=text, length=length, ids=ids, count=count))
        if at in (0, 3):
            ids, mask = torch.tensor([tokens.input_ids[:150]]), torch.tensor([tokens.attention_mask[:150]])
            states[f"{name}.{at}.ids"], states[f"{name}.{at}.mask"] = ids.int(), mask.int()
            states[f"{name}.{at}.plain"] = encoder(ids).last_hidden_state
            states[f"{name}.{at}.masked"] = encoder(ids, attention_mask=mask).last_hidden_state
    return rows, states


def write_rows(value, file):
    file.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=True) for row in value) + "\n]\n", encoding="utf-8")


def generate(folder, models=MODELS):
    """Writes everything under `folder`."""
    cases, latents, tokens, states = [], {}, {}, {}
    for name, spec in models.items():
        print(name, flush=True)
        pipe = make(folder / name, spec)
        if name in ("sd3", "sd35"):
            goldens_image_prompts.sd3(folder / name / "transformer", folder / f"image_prompts_{name}.safetensors",
                                      spec.get("variant"))
        rows, finished = write_pictures(folder, name, pipe, spec["cases"])
        cases += rows
        latents |= finished
        if spec["t5"]:
            tokens[name], made = texts(name, pipe, folder)
            states |= made
    write_rows(cases, folder / "cases.json")
    write_rows([dict(model=name, pad=0, **row) for name, rows in tokens.items() for row in rows], folder / "t5_tokens.json")
    save_file(latents, folder / "latents.safetensors")
    save_file(states or {"none": torch.zeros(1)}, folder / "t5_states.safetensors")


def random_spec(seed):
    """A configuration that nobody chose."""
    r = random.Random(seed)
    heads, head = r.choice([1, 2, 3, 5]), r.choice([2, 4, 6, 10])
    while heads * head % 4:
        heads += 1
    levels, patch = r.choice([1, 2, 3, 4]), r.choice([1, 2, 2, 2, 3])
    side = 2 ** (levels - 1) * patch
    most = r.randint(6, 14)
    clips = [dict(hidden_size=2 * n * r.randint(2, 5), num_attention_heads=n, projection_dim=r.randint(4, 20),
                  num_hidden_layers=r.randint(2, 4), hidden_act=r.choice(["gelu", "quick_gelu", "gelu_new"]))
             for n in (r.choice([1, 2, 3]), r.choice([1, 2, 4]))]
    width = sum(c["hidden_size"] for c in clips) + r.choice([0, 1, 10])
    layers = r.randint(1, 5)
    channels = r.choice([4, 16])
    words = ["cat", "tree", "café", "山", "blue,", ",,", "4k", "😀", "it's", "<extra_id_3>", "painting", "\n", "  "]
    text = lambda: " ".join(r.choice(words) for _ in range(r.choice([0, 1, 5, 30, 100, 400])))
    kinds = [dict(shift=r.uniform(0.5, 8.0)), dict(shift=3.0),
             dict(shift=1.0, use_dynamic_shifting=True, base_shift=r.uniform(0.1, 1), max_shift=r.uniform(1, 2)),
             dict(use_dynamic_shifting=True, time_shift_type=r.choice(["linear", "exponential"])),
             dict(shift=2.0, use_karras_sigmas=True), dict(shift=3.0, use_exponential_sigmas=True),
             dict(shift=2.5, use_beta_sigmas=True), dict(shift=3.0, shift_terminal=0.1),
             dict(_class_name="FlowMatchHeunDiscreteScheduler", shift=r.uniform(1, 5)),
             dict(shift=3.0, num_train_timesteps=r.choice([1000, 500]))]
    scheduler = r.choice(kinds)
    plain = set(scheduler) == {"shift"}
    inpaint = channels == 16 and r.random() < 0.15
    cases = []
    for _ in range(4):
        size = (side * r.randint(2, most), side * r.randint(2, most))
        size = tuple(max(s, 2 * side) for s in size)
        strength = r.choice([None, None, 1.0, r.uniform(0.3, 1)])
        mask = (strength is not None and r.random() < 0.5 and channels == 16) or inpaint
        if inpaint and strength is None:
            strength = r.uniform(0.4, 1)
        sampler = schedule = None
        if plain and r.random() < 0.5:
            sampler = r.choice(list(SAMPLERS) if strength is None else ["flow_euler", "flow_heun"])
            schedule = r.choice([None, *SCHEDULES]) if sampler == "flow_euler" else None
        cases.append(case(text(), size, steps=r.randint(4, 9), guidance=r.choice([0.0, 1.0, 1.5, 4.0, 7.0]), mask=mask,
                          seed=r.randint(0, 2**40), negative=r.choice([None, "", text()]), strength=strength, sampler=sampler,
                          schedule=schedule,
                          clip_skip=r.randint(0, min(c["num_hidden_layers"] for c in clips) - 1) if r.random() < 0.3 else 0))
    t5 = r.random() < 0.6
    return dict(
        seed=seed, cases=cases, scheduler=scheduler, clips=clips, half=r.random() < 0.5, context=r.choice([77, 77, 20]),
        transformer=dict(num_layers=layers, attention_head_dim=head, num_attention_heads=heads, sample_size=patch * r.randint(2, most),
                         patch_size=patch, pos_embed_max_size=most, joint_attention_dim=width,
                         qk_norm=r.choice([None, "rms_norm", "layer_norm"]), in_channels=33 if inpaint else channels,
                         dual_attention_layers=tuple(sorted(r.sample(range(layers), r.randint(0, layers)))) if r.random() < 0.5 else ()),
        vae=dict(block_out_channels=tuple(r.choice([4, 8]) for _ in range(levels)), latent_channels=channels,
                 layers_per_block=r.randint(1, 2), norm_num_groups=r.choice([2, 4]), scaling_factor=r.uniform(0.5, 2),
                 shift_factor=r.uniform(-0.3, 0.3), use_quant_conv=r.random() < 0.3, use_post_quant_conv=r.random() < 0.3,
                 mid_block_add_attention=r.random() < 0.7, sample_size=32),
        t5=dict(d_model=width, d_kv=r.choice([2, 5, 8]), num_heads=r.randint(1, 4), num_layers=r.randint(1, 3), d_ff=r.randint(8, 70),
                feed_forward_proj=r.choice(["gated-gelu", "relu", "gated-silu", "gelu"]),
                relative_attention_num_buckets=r.choice([32, 8, 16]), relative_attention_max_distance=r.choice([128, 50, 20]),
                layer_norm_epsilon=r.choice([1e-6, 1e-3])) if t5 else None,
        t5_tokenizer=r.choice(["spiece", "json"]))


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
