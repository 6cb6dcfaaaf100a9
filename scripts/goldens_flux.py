"""Makes the golden files of models/tests/data/flux: tiny random FLUX.1 pipelines and the pictures that the reference
(Hugging Face diffusers, f32, CPU) makes with them. scripts/goldens.py calls it; alone it writes into a folder:

    python scripts/goldens_flux.py FOLDER [--random N] [--first I]   # N random configurations instead, for trying things out
"""
import io
import random
import shutil

import diffusers
import sentencepiece
import torch
from diffusers import (AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxImg2ImgPipeline,
                       FluxInpaintPipeline, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

import goldens_image_prompts
from goldens_family import finish, mask_image, run, save, strong, write_pictures
from goldens_models import CORPUS, Tiny, make_tokenizer
from goldens_pictures import start_image

LONG = "a painting in the style of Vincent van Gogh, swirling stars, night sky, village, " * 24
WORLD = "café 山の上の城 😀 it's 4k! </s> <extra_id_0>\n\nGreen  trees\t"

CLASSES = dict(draw=FluxPipeline, fill=FluxFillPipeline, edit=FluxKontextPipeline)


def case(prompt="a photo of a cat", size=(64, 64), *, steps=4, guidance=3.5, true_guidance=1.0, seed=0, negative=None,
         strength=None, mask=False, references=()):
    """One picture; `strength` starts from the start image, `mask` paints a part of it, `references` are looked at."""
    return dict(prompt=prompt, negative=negative, width=size[0], height=size[1], steps=steps, guidance=guidance,
                true_guidance=true_guidance, seed=seed, strength=strength, mask=mask, references=list(references))


DEV = dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
           max_image_seq_len=4096)
MODELS = {
    "dev": dict(
        seed=301, kind="draw", scheduler=DEV, vae=dict(block_out_channels=(8, 8, 12, 16), latent_channels=16),
        transformer=dict(num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
                         axes_dims_rope=(4, 6, 6), guidance_embeds=True),
        cases=[
            case(), case(WORLD, (96, 160), seed=1, steps=7), case(LONG, seed=2, guidance=1.0),
            case("", seed=3, steps=1), case("tree", seed=4, guidance=30.0, steps=2),
            case(WORLD, seed=5, true_guidance=4.0, negative="blurry, text, watermark"),
            case(seed=6, true_guidance=1.5, negative="", steps=5), case(seed=7, true_guidance=1.0, negative="blurry"),
            case(seed=8, strength=0.6, steps=7), case(WORLD, (96, 64), seed=9, strength=1.0),
            case(seed=10, strength=0.3, steps=10, true_guidance=2.0, negative=WORLD),
            case(seed=11, strength=0.75, mask=True, steps=6),
            case(WORLD, (96, 64), seed=12, strength=1.0, mask=True, guidance=7.0),
            case(seed=13, strength=0.85, mask=True, steps=8, true_guidance=3.0, negative="text"),
        ]),
    "schnell": dict(
        seed=302, kind="draw", scheduler=dict(shift=1.0),
        vae=dict(block_out_channels=(8, 12), latent_channels=4, norm_num_groups=2, layers_per_block=2),
        transformer=dict(num_layers=1, num_single_layers=2, attention_head_dim=12, num_attention_heads=3,
                         axes_dims_rope=(2, 4, 6), guidance_embeds=False, in_channels=16),
        clip=dict(eos_token_id=None, num_hidden_layers=1), t5=dict(num_layers=1, d_kv=6, feed_forward_proj="relu"),
        cases=[
            case(size=(32, 32), guidance=0.0), case(WORLD, (20, 36), seed=21, guidance=3.5, steps=2),
            case(LONG, (44, 24), seed=22, steps=1), case(size=(32, 32), seed=23, true_guidance=2.0, negative=LONG),
            case(size=(36, 24), seed=24, strength=0.5, steps=4), case(size=(36, 24), seed=25, strength=0.6, mask=True),
        ]),
    "fill": dict(
        seed=303, kind="fill", scheduler=DEV, vae=dict(block_out_channels=(8, 8, 8), latent_channels=4),
        transformer=dict(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=4,
                         axes_dims_rope=(2, 4, 2), guidance_embeds=True, in_channels=96, out_channels=16),
        cases=[
            case(guidance=30.0, strength=1.0, mask=True), case(WORLD, (48, 72), seed=31, strength=1.0, mask=True, steps=6),
            case(seed=32, strength=0.6, mask=True, steps=5, guidance=3.0),
        ]),
    "kontext": dict(
        seed=304, kind="edit", scheduler=DEV,
        vae=dict(block_out_channels=(2, 2, 4, 4, 8, 8), latent_channels=4, norm_num_groups=2, mid_block_add_attention=False),
        transformer=dict(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=4,
                         axes_dims_rope=(4, 2, 2), guidance_embeds=True, in_channels=16),
        cases=[
            case(size=(128, 128), references=[(100, 70)]), case(WORLD, (192, 64), seed=41, references=[(70, 200)], steps=3),
            case(size=(128, 128), seed=42), case(size=(128, 128), seed=43, references=[(80, 80)], true_guidance=2.0,
                                                 negative="blurry", steps=3),
            case(size=(128, 128), seed=44, references=[(80, 80)], guidance=1.0, steps=6),
        ]),
}


def t5_tokenizer(folder, pieces):
    """A SentencePiece vocabulary with T5's marks, without T5's normalisation, which has a large table."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split(".")), model_writer=model, vocab_size=pieces, model_type="unigram", pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, normalization_rule_name="identity", character_coverage=0.99, minloglevel=2,
        hard_vocab_limit=False, num_threads=1)
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    made = T5Tokenizer.from_pretrained(folder, extra_ids=4)
    shutil.rmtree(folder)
    made.save_pretrained(folder)
    return T5Tokenizer.from_pretrained(folder)


def make(folder, spec):
    """Writes the pipeline's folder and loads it as the reference does."""
    if folder.exists():
        shutil.rmtree(folder)
    seed = spec["seed"]
    words, _ = make_tokenizer(Tiny(seed=seed, about="", unet={}, vae={}, text={}, scheduler={},
                                   old_tokenizer=spec.get("old_tokenizer", True)), folder / "tokenizer")
    t5 = t5_tokenizer(folder / "tokenizer_2", spec.get("pieces", 150))
    tok = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = dict(vocab_size=words, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=16, eos_token_id=2, bos_token_id=0,
                pad_token_id=1) | spec.get("clip", {})
    if text["eos_token_id"] is None:
        text["eos_token_id"] = tok.eos_token_id
    clip = strong(CLIPTextModel(CLIPTextConfig(**text)), seed)
    encoder = strong(T5EncoderModel(T5Config(**dict(
        vocab_size=-(-len(t5) // 8) * 8, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", dropout_rate=0.0) | spec.get("t5", {}))), seed + 1)
    levels = len(spec["vae"]["block_out_channels"])
    vae = AutoencoderKL(**dict(down_block_types=("DownEncoderBlock2D",) * levels, norm_num_groups=4, layers_per_block=1,
                               up_block_types=("UpDecoderBlock2D",) * levels, sample_size=64, scaling_factor=0.3611,
                               shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
                               force_upcast=True) | spec["vae"])
    strong(vae, seed + 2)
    transformer = FluxTransformer2DModel(**dict(joint_attention_dim=encoder.config.d_model, patch_size=1, in_channels=64,
                                                pooled_projection_dim=clip.config.hidden_size) | spec["transformer"])
    strong(transformer, seed + 3)
    made = dict(spec["scheduler"])
    scheduler = getattr(diffusers, made.pop("_class", "FlowMatchEulerDiscreteScheduler"))(num_train_timesteps=1000, **made)
    kind = CLASSES[spec["kind"]]
    pipe = kind(scheduler=scheduler, vae=vae, text_encoder=clip, tokenizer=tok, text_encoder_2=encoder, tokenizer_2=t5,
                transformer=transformer)
    save(pipe, folder, ["tokenizer", "tokenizer_2"])
    return kind.from_pretrained(folder, torch_dtype=torch.float32)


@torch.no_grad()
def picture(pipe, what):
    """The picture and its latents, (c, h, w)."""
    size = what["width"], what["height"]
    call = dict(prompt=what["prompt"], height=size[1], width=size[0], num_inference_steps=what["steps"],
                guidance_scale=what["guidance"])
    kind = type(pipe)
    if kind is not FluxFillPipeline:
        call |= dict(negative_prompt=what["negative"], true_cfg_scale=what["true_guidance"])
    if kind is FluxKontextPipeline:
        call |= dict(max_area=size[0] * size[1])
    if what["references"]:
        call |= dict(image=start_image(*what["references"][0]))
    if what["strength"] is not None:
        call |= dict(image=start_image(*size), strength=what["strength"])
        kind = FluxImg2ImgPipeline if kind is FluxPipeline else kind
    if what["mask"]:
        call |= dict(mask_image=mask_image(size))
        kind = FluxInpaintPipeline if kind is FluxImg2ImgPipeline else kind
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    task = kind(**{part: getattr(pipe, part) for part in parts})
    task.set_progress_bar_config(disable=True)
    seeded = lambda: torch.Generator().manual_seed(what["seed"])
    packed = task(**call, generator=seeded(), output_type="latent").images
    latents = task._unpack_latents(packed, size[1], size[0], task.vae_scale_factor)
    return what, task(**call, generator=seeded()).images[0], latents[0]


@torch.no_grad()
def transformer_goldens(pipe, folder):
    """What ControlNets add to the blocks: fewer residuals than blocks, shared by neighbours or going round."""
    model, rng = pipe.transformer, torch.Generator().manual_seed(5)
    randn = lambda *shape: torch.randn(shape, generator=rng)
    config, (h, w), length = model.config, (4, 6), 5
    width = config.num_attention_heads * config.attention_head_dim
    tokens = h // 2 * (w // 2)
    latents = randn(2, config.in_channels // 4, h, w)
    pack = FluxPipeline._pack_latents(latents, 2, config.in_channels // 4, h, w)
    out = dict(latents=latents, states=randn(2, length, config.joint_attention_dim),
               pooled=randn(2, config.pooled_projection_dim), timesteps=torch.tensor([731.0625, 20.0]),
               guidance=torch.tensor([3.5, 1.25]), double=randn(2, tokens, width), single=randn(2, tokens, width))
    other = randn(2, tokens, width)
    out["other"] = other
    ids = FluxPipeline._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float32)
    for repeat in (False, True):
        velocity = model(pack, out["states"], out["pooled"], out["timesteps"] / 1000, ids, torch.zeros(length, 3),
                         guidance=out["guidance"], controlnet_block_samples=[out["double"], other],
                         controlnet_single_block_samples=[out["single"], other], controlnet_blocks_repeat=repeat).sample
        out["round" if repeat else "neighbours"] = FluxPipeline._unpack_latents(velocity, h, w, 1)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "residuals.safetensors")


def generate(folder, models=MODELS):
    """Writes everything under `folder`."""
    cases, latents = [], {}
    for name, spec in models.items():
        pipe = make(folder / name, spec)
        if name == "dev":
            transformer_goldens(pipe, folder)
            goldens_image_prompts.flux(folder / name / "transformer", folder / "image_prompts.safetensors")
        rows, finished = write_pictures(folder, name, [picture(pipe, what) for what in spec["cases"]])
        cases += rows
        latents |= finished
    finish(folder, cases, latents)


def random_spec(seed):
    """A configuration that nobody chose."""
    r = random.Random(seed)
    kind = r.choice(["draw", "draw", "draw", "fill", "edit"])
    axes = [2 * r.randint(1, 5) for _ in range(3)]
    levels = r.choice([5, 6]) if kind == "edit" else r.choice([1, 2, 3, 4])
    factor, channels = 2 ** (levels - 1), r.choice([4, 16])
    side = lambda: 2 * factor * r.randint(1, 10 if levels < 4 else 5)
    words = "cat tree café 山 blue, ,, 4k 😀 it's </s> <extra_id_1> <pad> painting \n <unk>".split(" ")
    text = lambda: " ".join(r.choice(words) for _ in range(r.choice([0, 1, 5, 30, 100, 700])))
    schedulers = [
        dict(shift=r.uniform(0.5, 6.0)), DEV | dict(base_shift=r.uniform(0, 1), max_shift=r.uniform(1, 2)),
        dict(use_dynamic_shifting=True, time_shift_type="linear", max_image_seq_len=999, base_image_seq_len=64),
        dict(shift=2.0, use_karras_sigmas=True), dict(shift=2.0, use_exponential_sigmas=True),
        dict(use_dynamic_shifting=True, shift_terminal=0.1), dict(shift=1.5, shift_terminal=0.05),
        dict(_class="UniPCMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        dict(_class="DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0),
    ]
    # The reference noises a given picture with its own scheduler only.
    scheduler = r.choice(schedulers[:7] if kind == "fill" else schedulers)
    own = "_class" not in scheduler
    cases = []
    for _ in range(3):
        size = (side(), side())
        strength = {"draw": r.choice([None, r.uniform(0.3, 1)]) if own else None, "fill": r.choice([1.0, r.uniform(0.3, 1)]),
                    "edit": None}[kind]
        reference = [(r.randint(70, 300), r.randint(70, 300))] if kind == "edit" and r.random() < 0.7 else []
        cases.append(case(text(), size, steps=r.randint(4, 9), guidance=r.choice([0.0, 1.0, 3.5, 30.0]),
                          seed=r.randint(0, 2**40), strength=strength, references=reference,
                          mask=kind == "fill" or strength is not None and r.random() < 0.5,
                          **({} if kind == "fill" else dict(true_guidance=r.choice([1.0, 1.0, 2.5]), negative=text()))))
    inputs = 4 * (2 * channels + factor * factor) if kind == "fill" else 4 * channels
    groups = r.choice([1, 2, 4])
    return dict(
        seed=seed, kind=kind, cases=cases, pieces=r.choice([100, 150, 200]), old_tokenizer=r.random() < 0.5,
        scheduler=scheduler,
        transformer=dict(num_layers=r.randint(0, 3), num_single_layers=r.randint(0, 3), attention_head_dim=sum(axes),
                         num_attention_heads=r.choice([1, 2, 3, 5]), axes_dims_rope=tuple(axes), in_channels=inputs,
                         out_channels=4 * channels if kind == "fill" else r.choice([None, 4 * channels]),
                         guidance_embeds=r.random() < 0.6),
        clip=dict(hidden_size=r.choice([8, 24]), num_hidden_layers=r.randint(1, 3), hidden_act=r.choice(["gelu", "quick_gelu"]),
                  eos_token_id=r.choice([2, None])),
        t5=dict(d_model=r.choice([16, 40]), d_kv=r.choice([4, 10]), d_ff=r.choice([16, 64]), num_layers=r.randint(1, 3),
                num_heads=r.choice([1, 4]), feed_forward_proj=r.choice(["gated-gelu", "relu", "gated-silu"])),
        vae=dict(block_out_channels=tuple(4 * r.randint(1, 3) for _ in range(levels)), latent_channels=channels,
                 layers_per_block=r.randint(1, 2), norm_num_groups=groups, scaling_factor=r.uniform(0.2, 1.5),
                 shift_factor=r.uniform(-0.3, 0.3), use_quant_conv=r.random() < 0.2, use_post_quant_conv=r.random() < 0.2,
                 mid_block_add_attention=kind != "edit" and r.random() < 0.7))


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
