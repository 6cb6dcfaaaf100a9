"""Makes the pictures of every sampler with every schedule that the reference has for it, and what is to be known of each.

    python scripts/goldens_sampler_pictures.py    # after goldens.py, whose tiny pipelines it renders with

It writes models/tests/data/samplers_pictures.json, .safetensors (the finished latents) and samplers_pictures/*.png.
Everything but the sampler and the schedule stays the same, so that a picture differs from the others for nothing else.
"""
import math
import os
import shutil
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import diffusers
import torch
import transformers
from PIL import Image

import goldens_models
from goldens import DATA, DEFAULT_MODEL, save
from goldens_pictures import case, psnr, render, shaken
from goldens_samplers import CURVES, SCHEDULES, SPACINGS, SAMPLERS, write

# What these classes accept beyond what the trajectories in samplers_diffusion.json cover.
WIDER = {name: SPACINGS + CURVES + ("lu",) for name in ("dpmpp_3m", "dpm_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")}
TWO_CALLS = ("heun", "dpm2", "dpm2_a", "dpmpp_sde")

TINY = [
    case(size=(32, 32), sampler=sampler, schedule=schedule, steps=5 if sampler in TWO_CALLS else 7, seed=2)
    for sampler, (_, _, schedules) in SAMPLERS.items()
    for schedule in (None, *WIDER.get(sampler, schedules))
] + [case(size=(32, 32), sampler=sampler, steps=7, seed=2, eta=0.5) for sampler in ("ddim", "tcd")]
BUILT_IN = [
    case("a red circle on a blue background", (128, 128), sampler=sampler, schedule=schedule, steps=8, guidance=4.0, seed=3)
    for sampler, schedule in (("ddpm", None), ("lms", "sgm_uniform"), ("heun", "karras"), ("dpm2_a", None), ("dpmpp_sde", "karras"),
                              ("dpmpp_3m_sde", "exponential"), ("deis", "beta"), ("unipc", None))
]


def scheduler(own, c):
    """The case's scheduler, as a pipeline's user sets it from the model's own one."""
    name, forced, _ = SAMPLERS[c["sampler"]]
    options = {**forced, **SCHEDULES.get(c["schedule"], {})}
    if name == "DPMSolverSDEScheduler":
        # Its noise does not come from the pipeline's generator; without a seed it would be another one at each call.
        options["noise_sampler_seed"] = c["seed"]
    return getattr(diffusers, name).from_config(own.config, **options)


def pictures(model, folder, cases):
    """The rows of these cases and their latents by file; the pictures are written on the way."""
    pipe = goldens_models.load(model, folder)
    own, rows, latents = pipe.scheduler, [], {}
    for c in cases:
        file = "-".join([model, c["sampler"], c["schedule"] or "default", *([f"eta{c['eta']}"] if c["eta"] else [])]) + ".png"
        [picture], [finished] = render(pipe, own, c, scheduler)
        with shaken(1e-6):
            [moved_picture], [moved] = render(pipe, own, c, scheduler)

        def distance(other):
            return ((finished - other).norm() / finished.norm()).item()

        error, firm = distance(moved), psnr(picture, moved_picture)
        allowed = 10.0 ** math.ceil(math.log10(max(50 * error, 1e-5)))
        near, other = min(((distance(kept), name) for name, kept in latents.items()), default=(math.inf, None))
        print(f"{file}: deviation {picture.std():.0f}, firm to {firm:.0f} dB, {error:.1g}; {near:.1g} from {other}", flush=True)
        if near < 1e-5:
            # Two names of one schedule, or TCD without noise, which is DDIM: they share a picture.
            file = other
        elif picture.std() < 15 or firm < 65 or near < 5 * allowed:
            raise SystemExit(f"{file} is no good picture to compare: {c}")
        else:
            Image.fromarray(picture).save(DATA / "samplers_pictures" / file, optimize=True)
            latents[file] = finished
        row = {k: v for k, v in c.items() if k not in ("n", "strength")}
        rows.append(row | dict(file=file, model=model, latents_error=allowed))
    pipe.scheduler = own
    return rows, latents


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    shutil.rmtree(DATA / "samplers_pictures", ignore_errors=True)
    (DATA / "samplers_pictures").mkdir()
    rows, latents = pictures("sd15", DATA / "pipelines" / "sd15", TINY)
    more_rows, more_latents = pictures("default", DEFAULT_MODEL, BUILT_IN)
    save(latents | more_latents, DATA / "samplers_pictures.safetensors")
    write("samplers_pictures.json", {"pictures": rows + more_rows})


if __name__ == "__main__":
    main()
