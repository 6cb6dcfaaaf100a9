"""The whole pictures among the golden files: which there are, and how the reference makes them."""
import contextlib
import math

import diffusers
import numpy as np
import torch
from PIL import Image

SAMPLERS = {
    "ddim": diffusers.DDIMScheduler,
    "pndm": diffusers.PNDMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}
SCHEDULES = {None: {}, "karras": dict(use_karras_sigmas=True)}

CAT, WIZARD, WORLD = "a photo of a cat", "portrait of an old wizard, oil painting", "café 山の上の城 😀 it's 4k!"
LONG = "a painting in the style of Vincent van Gogh, swirling stars, night sky, village, " * 8


def case(prompt=CAT, size=(64, 64), *, steps=7, guidance=7.5, seed=0, sampler=None, schedule=None, eta=None, negative=None,
         rescale=0.0, skip=0, n=1, strength=None):
    """One call of the pipeline; `n` pictures come of it, and `strength` makes it image-to-image from the start image."""
    return dict(prompt=prompt, negative=negative, width=size[0], height=size[1], steps=steps, guidance=guidance, seed=seed,
                sampler=sampler, schedule=schedule, eta=eta, guidance_rescale=rescale, clip_skip=skip, n=n, strength=strength)


ODD = (72, 88)
EVERY_SAMPLER = [
    case(steps=10, sampler="ddim"), case(steps=7, sampler="ddim", eta=0.5, seed=3), case(steps=10, sampler="euler", seed=4),
    case(steps=7, sampler="euler_a", seed=5), case(steps=10, sampler="dpmpp_2m", seed=6),
    case(steps=7, sampler="dpmpp_2m", schedule="karras", seed=7), case(steps=7, sampler="pndm", seed=8),
    case(WIZARD, ODD, steps=3, seed=9, negative="blurry, text"),
]

PICTURES = {
    "sd15": [
        *EVERY_SAMPLER,
        case(WIZARD, steps=25, seed=1), case(WIZARD, ODD, steps=10, seed=2, sampler="euler"),
        case("swirling stars", n=3, steps=7, seed=2**32 + 5, sampler="euler_a"),
        case(CAT, ODD, n=3, steps=2, seed=100, sampler="ddim"),
        # Other seeds for each: one step of ddim is one step of pndm.
        *(case(steps=steps, seed=70 + 2 * i + steps, sampler=s) for i, s in enumerate(SAMPLERS) for steps in (1, 2)),
        case(guidance=1.0, seed=12), case(guidance=1.0, seed=12, negative="ignored without guidance"),
        case(guidance=0.0, seed=12, sampler="ddim"), case(guidance=3.0, seed=13, rescale=0.7),
        case(guidance=14.5, seed=13, rescale=1.0),
        case(skip=1, seed=14), case(skip=2, seed=14, negative="blurry"), case("", seed=15), case("", seed=15, negative=CAT),
        case(LONG, seed=16, negative=LONG + "a cat"), case(WORLD, seed=17, negative="тёмный 夜"),
        case(seed=2**63 - 1, sampler="euler"), case(seed=2**64 - 1, sampler="ddim"),
        case(steps=10, strength=0.3, seed=18), case(steps=10, strength=0.75, seed=19, sampler="ddim"),
        case(WIZARD, ODD, steps=7, strength=1.0, seed=20, sampler="euler"),
        case(steps=10, strength=0.75, seed=21, sampler="euler_a"),
        case(steps=10, strength=0.75, seed=22, sampler="dpmpp_2m", schedule="karras"),
        case(steps=7, strength=0.5, n=2, seed=23, sampler="ddim", eta=0.5),
        case(steps=10, schedule="karras", sampler="euler", seed=24),
        case(steps=4, strength=0.3, seed=25, sampler="ddim"),
    ],
    "sd21": [
        *EVERY_SAMPLER, case(WORLD, ODD, seed=30, negative=""), case(skip=1, seed=31, sampler="euler"),
        case(WIZARD, steps=25, guidance=5.0, rescale=0.7, seed=32), case("hello! world!", n=3, steps=2, seed=33),
        case(steps=7, strength=0.75, seed=34), case(LONG, seed=35, sampler="dpmpp_2m", schedule="karras", steps=25),
    ],
    "wide": [
        # The reference's ancestral Euler and PNDM refuse sample prediction.
        *(c for c in EVERY_SAMPLER if c["sampler"] not in ("euler_a", "pndm")),
        case(LONG, ODD, seed=40, steps=10), case(skip=1, seed=41), case("", guidance=1.0, seed=42, steps=1),
        case(WORLD, n=3, steps=2, seed=43, guidance=2.0), case(steps=7, strength=0.75, seed=44),
    ],
    "deep": [
        *EVERY_SAMPLER, case(WIZARD, ODD, seed=50, steps=25), case(skip=2, seed=51, negative="blurry"),
        case(steps=1, seed=52),
        case(steps=7, strength=0.6, seed=55, sampler="ddim", guidance=2.0), case(WORLD, n=3, steps=2, seed=53, guidance=1.0), case(WIZARD, ODD, steps=10, strength=0.3, seed=54),
    ],
    "small": [
        # Its file says nothing of clip_sample, so ddim clamps to the class's default; over many steps that is chaos.
        *(c | dict(steps=3, guidance=1.5) if c["sampler"] == "ddim" else c for c in EVERY_SAMPLER),
        case(WIZARD, ODD, seed=60, steps=25), case(steps=1, seed=61), case(LONG, seed=62, guidance=1.0),
        case(WORLD, n=3, steps=7, seed=63, negative="text"), case(steps=10, strength=1.0, seed=64),
    ],
    "default": [
        case("a red circle on a blue background", (128, 128), steps=10, guidance=5.0, seed=42),
        case("a yellow star in the night", (128, 128), steps=7, guidance=5.0, seed=1, sampler="dpmpp_2m", negative="a moon"),
        case("a green tree on a white background", (128, 128), steps=7, guidance=5.0, seed=2**32 + 7, sampler="euler_a"),
        case("a purple fish in the sea", (128, 128), steps=7, guidance=1.0, seed=3, sampler="euler"),
    ],
}


def start_image(width, height):
    """What image-to-image starts from: smooth waves, a disc and an edge."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [128 + 80 * np.sin(2 * math.pi * (x / (19 + 6 * c) + y / (31 - 5 * c)) + c) for c in range(3)]
    picture = np.stack(waves, -1)
    picture[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (width / 5) ** 2] = (220, 40, 60)
    picture[:, -width // 6:] = (20, 90, 200)
    return Image.fromarray(picture.round().clip(0, 255).astype(np.uint8))


def psnr(a, b):
    """Of two uint8 arrays, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@contextlib.contextmanager
def shaken(amount):
    """While it lasts, every drawn tensor is off by this relative amount, which shows how a picture passes errors on."""
    true_randn, rng = torch.randn, torch.Generator().manual_seed(0)

    def randn(*args, **kwargs):
        drawn = true_randn(*args, **kwargs)
        return drawn * (1 + amount * true_randn(drawn.shape, generator=rng))

    torch.randn = randn
    try:
        yield
    finally:
        torch.randn = true_randn


def scheduler(own, c):
    """The case's scheduler, made of the model's own one."""
    return SAMPLERS[c["sampler"]].from_config(own.config, **SCHEDULES[c["schedule"]])


def render(pipe, own, c, scheduler=scheduler):
    """The pictures of one case, as uint8 arrays, and the finished latents that they were decoded from."""
    finished = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, **kwargs: (finished.append(z * pipe.vae.config.scaling_factor), decode(z, **kwargs))[1]
    # A pipeline corrects keys of the scheduler that it is made with; what that has only by default, from_config leaves
    # to the class that is chosen afterwards.
    pipe.scheduler = own
    if c["strength"] is not None:
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
    if c["sampler"]:
        pipe.scheduler = scheduler(own, c)
    args = dict(prompt=c["prompt"], negative_prompt=c["negative"], num_inference_steps=c["steps"],
                guidance_scale=c["guidance"], num_images_per_prompt=c["n"],
                clip_skip=c["clip_skip"] or None, eta=c["eta"] or 0.0, output_type="pil",
                generator=[torch.Generator("cpu").manual_seed((c["seed"] + i) % 2**64) for i in range(c["n"])])
    if c["strength"] is None:
        images = pipe(width=c["width"], height=c["height"], guidance_rescale=c["guidance_rescale"], **args).images
    else:
        images = pipe(image=start_image(c["width"], c["height"]), strength=c["strength"], **args).images
    pipe.vae.decode = decode
    return [np.asarray(image) for image in images], torch.cat(finished)


def picture_files(pipe, model, cases, folder):
    """Makes the cases' pictures; gives their rows of the manifest, one a picture, and the finished latents by file name."""
    own, rows, seen, kept_latents = pipe.scheduler, [], {}, {}
    for number, c in enumerate(cases):
        pictures, latents = render(pipe, own, c)
        with shaken(1e-6):
            shaken_pictures, shaken_latents = render(pipe, own, c)
        for i, picture in enumerate(pictures):
            file = f"{model}-{number:02}" + (f"-{i}" if c["n"] > 1 else "") + ".png"
            # A picture that says little, or whose values chaos decides, would prove nothing.
            clamped = float(np.mean((picture == 0) | (picture == 255)))
            firm = psnr(picture, shaken_pictures[i])
            error = ((latents[i] - shaken_latents[i]).norm() / latents[i].norm()).item()
            print(f"  {file}: deviation {picture.std():.0f}, clamped {clamped:.1%}, firm to {firm:.0f} dB, {error:.1g}",
                  flush=True)
            if picture.std() < 15 or (model != "default" and clamped > 0.1) or firm < 65:
                raise SystemExit(f"{file} is no good picture to compare: {c}")
            # A picture that another case has too would leave a parameter untested; only guidance can silence one.
            key = c | dict(negative=c["negative"] if c["guidance"] > 1 else None, i=i)
            for other, (other_key, kept) in seen.items():
                if other_key != key and kept.shape == picture.shape and psnr(kept, picture) > 40:
                    raise SystemExit(f"{file} looks like {other}: {c}")
            seen[file] = (key, picture)
            Image.fromarray(picture).save(folder / file, optimize=True)
            kept_latents[file] = latents[i]
            row = {k: v for k, v in c.items() if k not in ("n", "strength", "seed")}
            # Latents may be off by fifty times what 1e-6 in the noise makes of them, to the next power of ten.
            row |= dict(file=file, model=model, seed=(c["seed"] + i) % 2**64,
                        latents_error=10.0 ** math.ceil(math.log10(max(50 * error, 1e-5))))
            if c["strength"] is not None:
                row["init"] = dict(file=f"start-{c['width']}x{c['height']}.png", strength=c["strength"])
            rows.append(row)
    pipe.scheduler = own
    return rows, kept_latents
