#!/usr/bin/env python3
"""Writes the reference data of the samplers' tests, with the real torch and diffusers.

Run it where both are installed: python scripts/goldens_samplers.py. It writes models/tests/data/samplers_*.json.
"""

import json
import pathlib
import warnings

import diffusers
import numpy
import torch

DATA = pathlib.Path(__file__).resolve().parent.parent / "models/tests/data"


def fnv(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def randn_streams() -> list:
    """Draws of many sizes and seeds from one generator each, small and large draws mixed."""
    plans = [[n] for n in (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 64, 100, 623, 1000, 4096)]
    plans += [[5, 5, 5], [3, 16, 3], [1, 20, 1, 20, 2], [15, 17, 15, 16, 1], [1024, 1024, 3, 100]]
    streams = []
    for seed in (0, 1, 42, 2**31 + 5, 2**32 - 1, 2**32, 2**32 + 7, 0x123456789ABCDEF, 2**63, 2**64 - 1):
        for draws in plans if seed in (1, 2**32 + 7) else plans[::5]:
            generator = torch.Generator("cpu").manual_seed(seed)
            values = torch.cat([torch.randn(n, generator=generator, dtype=torch.float32) for n in draws])
            raw = values.numpy()
            streams.append(
                {"seed": seed, "draws": draws, "hash": fnv(raw.tobytes()), "head": raw[:4].view("uint32").tolist()}
            )
    return streams


SHAPE = (1, 4, 2, 2)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

# Scheduler files as models publish them.
CONFIGS = {
    "sd15": {
        "_class_name": "PNDMScheduler", **SD, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "trained_betas": None,
    },
    "mini": {
        "_class_name": "DDIMScheduler", **SD, "clip_sample": False, "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": 0.995, "prediction_type": "v_prediction", "rescale_betas_zero_snr": False,
        "sample_max_value": 1.0, "set_alpha_to_one": False, "steps_offset": 1, "thresholding": False,
        "timestep_spacing": "leading", "trained_betas": None,
    },
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler", **SD, "clip_sample": False, "interpolation_type": "linear",
        "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
    },
    "zero_snr": {
        "_class_name": "DDIMScheduler", **SD, "clip_sample": False, "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True, "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "trailing",
    },
    "pixel": {
        "_class_name": "DDPMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
        "clip_sample": True, "num_train_timesteps": 1000, "variance_type": "fixed_small",
    },
    "cosine": {
        "_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000,
        "prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9,
        "clip_sample": False,
    },
}

# A schedule's name as the option of a diffusers class.
SCHEDULES = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "normal": {"timestep_spacing": "linspace"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "simple": {"timestep_spacing": "trailing"},
    "ddim_uniform": {"timestep_spacing": "leading"},
}
SPACINGS = ("normal", "sgm_uniform", "simple", "ddim_uniform")
CURVES = ("karras", "exponential", "beta")

# A sampler's name as a diffusers class with options, and the schedules that the class accepts.
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}, SPACINGS),
    "euler": ("EulerDiscreteScheduler", {}, SPACINGS + CURVES),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, SPACINGS),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, SPACINGS + CURVES + ("lu",)),
}


def fake(prediction: str, x: torch.Tensor, t: float) -> torch.Tensor:
    """A stand-in for the model: smooth, not linear, and bounded enough to keep roundings small."""
    tau = float(t) / 1000
    return {
        "epsilon": lambda: x * (0.8 * max(tau, 0) ** 0.5) + torch.tanh(x) * 0.15,
        "v_prediction": lambda: x * (-0.2 * (1 - tau)) + torch.tanh(x) * 0.5,
        "sample": lambda: x * 0.1 + torch.tanh(x) * 0.6,
        "flow_prediction": lambda: x * (0.6 * tau) + torch.tanh(x) * 0.3,
    }[prediction]()


def trajectory(scheduler, prediction, steps, seed, strength=None, eta=None, **given) -> list:
    """What a diffusers pipeline does with this scheduler, on the fake model."""
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler.set_timesteps(**(given or {"num_inference_steps": steps}))
    timesteps = scheduler.timesteps
    noise = torch.randn(SHAPE, generator=generator)
    if hasattr(scheduler, "set_begin_index"):
        # Without it, a schedule whose first timestep comes twice starts at the second and runs off its end.
        scheduler.set_begin_index(0)
    if strength is None:
        latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        start = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = timesteps[start:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        clean = (torch.arange(16, dtype=torch.float32) * 0.1 - 0.8).reshape(SHAPE)
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    options = {}
    if eta is not None:
        options["eta"] = eta
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    for t in timesteps:
        scaled = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(fake(prediction, scaled, t), t, latents, **options).prev_sample
    return [float(f"{v:.8g}") for v in latents.flatten().tolist()]


def case(config: str, sampler, schedule, steps: int, seed: int, options=None, strength=None, eta=None, **named) -> dict:
    file = CONFIGS[config]
    name, forced, _ = SAMPLERS[sampler] if sampler else (file["_class_name"], {}, ())
    extra = {**forced, **(SCHEDULES[schedule] if schedule else {}), **(options or {})}
    scheduler = getattr(diffusers, name).from_config(file, **extra)
    prediction = file.get("prediction_type", "epsilon")
    end = trajectory(scheduler, prediction, steps, seed, strength=strength, eta=eta)
    assert all(numpy.isfinite(end)), (config, sampler, schedule, steps)
    found = {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps, "prediction": prediction}
    found |= {"strength": strength, "eta": eta, "seed": seed, "end": end, **named}
    return {key: value for key, value in found.items() if value is not None}


def diffusion() -> list:
    cases = []
    for sampler, (_, _, schedules) in SAMPLERS.items():
        for config in CONFIGS:
            few = config in ("pixel", "cosine")
            for schedule in (None, *(schedules[:0] if few else schedules)):
                counts = (5, 10, 25, 50, 7, 13, 33) if schedule is None else (7, 25) if schedule != "karras" else (5, 10, 33, 50)
                for steps in counts:
                    if impossible(sampler, config, schedule):
                        continue
                    cases.append(case(config, sampler, schedule, steps, seed=len(cases)))
        for strength, steps in ((0.8, 10), (0.35, 13), (1.0, 7)):
            for config in ("sd15", "mini", "sdxl"):
                cases.append(case(config, sampler, None, steps, seed=len(cases), strength=strength))
    for eta in (0.3, 1.0):
        for config in ("sd15", "mini", "zero_snr", "pixel"):
            cases.append(case(config, "ddim", None, 10, seed=len(cases), eta=eta))
    for config in ("mini", "sdxl", "zero_snr", "cosine"):
        cases.append(case(config, None, None, 10, seed=len(cases)))
    return cases


def impossible(sampler: str, config: str, schedule) -> bool:
    """Combinations that diffusers refuses or that divide by zero there."""
    kind = CONFIGS[config].get("prediction_type", "epsilon")
    return kind == "sample" and sampler == "euler_a"


def main() -> None:
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    DATA.mkdir(parents=True, exist_ok=True)
    write("samplers_randn.json", randn_streams())
    write("samplers_diffusion.json", {"configs": CONFIGS, "cases": diffusion()})


def write(name: str, value) -> None:
    (DATA / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
