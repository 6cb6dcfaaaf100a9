"""Makes the golden files of models/tests/data/sdxl: tiny random pipelines of the families with a UNet (SDXL, its refiner,
UNets for inpainting, consistency models) and the pictures that the reference (Hugging Face diffusers, f32, CPU) makes with
them. scripts/goldens.py calls it; alone it writes into a folder:

    python scripts/goldens_sdxl.py FOLDER [--random N] [--first I]   # N random configurations instead, for trying things out
"""
import inspect
import json
import random
import shutil

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from goldens_family import run
from goldens_models import EOS, SD_BETAS, Tiny, coarse, draw_weights, level_vae, make_tokenizer, write_json
from goldens_pictures import LONG, WORLD, start_image
from goldens_samplers import SAMPLERS, SCHEDULES

CAT, WIZARD = "a photo of a cat", "portrait of an old wizard, oil painting"

# The pipelines of each kind, by task; the first one is what the model is published as.
SD = dict(draw="StableDiffusionPipeline", image="StableDiffusionImg2ImgPipeline", mask="StableDiffusionInpaintPipeline")
XL = {task: name.replace("Diffusion", "DiffusionXL") for task, name in SD.items()}
KINDS = {
    "sd": SD, "xl": XL,
    "sd_inpaint": dict(mask=SD["mask"]), "xl_inpaint": dict(mask=XL["mask"]),
    "refiner": dict(image=XL["image"], mask=XL["mask"]),
    "lcm": dict(draw="LatentConsistencyModelPipeline", image="LatentConsistencyModelImg2ImgPipeline", mask=SD["mask"]),
}


def case(prompt=CAT, size=(64, 64), *, steps=5, guidance=5.0, seed=0, negative=None, strength=None, mask=False, sampler=None,
         schedule=None, eta=None, skip=0, rescale=0.0, until=None, base=None):
    """One picture; `strength` starts from the start image, `mask` paints a part of it. With `until`, the model `base` draws
    it up to that share first."""
    return dict(prompt=prompt, negative=negative, width=size[0], height=size[1], steps=steps, guidance=guidance, seed=seed,
                strength=strength, mask=mask, references=[], sampler=sampler, schedule=schedule, eta=eta, clip_skip=skip,
                guidance_rescale=rescale, until=until, base=base)


EULER = dict(_class_name="EulerDiscreteScheduler", **SD_BETAS, interpolation_type="linear", prediction_type="epsilon",
             sample_max_value=1.0, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, timestep_spacing="leading",
             trained_betas=None, use_karras_sigmas=False)
PNDM = dict(_class_name="PNDMScheduler", **SD_BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1,
            trained_betas=None, clip_sample=False)
LCM = dict(_class_name="LCMScheduler", **SD_BETAS, original_inference_steps=50, timestep_scaling=10.0, clip_sample=False)
TWO = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
           down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
NARROW = dict(TWO, block_out_channels=(4, 8), norm_num_groups=2)
ONE = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, hidden_act="quick_gelu")
BIG = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, hidden_act="gelu",
           projection_dim=10)
VAE = dict(block_out_channels=(4, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.13025)
MODELS = {
    "base": dict(
        kind="xl", seed=401, texts=[ONE, BIG], scheduler=EULER, vae=VAE,
        unet=dict(TWO, transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
                  addition_time_embed_dim=8, sample_size=8),
        cases=[
            case(), case(WORLD, (72, 88), seed=1, negative="blurry, text"), case(seed=2, negative="", guidance=9.0),
            case(LONG, seed=3, guidance=1.0, sampler="ddim"), case(seed=4, skip=1, sampler="dpmpp_2m", schedule="karras"),
            case("", seed=5, skip=2, sampler="euler_a", negative=LONG), case(seed=6, rescale=0.7, guidance=12.0),
            case(WIZARD, (88, 72), seed=7, steps=3, sampler="heun"), case(seed=8, guidance=0.0, steps=2, schedule="sgm_uniform", sampler="euler"),
            case(seed=9, strength=0.6), case(WORLD, (72, 88), seed=10, strength=0.35, steps=9, sampler="euler_a"),
            case(seed=11, strength=1.0, sampler="dpm2", steps=3, negative="blurry"),
            case(seed=12, strength=0.9999, mask=True), case(WORLD, (72, 88), seed=13, strength=0.6, mask=True, sampler="euler_a"),
            case(seed=14, strength=1.0, mask=True, sampler="dpmpp_2m", rescale=0.5, skip=1),
            case(seed=15, strength=0.7, mask=True, sampler="heun", steps=4, guidance=1.0),
        ]),
    "refiner": dict(
        kind="refiner", seed=402, texts=[BIG], scheduler=EULER, vae=VAE, zeros=False, aesthetics=True,
        unet=dict(TWO, transformer_layers_per_block=2, attention_head_dim=2, use_linear_projection=True,
                  addition_time_embed_dim=6, sample_size=8),
        cases=[
            case(strength=0.3, steps=10), case(WORLD, (72, 88), seed=21, strength=0.6, negative="blurry"),
            case(seed=22, strength=0.6, mask=True, sampler="euler_a"), case(seed=23, strength=0.5, skip=1, guidance=1.0),
            case(seed=24, until=0.8, base="base", steps=10), case(WIZARD, (72, 88), seed=25, until=0.5, base="base", sampler="ddim"),
            case(seed=26, until=0.6, base="base", sampler="heun", steps=6, negative="text"),
            case(seed=27, until=0.55, base="base", sampler="dpm2", steps=6), case(seed=28, until=0.7, base="base", sampler="euler_a"),
            case(seed=29, until=0.7, base="base", sampler="dpmpp_2m", schedule="karras", steps=8),
        ]),
    "inpainter": dict(
        kind="xl_inpaint", seed=403, texts=[ONE, BIG], scheduler=dict(EULER, timestep_spacing="trailing"), vae=VAE,
        unet=dict(NARROW, transformer_layers_per_block=1, attention_head_dim=2, use_linear_projection=True, in_channels=9,
                  addition_time_embed_dim=4, sample_size=8),
        cases=[
            case(strength=0.9999, mask=True), case(WORLD, (72, 88), seed=31, strength=1.0, mask=True, negative="text"),
            case(seed=32, strength=0.5, mask=True, sampler="euler_a"), case(seed=33, strength=0.7, mask=True, sampler="dpmpp_2m"),
        ]),
    "turbo": dict(
        kind="xl", seed=404, texts=[ONE, BIG], zeros=False,
        scheduler=dict(_class_name="EulerAncestralDiscreteScheduler", **SD_BETAS, prediction_type="v_prediction",
                       timestep_spacing="trailing", steps_offset=1),
        vae=dict(VAE, block_out_channels=(4, 8, 8), latents_mean=[0.2, -0.3, 0.1, 0.4], latents_std=[1.2, 0.8, 1.1, 0.9],
                 scaling_factor=0.5),
        unet=dict(NARROW, transformer_layers_per_block=1, attention_head_dim=4, use_linear_projection=True,
                  addition_time_embed_dim=8, sample_size=16, time_cond_proj_dim=6),
        cases=[
            case(guidance=0.0, steps=1), case(WORLD, (56, 72), seed=41, guidance=8.0, steps=4, sampler="lcm"),
            case(seed=42, guidance=3.0, strength=0.5, steps=4), case(seed=43, guidance=1.5, steps=4, sampler="ddim"),
        ]),
    "sd_inpainter": dict(
        kind="sd_inpaint", seed=405, texts=[ONE], scheduler=PNDM, vae=dict(VAE, scaling_factor=0.18215),
        unet=dict(NARROW, attention_head_dim=2, in_channels=9, sample_size=8),
        cases=[
            case(strength=1.0, mask=True, guidance=7.5), case(WORLD, (72, 88), seed=51, strength=0.6, mask=True, negative="text"),
            case(seed=52, strength=0.75, mask=True, sampler="euler_a"), case(seed=53, strength=1.0, mask=True, sampler="unipc", skip=1),
        ]),
    "sd": dict(
        kind="sd", seed=406, texts=[ONE], scheduler=dict(PNDM, skip_prk_steps=True, prediction_type="v_prediction"),
        vae=dict(VAE, block_out_channels=(4, 8, 8)), unet=dict(NARROW, attention_head_dim=2, sample_size=16),
        cases=[
            case(strength=1.0, mask=True), case(WORLD, (56, 72), seed=61, strength=0.6, mask=True),
            *(case(seed=62 + i, strength=strength, mask=True, sampler=sampler, steps=4, guidance=2.0) for i, (sampler, strength) in enumerate([
                ("euler", 1.0), ("euler_a", 0.75), ("heun", 0.75), ("dpm2_a", 1.0), ("dpmpp_2s", 0.8), ("unipc", 0.75), ("lcm", 1.0)])),
        ]),
    "lcm": dict(
        kind="lcm", seed=407, texts=[ONE], scheduler=LCM, vae=dict(VAE, block_out_channels=(4, 8, 8)),
        unet=dict(NARROW, attention_head_dim=2, sample_size=16, time_cond_proj_dim=8),
        cases=[
            case(steps=4, guidance=8.5), case(WORLD, (56, 72), seed=81, steps=1, guidance=1.0), case(seed=82, steps=3, guidance=0.0, skip=1),
            case(seed=83, steps=4, strength=0.6, guidance=8.5), case(WIZARD, (56, 72), seed=84, steps=3, strength=0.3, guidance=4.0),
            case(seed=85, steps=4, strength=0.75, mask=True, guidance=8.5),
        ]),
}


@torch.no_grad()
def level_unet(unet, width, pooled, rng):
    """Scales the output to about unit variance, as predicted noise has it."""
    c = unet.config
    x, states = torch.randn(2, c.in_channels, 8, 8, generator=rng), torch.randn(2, 7, width, generator=rng)
    added = None
    if c.addition_embed_type:
        ids = (c.projection_class_embeddings_input_dim - pooled) // c.addition_time_embed_dim
        added = dict(text_embeds=torch.randn(2, pooled, generator=rng), time_ids=torch.full((2, ids), 64.0))
    unet.conv_out.weight *= coarse(0.9 / unet(x, torch.tensor([100, 800]), states, added_cond_kwargs=added).sample.std())


def half(module):
    """Weights that f16 holds exactly."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.half().float())
    return module


def make(folder, spec):
    """Writes the pipeline's folder, with weights as f16."""
    rng = torch.Generator().manual_seed(spec["seed"])
    texts, xl, refiner = spec["texts"], spec["kind"] in ("xl", "xl_inpaint", "refiner"), spec["kind"] == "refiner"
    parts, tokenizers = {}, {}
    for i, text in enumerate(texts):
        number = "_2" if refiner or i == 1 else ""
        tiny = Tiny(0, "", {}, {}, {}, {}, pad="!" if number else EOS, old_tokenizer=not number)
        size, vocab = make_tokenizer(tiny, folder / f"tokenizer{number}")
        config = CLIPTextConfig(vocab_size=size, max_position_embeddings=77, bos_token_id=0, pad_token_id=1,
                                eos_token_id=2 if spec["seed"] % 2 else vocab[EOS], **text)
        encoder = (CLIPTextModelWithProjection if number else CLIPTextModel)(config).eval()
        draw_weights(encoder, rng)
        parts[f"text_encoder{number}"] = half(encoder)
        tokenizers[f"tokenizer{number}"] = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
    width = sum(text["hidden_size"] for text in texts)
    pooled = texts[-1].get("projection_dim", 0)
    options = dict(spec["unet"], cross_attention_dim=width)
    if xl:
        ids = 5 if spec.get("aesthetics") else 6
        options |= dict(addition_embed_type="text_time",
                        projection_class_embeddings_input_dim=pooled + ids * options["addition_time_embed_dim"])
    unet = UNet2DConditionModel(**options).eval()
    levels = len(spec["vae"]["block_out_channels"])
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
                        latent_channels=4, sample_size=64, **spec["vae"]).eval()
    draw_weights(unet, rng, 2.0)
    draw_weights(vae, rng)
    level_unet(unet, width, pooled, rng)
    level_vae(vae, rng)
    name = next(iter(KINDS[spec["kind"]].values()))
    scheduler = getattr(diffusers, spec["scheduler"]["_class_name"]).from_config(spec["scheduler"])
    parts |= tokenizers | dict(unet=half(unet), vae=half(vae), scheduler=scheduler)
    if xl:
        flags = dict(force_zeros_for_empty_prompt=spec.get("zeros", True))
        if refiner:
            flags |= dict(requires_aesthetics_score=spec.get("aesthetics", False), text_encoder=None, tokenizer=None)
        pipe = getattr(diffusers, name)(**parts, **flags, add_watermarker=False)
    else:
        pipe = getattr(diffusers, name)(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    saved = folder / "saved"
    pipe.to(torch.float16).save_pretrained(saved)
    for part in tokenizers:
        shutil.rmtree(saved / part)
    for part in saved.iterdir():
        part.rename(folder / part.name)
    saved.rmdir()
    for file in folder.glob("*/config.json"):
        write_json(file, {k: v for k, v in json.loads(file.read_text()).items() if k != "_name_or_path"})
    write_json(folder / "scheduler" / "scheduler_config.json", spec["scheduler"])
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {k: v for k, v in index.items() if k != "_name_or_path"})


def load(folder, spec):
    """The pipeline as the reference opens the folder, computing in f32."""
    name = next(iter(KINDS[spec["kind"]].values()))
    options = dict(add_watermarker=False) if "XL" in name else dict(safety_checker=None, feature_extractor=None)
    pipe = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32, **options)
    for encoder in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if encoder is not None and not hasattr(encoder, "text_model"):
            # The pipelines' clip_skip still asks for the attribute that transformers 5 has flattened away.
            object.__setattr__(encoder, "text_model", encoder)
    return pipe


def mask_image(width, height):
    """A disc and a corner in white, with soft edges on both sides of the threshold."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    disc = 300 - 255 * np.hypot(x - width * 0.55, y - height * 0.4) / (min(width, height) * 0.3)
    corner = 255.0 * ((x < width * 0.3) & (y > height * 0.8))
    return Image.fromarray(np.maximum(disc, corner).clip(0, 255).astype(np.uint8), "L")


def task_pipe(pipe, spec, c):
    """The pipeline of the case's task, with the case's sampler."""
    task = "mask" if c["mask"] else "image" if c["strength"] is not None or c.get("latents") is not None else "draw"
    cls = getattr(diffusers, KINDS[spec["kind"]][task])
    own = pipe.scheduler
    if type(pipe) is not cls:
        taken = inspect.signature(cls.__init__).parameters
        options = {k: pipe.config[k] for k in ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
                   if k in pipe.config and k in taken}
        options |= dict(add_watermarker=False) if "XL" in cls.__name__ else dict(requires_safety_checker=False)
        pipe = cls(**{k: v for k, v in pipe.components.items() if k in taken}, **options)
    if c["sampler"]:
        name, forced, _ = SAMPLERS[c["sampler"]]
        options = {**forced, **SCHEDULES.get(c["schedule"], {})}
        if name == "DPMSolverSDEScheduler":
            options["noise_sampler_seed"] = c["seed"]
        pipe.scheduler = getattr(diffusers, name).from_config(own.config, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(pipe, spec, c, **more):
    """The picture of one case, and the finished latents."""
    own = pipe.scheduler
    finished = []
    task = task_pipe(pipe, spec, c)

    def keep(_pipe, _step, _time, tensors):
        finished.append(tensors["latents"].clone())
        return tensors

    size = (c["width"], c["height"])
    args = dict(prompt=c["prompt"], num_inference_steps=c["steps"], guidance_scale=c["guidance"],
                generator=torch.Generator("cpu").manual_seed(c["seed"]), clip_skip=c["clip_skip"] or None,
                callback_on_step_end=keep, eta=c["eta"] or 0.0, negative_prompt=c["negative"],
                guidance_rescale=c["guidance_rescale"], **more)
    if c["strength"] is not None:
        args |= dict(image=start_image(*size), strength=c["strength"])
    if c["mask"]:
        args |= dict(mask_image=mask_image(*size))
    if c["mask"] or c["strength"] is None:
        args |= dict(width=size[0], height=size[1])
    taken = inspect.signature(task.__call__).parameters
    output = task(**{k: v for k, v in args.items() if k in taken})
    pipe.scheduler = own
    return output.images, finished[-1]


def picture(pipes, specs, model, c):
    """A case's picture and latents; two models draw it where the case says so."""
    if c["until"] is None:
        (image,), latents = render(pipes[model], specs[model], c)
        return image, latents
    first = dict(c, mask=False, strength=None)
    latents, _ = render(pipes[c["base"]], specs[c["base"]], first, denoising_end=c["until"], output_type="latent")
    latents = latents if torch.is_tensor(latents) else torch.stack(list(latents))
    (image,), latents = render(pipes[model], specs[model], dict(first, latents=True), image=latents, denoising_start=c["until"])
    return image, latents


def generate(data, specs=MODELS):
    """Writes everything under `data`."""
    torch.set_num_threads(1)
    if data.exists():
        shutil.rmtree(data)
    (data / "pictures").mkdir(parents=True)
    rows, kept, pipes = [], {}, {}
    for model, spec in specs.items():
        make(data / model, spec)
        pipes[model] = load(data / model, spec)
        for number, c in enumerate(spec["cases"]):
            file = f"{model}-{number:02}.png"
            image, latents = picture(pipes, specs, model, c)
            size = f"{c['width']}x{c['height']}"
            start_image(c["width"], c["height"]).save(data / "pictures" / f"start-{size}.png", optimize=True)
            mask_image(c["width"], c["height"]).save(data / "pictures" / f"mask-{size}.png", optimize=True)
            image.save(data / "pictures" / file, optimize=True)
            kept[file] = latents[0].contiguous()
            deviation = np.asarray(image).std()
            print(f"  {file}: deviation {deviation:.0f}, latents {latents.std():.2f}", flush=True)
            if deviation < 15:
                raise SystemExit(f"{file} is no good picture to compare: {c}")
            rows.append(dict(file=file, model=model, **c))
    save_file(kept, data / "latents.safetensors")
    (data / "cases.json").write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def random_spec(number):
    """A random configuration with random cases."""
    rng = random.Random(number)
    kind = rng.choice(list(KINDS))
    xl = kind in ("xl", "xl_inpaint", "refiner")
    levels = rng.choice([2, 2, 3])
    groups = rng.choice([2, 4])
    widths = [groups * rng.choice([2, 3, 4]) for _ in range(levels)]
    heads = [rng.choice([h for h in (1, 2, 3, 4) if w % h == 0]) for w in widths]
    attention = [rng.random() < 0.6 for _ in range(levels)]
    attention[rng.randrange(levels)] = True
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention))
    unet = dict(block_out_channels=widths, attention_head_dim=heads if rng.random() < 0.7 else 1, norm_num_groups=groups,
                down_block_types=down, up_block_types=up, layers_per_block=rng.choice([1, 2]), sample_size=8,
                transformer_layers_per_block=[rng.choice([1, 2, 3]) for _ in range(levels)], center_input_sample=rng.random() < 0.1,
                use_linear_projection=rng.random() < 0.6, in_channels=9 if "inpaint" in kind else 4,
                flip_sin_to_cos=rng.random() < 0.8, freq_shift=rng.choice([0, 0, 1]))
    if xl:
        unet["addition_time_embed_dim"] = rng.choice([4, 8, 10])
    if kind == "lcm" or rng.random() < 0.1:
        unet["time_cond_proj_dim"] = rng.choice([4, 8, 9, 16])

    def text(projected):
        hidden = rng.choice([8, 12, 16])
        return dict(hidden_size=hidden, intermediate_size=rng.choice([16, 24]), num_hidden_layers=rng.choice([3, 4]),
                    num_attention_heads=rng.choice([1, 2, 4]), hidden_act=rng.choice(["gelu", "quick_gelu"]),
                    projection_dim=rng.choice([8, 10, 14]) if projected else hidden)

    texts = [text(False), text(True)] if kind in ("xl", "xl_inpaint") else [text(True)] if kind == "refiner" else [text(False)]
    vae_levels = rng.choice([2, 3, 4])
    vae = dict(block_out_channels=[rng.choice([4, 8]) for _ in range(vae_levels)], layers_per_block=1, norm_num_groups=4,
               scaling_factor=rng.choice([0.13025, 0.18215, 1.0]))
    if xl and kind != "xl_inpaint" and rng.random() < 0.2:
        vae |= dict(latents_mean=[rng.uniform(-1, 1) for _ in range(4)], latents_std=[rng.uniform(0.5, 2) for _ in range(4)])
    prediction = rng.choice(["epsilon", "epsilon", "v_prediction"])
    if kind == "lcm":
        scheduler = dict(LCM, prediction_type=prediction, original_inference_steps=rng.choice([50, 100, 40]))
    else:
        name = rng.choice(["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
                           "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler",
                           "DDPMScheduler", "DEISMultistepScheduler", "LMSDiscreteScheduler"])
        scheduler = dict(_class_name=name, **SD_BETAS, prediction_type=prediction,
                         timestep_spacing=rng.choice(["leading", "trailing", "linspace"]))
        if rng.random() < 0.6:
            scheduler["steps_offset"] = rng.choice([0, 1])
        if rng.random() < 0.7 or name in ("DDIMScheduler", "DDPMScheduler"):
            scheduler["clip_sample"] = False
        if rng.random() < 0.5 or name == "PNDMScheduler":
            scheduler["skip_prk_steps"] = True
        if rng.random() < 0.5:
            scheduler["set_alpha_to_one"] = rng.random() < 0.5
    spec = dict(kind=kind, seed=1000 + number, texts=texts, scheduler=scheduler, vae=vae, unet=unet,
                zeros=rng.random() < 0.5, aesthetics=kind == "refiner", cases=[])
    # The reference's inpainting forgets the statistics where it encodes; easel does not.
    tasks = [task for task in KINDS[kind] if task != "mask" or "latents_mean" not in vae]
    for _ in range(4):
        task = rng.choice(tasks)
        sampler = rng.choice([None, None, *(s for s in SAMPLERS if s not in ("tcd", "dpm_2m"))])
        if kind == "lcm" and task != "mask":
            sampler = None  # The pipelines hand their own arguments to the scheduler.
        schedule = rng.choice([None, *SAMPLERS[sampler][2]]) if sampler else None
        strength = None if task == "draw" else rng.choice([1.0, 0.9999, round(rng.uniform(0.35, 0.95), 2)])
        spec["cases"].append(case(
            rng.choice([CAT, WIZARD, WORLD, LONG, ""]), (8 * rng.randint(6, 11), 8 * rng.randint(6, 11)),
            steps=rng.randint(3, 7), guidance=rng.choice([0.0, 1.0, 2.0, 5.0]), seed=rng.randrange(2**40),
            negative=rng.choice([None, "", "blurry, text"]), strength=strength, mask=task == "mask", sampler=sampler,
            schedule=schedule, skip=rng.choice([0, 0, 1]), rescale=rng.choice([0.0, 0.0, 0.6]) if xl else 0.0))
    return spec


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
