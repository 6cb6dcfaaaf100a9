"""Tiny random Stable Diffusion 1.x pipelines for the golden files, as folders in the diffusers layout.

Each differs from the others in what published models differ in: widths, depths, head counts, groups, activations,
prediction type, scheduler file, spelling of the weights, file layout. Weights are drawn so that every part matters to
the picture: norms are not the identity, biases not zero, cross-attention is strong, pictures fill the pixel range.
"""
import json
import math
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"

# What the tiny tokenizers learn their merges from.
CORPUS = """a photo of an astronaut riding a horse on mars, highly detailed, 4k. a red circle on a blue background; the quick
brown fox jumps over the lazy dog and doesn't care, it's what they'll do when we've gone. portrait of an old wizard, oil
painting, dramatic lighting, trending on artstation. a painting in the style of Vincent van Gogh, swirling stars, night sky,
village. café crème brûlée in Zürich, El Niño über alles, naïve façade. watercolor landscape with mountains and a river,
sunset, golden hour, masterpiece, best quality. low quality, blurry, bad anatomy, extra fingers, watermark, text. 山の上の城
桜の花 Привет мир красный круг green green green tree trees street strength"""


@dataclass
class Tiny:
    """How one tiny pipeline is made; the keyword arguments go to the reference's own classes."""

    seed: int
    about: str
    unet: dict
    vae: dict
    text: dict
    scheduler: dict                      # scheduler_config.json
    merges: int = 96                     # byte-pair merges of the tokenizer
    context: int = 77                    # tokenizer's model_max_length
    special_first: bool = False          # ids of the start and end marks: 0 and 1 instead of the last two
    pad: str = EOS
    old_tokenizer: bool = True           # vocab.json and merges.txt; else tokenizer.json, as newer versions save it
    text_prefix: bool = True             # keys start with "text_model.", as older versions save them
    old_attention: bool = False          # the autoencoder's attention is spelled query, key, value, proj_attn
    half: bool = True                    # weights stored as f16
    variant: str | None = None           # files named *.fp16.safetensors
    shard: str | None = None             # largest shard of the denoiser
    eos_in_config: int | None = None     # eos_token_id of the text encoder's config, where it is not the tokenizer's
    index: dict = field(default_factory=dict)   # entries of model_index.json without a folder
    drop: dict = field(default_factory=dict)    # config keys left out, to be read as their defaults: part -> keys
    text_gain: float = 2.0               # strength of the cross-attention


SD_BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

MODELS = {
    "sd15": Tiny(
        seed=101, about="Stable Diffusion 1.5's topology and files: four levels, sparse configs, older spellings, PNDM",
        unet=dict(block_out_channels=(8, 16, 16, 16), layers_per_block=2, attention_head_dim=4, norm_num_groups=4,
                  cross_attention_dim=16, sample_size=8),
        vae=dict(block_out_channels=(4, 8, 8, 12), layers_per_block=2, norm_num_groups=4, sample_size=64),
        text=dict(hidden_size=16, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, hidden_act="quick_gelu",
                  projection_dim=16),
        scheduler=dict(_class_name="PNDMScheduler", _diffusers_version="0.6.0", **SD_BETAS, skip_prk_steps=True,
                       set_alpha_to_one=False, steps_offset=1, trained_betas=None, clip_sample=False),
        old_attention=True, eos_in_config=2,
        index=dict(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
                   feature_extractor=["transformers", "CLIPImageProcessor"]),
        drop=dict(vae=["scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "use_quant_conv",
                       "use_post_quant_conv", "mid_block_add_attention"],
                  unet=["use_linear_projection", "upcast_attention", "num_attention_heads", "transformer_layers_per_block",
                        "resnet_time_scale_shift", "only_cross_attention", "class_embed_type", "addition_embed_type",
                        "mid_block_type", "conv_in_kernel", "conv_out_kernel", "encoder_hid_dim_type",
                        "time_embedding_type", "dual_cross_attention", "attention_type"]),
    ),
    "sd21": Tiny(
        seed=102, about="Stable Diffusion 2.1's choices: linear projections, heads by level, v prediction, GELU, f16 variant",
        unet=dict(block_out_channels=(8, 16, 24), layers_per_block=1, attention_head_dim=(1, 2, 3), norm_num_groups=4,
                  cross_attention_dim=24, sample_size=8, use_linear_projection=True, upcast_attention=True,
                  down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")),
        vae=dict(block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=2, sample_size=64,
                 scaling_factor=0.18215),
        text=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, hidden_act="gelu",
                  projection_dim=12),
        scheduler=dict(_class_name="DDIMScheduler", _diffusers_version="0.8.0", **SD_BETAS, clip_sample=False,
                       prediction_type="v_prediction", set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
                       trained_betas=None),
        merges=160, pad="!", old_tokenizer=False, text_prefix=False, variant="fp16",
    ),
    "wide": Tiny(
        seed=103, about="two levels of uneven width, two transformer layers, sharded weights, sample prediction, VAE of three",
        unet=dict(block_out_channels=(12, 24), layers_per_block=1, attention_head_dim=3, norm_num_groups=3,
                  cross_attention_dim=20, sample_size=16, transformer_layers_per_block=2, norm_eps=1e-6,
                  down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")),
        vae=dict(block_out_channels=(6, 12, 12), layers_per_block=1, norm_num_groups=3, sample_size=64, scaling_factor=0.7),
        text=dict(hidden_size=20, intermediate_size=30, num_hidden_layers=2, num_attention_heads=5, hidden_act="quick_gelu",
                  projection_dim=20),
        scheduler=dict(_class_name="EulerDiscreteScheduler", **SD_BETAS, prediction_type="sample",
                       timestep_spacing="leading", steps_offset=0),
        context=20, old_tokenizer=False, shard="120KB",
    ),
    "deep": Tiny(
        seed=104, about="attention in the deeper levels only, layers and heads by level, no quant convolutions, DPM++ Karras",
        unet=dict(block_out_channels=(8, 8, 16), layers_per_block=(1, 2, 3), attention_head_dim=(2, 4, 2),
                  norm_num_groups=2, cross_attention_dim=16, sample_size=16,
                  down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                  up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")),
        vae=dict(block_out_channels=(8, 8, 8), layers_per_block=2, norm_num_groups=8, sample_size=64, scaling_factor=0.5,
                 use_quant_conv=False, use_post_quant_conv=False),
        text=dict(hidden_size=16, intermediate_size=48, num_hidden_layers=6, num_attention_heads=2, hidden_act="gelu",
                  projection_dim=16),
        scheduler=dict(_class_name="DPMSolverMultistepScheduler", **SD_BETAS, algorithm_type="dpmsolver++",
                       solver_order=2, solver_type="midpoint", use_karras_sigmas=True, timestep_spacing="linspace",
                       lower_order_final=True, final_sigmas_type="zero"),
        merges=64,
    ),
    "small": Tiny(
        seed=105, about="the smallest: one text layer, linear betas, trailing Euler ancestral, marks first in the vocabulary",
        unet=dict(block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=2, norm_num_groups=8,
                  cross_attention_dim=8, sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        vae=dict(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=4, sample_size=32, scaling_factor=0.3),
        text=dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, hidden_act="quick_gelu",
                  projection_dim=8),
        scheduler=dict(_class_name="EulerAncestralDiscreteScheduler", num_train_timesteps=1000, beta_start=0.0001,
                       beta_end=0.02, beta_schedule="linear", prediction_type="epsilon", timestep_spacing="trailing"),
        merges=32, special_first=True, half=False,
    ),
}


def byte_symbols():
    """The printable stand-ins of the 256 bytes in a byte-level vocabulary, in CLIP's order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def train_merges(count):
    """Byte-pair merges of the corpus, the most frequent pair first; ties go to the pair that sorts last."""
    symbols = byte_symbols()
    words = Counter()
    for word in CORPUS.lower().replace(",", " , ").replace(".", " . ").split():
        parts = [symbols[b] for b in word.encode()]
        words[(*parts[:-1], parts[-1] + "</w>")] += 1
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        joined = Counter()
        for word, n in words.items():
            out = []
            for part in word:
                if out and (out[-1], part) == best:
                    out[-1] += part
                else:
                    out.append(part)
            joined[tuple(out)] += n
        words = joined
    return merges


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_tokenizer(tiny, folder):
    """Writes the tokenizer's folder and gives its vocabulary's size."""
    merges = train_merges(tiny.merges)
    base = [byte_symbols()[b] for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    base += [s for s in byte_symbols().values() if s not in base]
    words = [*base, *(s + "</w>" for s in base), *("".join(m) for m in merges)]
    words = [BOS, EOS, *words] if tiny.special_first else [*words, BOS, EOS]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    mark = dict(lstrip=False, normalized=True, rstrip=False, single_word=False)
    bos, eos = dict(content=BOS, **mark), dict(content=EOS, **mark)
    write_json(folder / "special_tokens_map.json", dict(bos_token=bos, eos_token=eos, pad_token=tiny.pad, unk_token=eos))
    typed = {"__type": "AddedToken"}
    write_json(folder / "tokenizer_config.json", dict(
        add_prefix_space=False, bos_token=typed | bos, do_lower_case=True, eos_token=typed | eos, errors="replace",
        model_max_length=tiny.context, pad_token=tiny.pad, tokenizer_class="CLIPTokenizer", unk_token=typed | eos))
    if not tiny.old_tokenizer:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        shutil.rmtree(folder)
        tokenizer.save_pretrained(folder)
        # Where the tokenizer was loaded from is no property of it.
        config = json.loads((folder / "tokenizer_config.json").read_text())
        write_json(folder / "tokenizer_config.json", {k: v for k, v in config.items() if "local" not in k})
    return len(vocab), vocab


def draw_weights(module, rng, text_gain=1.0):
    """Random weights with about unit gain a layer, norms away from the identity and biases away from zero."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name or "group_norm" in name:
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=rng) if name.endswith("weight")
                        else 0.2 * torch.randn(p.shape, generator=rng))
            elif "embedding.weight" in name:
                p.copy_(0.5 * torch.randn(p.shape, generator=rng))
            elif p.ndim > 1:
                gain = text_gain if "attn2.to_out" in name or "attn2.to_v" in name else 1.0
                p.copy_(gain / math.sqrt(p[0].numel()) * torch.randn(p.shape, generator=rng))
            else:
                p.copy_(0.1 * torch.randn(p.shape, generator=rng))


def coarse(x):
    """Two digits of x: measured on other processors it is the same, and so are the weights."""
    return float(f"{float(x):.1e}")


@torch.no_grad()
def level_vae(vae, rng):
    """Scales the two ends, so that latents have about unit variance and pictures use the range without clamping."""
    pixels = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=rng) * 2 - 1, size=(64, 64), mode="bicubic")
    last = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    moments = vae.encode(pixels).latent_dist.parameters
    c = vae.config.latent_channels
    for i, (mean, std) in enumerate([(0.0, 1 / vae.config.scaling_factor)] * c + [(-4.0, 1.0)] * c):
        gain = coarse(std / moments[:, i].std())
        last.weight[i] *= gain
        last.bias[i] = coarse((last.bias[i] - moments[:, i].mean()) * gain + mean + 0.1 * std)
    side = 8 * 8 // 2 ** (len(vae.config.block_out_channels) - 1)
    out = vae.decode(torch.randn(2, c, side, side, generator=rng) / vae.config.scaling_factor).sample
    for i in range(3):
        gain = coarse(0.38 / out[:, i].std())
        vae.decoder.conv_out.weight[i] *= gain
        vae.decoder.conv_out.bias[i] = coarse((vae.decoder.conv_out.bias[i] - out[:, i].mean()) * gain + 0.1 * (i - 1))


@torch.no_grad()
def level_unet(unet, rng):
    """Scales the output to about unit variance, as predicted noise has it."""
    x = torch.randn(2, 4, 8, 8, generator=rng)
    states = torch.randn(2, 7, unet.config.cross_attention_dim, generator=rng)
    out = unet(x, torch.tensor([100, 800]), states).sample
    unet.conv_out.weight *= coarse(0.9 / out.std())


def rename(file, change):
    save_file({change(k): v.contiguous() for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def make(name, folder):
    """Writes the pipeline's folder."""
    tiny = MODELS[name]
    rng = torch.Generator().manual_seed(tiny.seed)
    size, vocab = make_tokenizer(tiny, folder / "tokenizer")
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=size, max_position_embeddings=tiny.context, bos_token_id=0 if tiny.eos_in_config else vocab[BOS],
        eos_token_id=tiny.eos_in_config or vocab[EOS], pad_token_id=1, **tiny.text)).eval()
    unet, vae = UNet2DConditionModel(**tiny.unet).eval(), vae_of(tiny)
    draw_weights(text, rng)
    draw_weights(unet, rng, tiny.text_gain)
    draw_weights(vae, rng)
    level_unet(unet, rng)
    level_vae(vae, rng)
    scheduler = getattr(diffusers, tiny.scheduler["_class_name"]).from_config(tiny.scheduler)
    pipe = StableDiffusionPipeline(vae, text, CLIPTokenizer.from_pretrained(folder / "tokenizer"), unet, scheduler,
                                   None, None, requires_safety_checker=False)
    if tiny.half:
        pipe = pipe.to(torch.float16)
    saved = folder / "saved"
    pipe.save_pretrained(saved, variant=tiny.variant)
    shutil.rmtree(saved / "tokenizer")
    if tiny.shard:
        shutil.rmtree(saved / "unet")
        unet.save_pretrained(saved / "unet", max_shard_size=tiny.shard)
    for part in saved.iterdir():
        part.rename(folder / part.name)
    saved.rmdir()

    if tiny.text_prefix:
        for file in (folder / "text_encoder").glob("*.safetensors"):
            rename(file, lambda key: "text_model." + key)
    if tiny.old_attention:
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for file in (folder / "vae").glob("*.safetensors"):
            rename(file, lambda key: next((key.replace(f".{n}.", f".{o}.") for n, o in old.items() if f".{n}." in key), key))
    for part, keys in tiny.drop.items():
        config = json.loads((folder / part / "config.json").read_text())
        write_json(folder / part / "config.json", {k: v for k, v in config.items() if k not in keys})
    for file in folder.glob("*/config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        write_json(file, config)
    # The scheduler's file as it was given, and not completed by the class's defaults: which keys are absent matters.
    write_json(folder / "scheduler" / "scheduler_config.json", tiny.scheduler)
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("_name_or_path", None)
    write_json(folder / "model_index.json", index | tiny.index)


def vae_of(tiny):
    levels = len(tiny.vae["block_out_channels"])
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
                         latent_channels=4, **tiny.vae).eval()


def load(name, folder):
    """The pipeline as the reference opens the folder, computing in f32."""
    tiny = MODELS.get(name, Tiny(0, "", {}, {}, {}, {}))
    parts = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, variant=tiny.variant,
                                                   use_safetensors=True, **parts)
    pipe.set_progress_bar_config(disable=True)
    if not hasattr(pipe.text_encoder, "text_model"):
        # The pipelines' clip_skip still asks for the attribute that transformers 5 has flattened away.
        object.__setattr__(pipe.text_encoder, "text_model", pipe.text_encoder)
    return pipe
