"""Makes the golden files of models/tests/data/flux2: tiny random FLUX.2 klein pipelines and the pictures that the reference
(Hugging Face diffusers, f32, CPU) makes with them. scripts/goldens.py calls it; alone it writes into a folder:

    python scripts/goldens_klein.py FOLDER [--random N] [--first I]   # N random configurations instead, for trying things out
"""
import random
import shutil

import torch
from diffusers import (AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinInpaintPipeline, Flux2KleinPipeline,
                       Flux2Transformer2DModel)

from goldens_family import finish, mask_image, run, save, strong, write_pictures
from goldens_pictures import start_image
from goldens_qwen import case, scheduler, text_encoder, write_tokenizer, write_tokens

LONG = "a painting in the style of Vincent van Gogh, swirling stars, night sky, village, " * 24
WORLD = "café 山の上の城 😀 it's 4k! <|im_end|> <think>\n\nGreen  trees\t"

SCHEDULER = dict(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15, time_shift_type="exponential")
MODELS = {
    "distilled": dict(
        seed=301, distilled=True, transformer=dict(num_layers=1, num_single_layers=2), scheduler=SCHEDULER,
        vae={}, text=dict(num_hidden_layers=28, hidden_size=16, intermediate_size=40), tokenizer={},
        cases=[
            case(), case(WORLD, (96, 160), seed=1, guidance=4.0), case(LONG, seed=2, steps=1),
            case("tree", (64, 96), seed=3, references=[(64, 64)]),
            case(WORLD, seed=4, references=[(75, 83), (160, 64)], steps=3),
            case(seed=5, strength=0.8, mask=True, steps=6), case(seed=6, sampler="flow_dpmpp_2m", steps=6),
            case(seed=7, sampler="unipc", steps=5),
        ]),
    "base": dict(
        seed=302, distilled=False, scheduler=dict(shift=1.7),
        transformer=dict(num_layers=2, num_single_layers=1, attention_head_dim=24, num_attention_heads=3,
                         axes_dims_rope=(4, 8, 6, 6), rope_theta=500, mlp_ratio=2.5, eps=1e-5,
                         timestep_guidance_channels=64),
        vae=dict(block_out_channels=(8, 12), down_block_types=("DownEncoderBlock2D",) * 2,
                 up_block_types=("UpDecoderBlock2D",) * 2, decoder_block_out_channels=(4, 8), latent_channels=4,
                 use_quant_conv=False, use_post_quant_conv=False, batch_norm_eps=1e-2),
        text=dict(num_hidden_layers=27, hidden_size=16, head_dim=8, num_attention_heads=2, num_key_value_heads=1,
                  intermediate_size=24),
        tokenizer=dict(old=True, template_file=True, padding_side="left"),
        cases=[
            case(guidance=4.0), case(WORLD, guidance=1.0, seed=21, steps=3), case(LONG, seed=22, guidance=2.0, steps=7),
            case("tree", (36, 48), seed=23, guidance=3.0),
            case(seed=27, guidance=2.0, sampler="unipc", steps=5),
            case(seed=29, sampler="flow_euler", schedule="karras", steps=5),
            case(WORLD, seed=24, guidance=2.0, references=[(64, 80)]), case(seed=25, references=[(64, 80)], steps=2),
            case(WORLD, (72, 64), seed=26, guidance=3.0, strength=0.6, mask=True, steps=5, references=[(66, 70)]),
        ]),
}


def make(folder, spec):
    """Writes the pipeline's folder and loads it as the reference does."""
    if folder.exists():
        shutil.rmtree(folder)
    tok = write_tokenizer(folder / "tokenizer", **spec["tokenizer"])
    encoder = text_encoder(tok, spec["seed"], **spec["text"])
    vae = AutoencoderKLFlux2(**dict(block_out_channels=(4, 8, 8, 12), layers_per_block=1, norm_num_groups=4,
                                    latent_channels=8, sample_size=64) | spec["vae"])
    strong(vae, spec["seed"] + 1)
    transformer = Flux2Transformer2DModel(**dict(
        joint_attention_dim=3 * encoder.config.hidden_size, in_channels=4 * vae.config.latent_channels,
        attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False)
        | spec["transformer"])
    strong(transformer, spec["seed"] + 2)
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, **spec["scheduler"])
    pipe = Flux2KleinPipeline(flow, vae, encoder, tok, transformer, is_distilled=spec["distilled"])
    save(pipe, folder, ["tokenizer"])
    return Flux2KleinPipeline.from_pretrained(folder, torch_dtype=torch.float32)


@torch.no_grad()
def picture(pipe, what):
    size = what["width"], what["height"]
    references = [start_image(*r) for r in what["references"]]
    call = dict(prompt=what["prompt"], num_inference_steps=what["steps"], guidance_scale=what["guidance"])
    if what["mask"]:
        kind = Flux2KleinInpaintPipeline
        call |= dict(image=start_image(*size), mask_image=mask_image(size), strength=what["strength"])
        if references:
            call |= dict(image_reference=references[0])
    else:
        kind = Flux2KleinPipeline
        call |= dict(height=size[1], width=size[0], image=references or None)
    task = kind(scheduler(pipe, what), pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.transformer,
                is_distilled=pipe.config.is_distilled)
    task.set_progress_bar_config(disable=True)
    # The finished latents are those of the last step: the pipeline itself would undo their normalisation.
    kept = {}
    keep = lambda pipe, step, time, values: kept.update(values) or values
    image = task(**call, generator=torch.Generator().manual_seed(what["seed"]), callback_on_step_end=keep).images[0]
    factor = 2 * task.vae_scale_factor
    latents = kept["latents"][0].T.reshape(-1, size[1] // factor, size[0] // factor)
    return what, image, latents


def generate(folder, models=MODELS):
    """Writes everything under `folder`."""
    cases, latents, tokenizers = [], {}, {}
    for name, spec in models.items():
        pipe = make(folder / name, spec)
        rows, finished = write_pictures(folder, name, [picture(pipe, what) for what in spec["cases"]])
        cases += rows
        latents |= finished
        tokenizers[name] = pipe.tokenizer
    finish(folder, cases, latents)
    write_tokens(folder, tokenizers)


def random_spec(seed):
    """A configuration that nobody chose."""
    r = random.Random(seed)
    axes = tuple(2 * r.randint(1, 4) for _ in range(4))
    levels = r.choice([1, 2, 3, 4])
    text_heads = r.choice([1, 2, 4, 6])
    groups = r.choice([g for g in (1, 2, 3, 6) if text_heads % g == 0])
    factor = 2 ** levels
    side = lambda: factor * r.randint(2, 12 if levels < 4 else 8)
    words = "cat tree café 山 blue, ,, 4k 😀 it's <|im_end|> painting \n <think>".split(" ")
    text = lambda: " ".join(r.choice(words) for _ in range(r.choice([0, 1, 5, 30, 100, 700])))
    looked_at = lambda: (r.randint(64, 130), r.randint(64, 130))
    cases = []
    for i in range(4):
        mask = r.random() < 0.3
        cases.append(case(text(), (side(), side()), steps=r.randint(4, 8), guidance=r.choice([0.0, 1.0, 1.5, 4.0]),
                          seed=r.randint(0, 2**40), strength=r.uniform(0.3, 1) if mask else None, mask=mask,
                          sampler=None if mask else r.choice([None, None, None, "unipc"]),
                          references=[looked_at() for _ in range(r.choice([0, 0, 1] if mask else [0, 0, 1, 2, 3]))]))
    wide = lambda: tuple(r.choice([4, 8, 12]) for _ in range(levels))
    return dict(
        seed=seed, cases=cases, distilled=r.random() < 0.3,
        transformer=dict(num_layers=r.randint(0, 2), num_single_layers=r.randint(0, 3), attention_head_dim=sum(axes),
                         num_attention_heads=r.choice([1, 2, 3]), axes_dims_rope=axes, mlp_ratio=r.choice([3.0, 1.0, 2.7]),
                         rope_theta=r.choice([2000, 10000, 50]), eps=r.choice([1e-6, 1e-3]),
                         timestep_guidance_channels=r.choice([256, 32, 33]), guidance_embeds=r.random() < 0.3),
        scheduler=r.choice([SCHEDULER, dict(shift=r.uniform(0.5, 5)), dict(use_dynamic_shifting=True, time_shift_type="linear"),
                            dict(use_dynamic_shifting=True, use_karras_sigmas=True)]),
        vae=dict(block_out_channels=wide(), down_block_types=("DownEncoderBlock2D",) * levels,
                 up_block_types=("UpDecoderBlock2D",) * levels, layers_per_block=r.randint(1, 2),
                 decoder_block_out_channels=r.choice([None, wide()]), latent_channels=r.choice([2, 4, 8]),
                 use_quant_conv=r.random() < 0.5, use_post_quant_conv=r.random() < 0.5, batch_norm_eps=r.choice([1e-4, 0.1]),
                 mid_block_add_attention=r.random() < 0.7),
        text=dict(num_hidden_layers=r.choice([27, 28, 30]), hidden_size=r.choice([8, 16]), head_dim=r.choice([4, 8]),
                  intermediate_size=16, num_attention_heads=text_heads, num_key_value_heads=groups,
                  attention_bias=r.random() < 0.3, rope_theta=r.choice([10000.0, 1e6])),
        tokenizer=dict(merges=r.choice([0, 50, 150]), old=r.random() < 0.5, template_file=r.random() < 0.5,
                       padding_side=r.choice([None, "left", "right"])))


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
