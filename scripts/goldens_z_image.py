"""Makes the golden files of models/tests/data/z_image: tiny random Z-Image pipelines and the pictures that the reference
(Hugging Face diffusers, f32, CPU) makes with them. scripts/goldens.py calls it; alone it writes into a folder:

    python scripts/goldens_z_image.py FOLDER [--random N]      # N random configurations instead, for trying things out
"""
import random
import shutil

import torch
from diffusers import (AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImageInpaintPipeline,
                       ZImagePipeline, ZImageTransformer2DModel)

import goldens_image_prompts
from goldens_family import finish, mask_image, run, save, strong, write_pictures
from goldens_pictures import start_image
from goldens_qwen import case, scheduler, text_encoder, write_tokenizer, write_tokens

LONG = "a painting in the style of Vincent van Gogh, swirling stars, night sky, village, " * 24
WORLD = "café 山の上の城 😀 it's 4k! <|im_end|> <think>\n\nGreen  trees\t"

TURBO = dict(shift=3.0, use_dynamic_shifting=False)
MODELS = {
    "turbo": dict(
        seed=201, transformer=dict(dim=48, n_heads=2, n_kv_heads=2, axes_dims=[8, 8, 8], n_layers=2, n_refiner_layers=2),
        scheduler=TURBO, vae=dict(block_out_channels=(8, 8, 16, 16)), text={}, tokenizer={},
        cases=[
            case(), case(WORLD, (96, 160), seed=1, steps=8), case(LONG, seed=2), case("", seed=3, steps=1),
            case("tree", (160, 64), guidance=4.0, seed=4, negative="blurry, text, watermark " * 8),
            case(guidance=1.0, seed=5), case(guidance=0.5, seed=6, negative=WORLD),
            case(seed=7, strength=0.6, steps=7), case(WORLD, (96, 64), seed=8, strength=1.0, guidance=3.0),
            case(seed=9, strength=0.3, steps=10), case(seed=10, strength=0.75, mask=True, steps=6),
            case(WORLD, (96, 64), seed=11, strength=1.0, mask=True, guidance=2.5),
            case(seed=13, sampler="flow_euler", schedule="karras", steps=5),
        ]),
    "base": dict(
        seed=202, transformer=dict(dim=48, n_heads=4, n_kv_heads=4, axes_dims=[2, 6, 4], n_layers=1, n_refiner_layers=1,
                                   qk_norm=False, t_scale=500.0, rope_theta=100.0, norm_eps=1e-4,
                                   axes_lens=[600, 40, 48]),
        scheduler=dict(shift=1.0, use_dynamic_shifting=True, base_shift=0.4, max_shift=1.3),
        vae=dict(block_out_channels=(8, 12), shift_factor=0.3, scaling_factor=0.7, norm_num_groups=4, latent_channels=4),
        text=dict(num_hidden_layers=2, num_key_value_heads=4, attention_bias=True, hidden_size=24, head_dim=8),
        tokenizer=dict(old=True, template_file=True, padding_side="left"),
        cases=[
            case(size=(48, 32), guidance=5.0), case(LONG, (20, 28), guidance=2.0, seed=21, negative=WORLD, steps=3),
            case(WORLD, (36, 24), seed=22, strength=0.5, guidance=1.5, steps=5),
        ]),
}


def make(folder, spec):
    """Writes the pipeline's folder and loads it as the reference does."""
    if folder.exists():
        shutil.rmtree(folder)
    tok = write_tokenizer(folder / "tokenizer", **spec["tokenizer"])
    encoder = text_encoder(tok, spec["seed"], **spec["text"])
    levels = len(spec["vae"]["block_out_channels"])
    vae = AutoencoderKL(**dict(down_block_types=("DownEncoderBlock2D",) * levels, norm_num_groups=4, latent_channels=16,
                               up_block_types=("UpDecoderBlock2D",) * levels, layers_per_block=1, sample_size=64,
                               scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
                               use_post_quant_conv=False, force_upcast=True) | spec["vae"])
    strong(vae, spec["seed"] + 1)
    transformer = ZImageTransformer2DModel(**dict(cap_feat_dim=encoder.config.hidden_size, axes_lens=[1024, 64, 64],
                                                  in_channels=vae.config.latent_channels) | spec["transformer"])
    strong(transformer, spec["seed"] + 2, gain=1.2)
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **spec["scheduler"])
    pipe = ZImagePipeline(flow, vae, encoder, tok, transformer)
    save(pipe, folder, ["tokenizer"])
    return ZImagePipeline.from_pretrained(folder, torch_dtype=torch.float32)


@torch.no_grad()
def picture(pipe, what):
    size = what["width"], what["height"]
    call = dict(prompt=what["prompt"], negative_prompt=what["negative"], height=size[1], width=size[0],
                num_inference_steps=what["steps"], guidance_scale=what["guidance"])
    kind = ZImagePipeline
    if what["strength"] is not None:
        call |= dict(image=start_image(*size), strength=what["strength"])
        kind = ZImageImg2ImgPipeline
    if what["mask"]:
        call |= dict(mask_image=mask_image(size))
        kind = ZImageInpaintPipeline
    task = kind(scheduler(pipe, what), pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.transformer)
    task.set_progress_bar_config(disable=True)
    seeded = lambda: torch.Generator().manual_seed(what["seed"])
    latents = task(**call, generator=seeded(), output_type="latent").images
    return what, task(**call, generator=seeded()).images[0], latents[0]


@torch.no_grad()
def transformer_goldens(model, file):
    """What a ControlNet adds behind the layers: for the picture's tokens and the text's, both filled up to 32."""
    rng = torch.Generator().manual_seed(5)
    randn = lambda *shape: goldens_image_prompts.randn(rng, *shape)
    config, out = model.config, dict(latents=randn(2, model.config.in_channels, 6, 10), times=torch.tensor([0.125, 0.75]))
    states = [randn(tokens, config.cap_feat_dim) for tokens in (5, 9)]
    out |= {f"states.{row}": state[None] for row, state in enumerate(states)}
    out |= {f"residual.{layer}": randn(2, 64, config.dim) for layer in range(config.n_layers)}
    for name, layers in dict(none=[], first=[0], last=[1], both=[0, 1]).items():
        residuals = {layer: out[f"residual.{layer}"] for layer in layers} or None
        flow = model(list(out["latents"][:, :, None]), out["times"], states, controlnet_block_samples=residuals).sample
        out[name] = torch.stack(flow)[:, :, 0]
    goldens_image_prompts.save(out, file)


def generate(folder, models=MODELS):
    """Writes everything under `folder`."""
    cases, latents, tokenizers = [], {}, {}
    for name, spec in models.items():
        pipe = make(folder / name, spec)
        if name == "turbo":
            transformer_goldens(pipe.transformer, folder / "residuals.safetensors")
        rows, finished = write_pictures(folder, name, [picture(pipe, what) for what in spec["cases"]])
        cases += rows
        latents |= finished
        tokenizers[name] = pipe.tokenizer
    finish(folder, cases, latents)
    write_tokens(folder, tokenizers)


def random_spec(seed):
    """A configuration that nobody chose."""
    r = random.Random(seed)
    heads = r.choice([1, 2, 3, 4])
    axes = [2 * r.randint(1, 6) for _ in range(3)]
    levels = r.choice([1, 2, 3, 4])
    text_heads = r.choice([1, 2, 4, 6])
    groups = r.choice([g for g in (1, 2, 3, 6) if text_heads % g == 0])
    factor = 2 ** levels
    side = lambda: factor * r.randint(1, 12 if levels < 4 else 8)
    words = "cat tree café 山 blue, ,, 4k 😀 it's <|im_end|> painting \n <think>".split(" ")
    text = lambda: " ".join(r.choice(words) for _ in range(r.choice([0, 1, 5, 30, 100, 700])))
    shifts = [dict(shift=r.uniform(0.5, 6.0)), dict(shift=1.0, use_dynamic_shifting=True, base_shift=r.uniform(0, 1),
                                                     max_shift=r.uniform(1, 2), max_image_seq_len=r.choice([4096, 999])),
              dict(use_dynamic_shifting=True, time_shift_type="linear"),
              dict(shift=2.0, use_karras_sigmas=True), dict(shift=3.0, shift_terminal=0.1)]
    cases = []
    for i in range(4):
        size = (side(), side())
        strength = r.choice([None, None, r.uniform(0.3, 1)])
        cases.append(case(text(), size, steps=r.randint(4, 9), guidance=r.choice([0.0, 0.7, 1.0, 3.5]), seed=r.randint(0, 2**40),
                          negative=r.choice([None, text()]), strength=strength,
                          **r.choice([{}, {}, dict(sampler="flow_euler", schedule=r.choice([None, "karras", "exponential"]))]),
                          mask=strength is not None and r.random() < 0.5))
    return dict(
        seed=seed, cases=cases,
        transformer=dict(dim=heads * sum(axes), n_heads=heads, n_kv_heads=heads, axes_dims=axes, n_layers=r.randint(0, 3),
                         n_refiner_layers=r.randint(0, 2), qk_norm=r.random() < 0.7, t_scale=r.choice([1000.0, 1.0, 333.0]),
                         rope_theta=r.choice([256.0, 10000.0, 10.0]), norm_eps=r.choice([1e-5, 1e-6, 1e-2]),
                         **r.choice([{}, dict(all_patch_size=(2, 4), all_f_patch_size=(1, 1))]), axes_lens=[r.choice([600, 1024]), 64, 64]),
        scheduler=r.choice(shifts),
        vae=dict(block_out_channels=tuple(r.choice([4, 8, 12]) for _ in range(levels)), latent_channels=r.choice([4, 16]),
                 layers_per_block=r.randint(1, 2), norm_num_groups=r.choice([2, 4]), scaling_factor=r.uniform(0.2, 1.5),
                 shift_factor=r.uniform(-0.3, 0.3), use_quant_conv=r.random() < 0.3, use_post_quant_conv=r.random() < 0.3,
                 mid_block_add_attention=r.random() < 0.7),
        text=dict(hidden_size=r.choice([8, 24, 40]), head_dim=r.choice([4, 8, 16]), num_attention_heads=text_heads,
                  num_key_value_heads=groups, num_hidden_layers=r.randint(1, 4), attention_bias=r.random() < 0.3,
                  rope_theta=r.choice([10000.0, 1e6]), rms_norm_eps=r.choice([1e-6, 1e-3])),
        tokenizer=dict(merges=r.choice([0, 50, 150]), old=r.random() < 0.5, template_file=r.random() < 0.5,
                       padding_side=r.choice([None, "left", "right"])))


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
