#!/usr/bin/env python3
"""Writes the reference data of the samplers' tests, with the real torch and diffusers.

Run it where both are installed: python scripts/goldens_samplers.py. It writes models/tests/data/samplers_*.json.
"""

import json
import pathlib
import sys
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
CLEAN = (torch.arange(16, dtype=torch.float32) * 0.1 - 0.8).reshape(SHAPE)
MASK = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
MULTI = "DPMSolverMultistepScheduler"
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
    # The other forms of one class's options; each is read as the model's own sampler.
    "own_3m_sde": {"_class_name": MULTI, **SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 3, "solver_type": "heun"},
    "own_karras": {
        "_class_name": MULTI, **SD, "use_karras_sigmas": True, "euler_at_final": True, "final_sigmas_type": "sigma_min",
        "lambda_min_clipped": -5.1, "timestep_spacing": "trailing", "prediction_type": "v_prediction",
    },
    "own_clipped": {"_class_name": MULTI, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "solver_order": 3},
    "own_unipc": {
        "_class_name": "UniPCMultistepScheduler", **SD, "solver_order": 3, "solver_type": "bh1", "disable_corrector": [0, 1],
        "final_sigmas_type": "sigma_min", "lower_order_final": False,
    },
    "own_unipc_noise": {"_class_name": "UniPCMultistepScheduler", **SD, "predict_x0": False, "final_sigmas_type": "sigma_min"},
    "own_single": {
        "_class_name": "DPMSolverSinglestepScheduler", **SD, "solver_order": 3, "solver_type": "heun", "lower_order_final": True,
    },
    "own_deis": {"_class_name": "DEISMultistepScheduler", **SD, "solver_order": 3},
    "own_euler": {
        "_class_name": "EulerDiscreteScheduler", **SD, "interpolation_type": "log_linear", "final_sigmas_type": "sigma_min",
    },
    "own_continuous": {
        "_class_name": "EulerDiscreteScheduler", **SD, "timestep_type": "continuous", "prediction_type": "v_prediction",
        "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading",
    },
    "own_pndm": {"_class_name": "PNDMScheduler", **SD, "prediction_type": "v_prediction", "set_alpha_to_one": True},
    "own_ddpm": {"_class_name": "DDPMScheduler", **SD, "variance_type": "fixed_large", "clip_sample": False, "thresholding": True},
    "own_heun": {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "exp", "clip_sample": True},
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
SDE = {"algorithm_type": "sde-dpmsolver++"}
SAMPLERS = {
    "ddim": ("DDIMScheduler", {}, SPACINGS),
    "ddpm": ("DDPMScheduler", {}, SPACINGS),
    "pndm": ("PNDMScheduler", {}, SPACINGS),
    "lms": ("LMSDiscreteScheduler", {}, SPACINGS + CURVES),
    "euler": ("EulerDiscreteScheduler", {}, SPACINGS + CURVES),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, SPACINGS),
    "heun": ("HeunDiscreteScheduler", {}, SPACINGS + CURVES),
    "dpm2": ("KDPM2DiscreteScheduler", {}, SPACINGS + CURVES),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}, SPACINGS + CURVES),
    "dpmpp_2m": (MULTI, {}, SPACINGS + CURVES + ("lu",)),
    "dpmpp_3m": (MULTI, {"solver_order": 3}, CURVES),
    "dpm_2m": (MULTI, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, CURVES),
    "dpmpp_2m_sde": (MULTI, SDE, SPACINGS + CURVES),
    "dpmpp_3m_sde": (MULTI, SDE | {"solver_order": 3}, CURVES),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}, CURVES),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}, SPACINGS + CURVES),
    "deis": ("DEISMultistepScheduler", {}, SPACINGS + CURVES),
    "unipc": ("UniPCMultistepScheduler", {}, SPACINGS + CURVES),
    "lcm": ("LCMScheduler", {}, ()),
    "tcd": ("TCDScheduler", {}, ()),
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


def trajectory(scheduler, prediction, steps, seed, strength=None, eta=None, double=False, repaint=False, **given) -> list:
    """What a diffusers pipeline does with this scheduler, on the fake model; with `repaint`, what an inpainting one does.

    Where a scheduler lets it, latents and coefficients are f64 (`double`): what is compared is the method, and a second-order
    step from a large sigma amplifies the roundings of f32, diffusers' and ours alike, beyond any useful limit. The noise is
    drawn in f32 all the same.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler.set_timesteps(**(given or {"num_inference_steps": steps}))
    timesteps = scheduler.timesteps
    if double:
        scheduler.sigmas = scheduler.sigmas.double()
        module = sys.modules[type(scheduler).__module__]
        if hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda shape, generator=None, **_: torch.randn(shape, generator=generator).double()
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
        noised = scheduler.add_noise if hasattr(scheduler, "add_noise") else scheduler.scale_noise
        latents = noised(CLEAN, noise, timesteps[:1])
    if double:
        latents = latents.double()
    options = {}
    if "eta" in scheduler.step.__code__.co_varnames:
        # Pipelines hand their own default to every scheduler that takes an eta, whatever that one's default is.
        options["eta"] = 0.0 if eta is None else eta
    if "generator" in scheduler.step.__code__.co_varnames:
        options["generator"] = generator
    clean, noise = (CLEAN.double(), noise.double()) if double else (CLEAN, noise)
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(fake(prediction, scaled, t), t, latents, **options).prev_sample
        if repaint:
            kept = clean
            if i < len(timesteps) - 1 and hasattr(scheduler, "add_noise"):
                kept = scheduler.add_noise(clean, noise, timesteps[i + 1].reshape(1))
            elif i < len(timesteps) - 1:
                kept = scheduler.scale_noise(clean, timesteps[i + 1].reshape(1), noise)
            latents = (1 - MASK) * kept + MASK * latents
    return [float(f"{v:.8g}") for v in latents.flatten().tolist()]


def is_double(scheduler) -> bool:
    """Whether the scheduler's step leaves f64 latents alone."""
    names = ("LMS", "Heun", "KDPM2", "DPMSolverSinglestep", "DEIS", "UniPC")
    return type(scheduler).__name__.startswith(names)


def case(config: str, sampler, schedule, steps: int, seed: int, options=None, given=None, strength=None, eta=None, repaint=None, **named) -> dict:
    file = CONFIGS[config]
    name, forced, _ = SAMPLERS[sampler] if sampler else (file["_class_name"], {}, ())
    extra = {**forced, **(SCHEDULES[schedule] if schedule else {}), **(options or {})}
    scheduler = getattr(diffusers, name).from_config(file, **extra)
    prediction = file.get("prediction_type", "epsilon")
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler_seed = seed
    if "sde" in (sampler or "") and name == MULTI:
        named["noise"] = "torch_cpu"
    lists = {key: [int(v) for v in values] if key == "timesteps" else values for key, values in (given or {}).items()}
    double = is_double(scheduler)
    end = trajectory(scheduler, prediction, steps, seed, strength=strength, eta=eta, double=double, repaint=repaint, **lists)
    assert all(numpy.isfinite(end)), (config, sampler, schedule, steps)
    found = {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps, "prediction": prediction}
    found |= {"strength": strength, "eta": eta, "double": double, "repaint": repaint, "seed": seed, "end": end}
    found |= {**named, **(given or {})}
    return {key: value for key, value in found.items() if value is not None}


def diffusion() -> list:
    cases = []
    for sampler, (_, _, schedules) in SAMPLERS.items():
        for config in (name for name in CONFIGS if not name.startswith("own_")):
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
        cases.append(case("sd15", "tcd", None, 4, seed=len(cases), eta=eta))
    for config in CONFIGS:
        for steps in (10, 25):
            cases.append(case(config, None, None, steps, seed=len(cases)))
    for sampler in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "deis", "unipc"):
        for order in (1, 2, 3):
            options = {"solver_order": order}
            cases.append(case("sd15", sampler, None, 12, seed=len(cases), options=options, order=order))
    for sampler in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s"):
        cases.append(case("sd15", sampler, None, 20, seed=len(cases), options={"solver_type": "heun"}, solver="heun"))
    lists = [float(t) for t in (999, 850, 736, 645, 545, 455, 343, 233, 124, 24)]
    for sampler in ("euler", "heun", "dpmpp_2m", "dpmpp_2s", "ddpm", "lcm", "tcd"):
        cases.append(case("sd15", sampler, None, 10, seed=len(cases), given={"timesteps": lists}))
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    cases.append(case("sd15", "euler", None, 10, seed=len(cases), given={"sigmas": sigmas}))
    for sampler in SAMPLERS:
        for config, steps, strength in (("sd15", 7, None), ("sdxl", 10, 0.6), ("mini", 5, 1.0)):
            cases.append(case(config, sampler, None, steps, seed=len(cases), strength=strength, repaint=True))
    cases.append(case("own_pndm", None, None, 10, seed=len(cases), repaint=True))
    return cases


def impossible(sampler: str, config: str, schedule) -> bool:
    """Combinations that diffusers refuses, or that divide by zero or run off a table there."""
    kind = CONFIGS[config].get("prediction_type", "epsilon")
    if kind == "sample" and sampler in ("euler_a", "dpm2", "dpm2_a", "dpmpp_sde", "pndm"):
        return True
    # This class keeps its latents in f32 whatever it is given, and these solvers amplify that from a sigma of 4096 and more.
    return sampler in ("dpm_2m", "dpmpp_3m") and config in ("zero_snr", "cosine")


FLOWS = {
    "sd3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    "flux": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 256, "base_shift": 0.5,
        "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True,
    },
    "schnell": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
    "terminal": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.02,
        "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192,
    },
    "stochastic": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0, "stochastic_sampling": True},
    "linear": {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "time_shift_type": "linear",
    },
    "own_heun": {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0},
    "sana": {
        "_class_name": MULTI, "flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True,
        "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "solver_order": 2,
    },
    "wan": {
        "_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "prediction_type": "flow_prediction",
        "use_flow_sigmas": True, "solver_order": 2,
    },
}


def shift_mu(tokens: int, file: dict) -> float:
    """The pipelines' calculate_shift."""
    few, many = file.get("base_image_seq_len", 256), file.get("max_image_seq_len", 4096)
    low, high = file.get("base_shift", 0.5), file.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return tokens * slope + low - slope * few


def flow_case(config, sampler, schedule, steps, seed, unit=False, tokens=None, sigmas=None, repaint=None, **named) -> dict:
    file = FLOWS[config]
    names = {
        None: file["_class_name"], "flow_euler": "FlowMatchEulerDiscreteScheduler", "unipc": "UniPCMultistepScheduler",
        "flow_heun": "FlowMatchHeunDiscreteScheduler", "flow_dpmpp_2m": MULTI, "deis": "DEISMultistepScheduler",
    }
    extra = dict(SCHEDULES[schedule]) if schedule else {}
    if sampler in ("flow_dpmpp_2m", "unipc", "deis"):
        extra |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        extra |= {"flow_shift": file.get("shift", file.get("flow_shift"))}
    scheduler = getattr(diffusers, names[sampler]).from_config(file, **extra)
    given = {"num_inference_steps": steps}
    if unit:
        given = {"sigmas": numpy.linspace(1.0, 1 / steps, steps).tolist()}
    if sigmas:
        given = {"sigmas": sigmas}
    if tokens:
        given["mu"] = shift_mu(tokens, file)
    double = is_double(scheduler)
    end = trajectory(scheduler, "flow_prediction", steps, seed, double=double, repaint=repaint, **given)
    found = {"config": config, "sampler": sampler, "schedule": schedule, "steps": steps, "prediction": "flow_prediction"}
    found |= {"unit_sigmas": unit, "double": double, "image_tokens": tokens, "sigmas": sigmas, "repaint": repaint}
    found |= {"seed": seed, "end": end, **named}
    return {key: value for key, value in found.items() if value is not None}


def flows() -> list:
    cases = []
    for steps in (1, 4, 5, 7, 10, 13, 25, 28, 33, 50):
        cases.append(flow_case("sd3", "flow_euler", None, steps, len(cases)))
        cases.append(flow_case("sd3", "flow_heun", None, max(steps, 2), len(cases)))
        cases.append(flow_case("own_heun", None, None, max(steps, 2), len(cases)))
        cases.append(flow_case("schnell", None, None, steps, len(cases), unit=True))
        cases.append(flow_case("stochastic", None, None, steps, len(cases)))
        for tokens in (256, 1024, 4096):
            cases.append(flow_case("flux", None, None, steps, len(cases), unit=True, tokens=tokens))
        cases.append(flow_case("terminal", None, None, max(steps, 2), len(cases), unit=True, tokens=6000))
        cases.append(flow_case("linear", None, None, steps, len(cases), unit=True, tokens=2000))
        for config in ("sana", "wan"):
            cases.append(flow_case(config, None, None, steps, len(cases)))
        for sampler in ("flow_dpmpp_2m", "unipc", "deis"):
            cases.append(flow_case("sd3", sampler, None, steps, len(cases)))
    for schedule in CURVES:
        for steps in (5, 28):
            cases.append(flow_case("sd3", "flow_euler", schedule, steps, len(cases)))
            cases.append(flow_case("flux", None, schedule, steps, len(cases), unit=True, tokens=1024))
    cases.append(flow_case("sd3", "flow_euler", None, 4, len(cases), sigmas=[1.0, 0.8, 0.5, 0.2]))
    for sampler in ("flow_euler", "flow_heun", "flow_dpmpp_2m", "unipc", "deis"):
        cases.append(flow_case("sd3", sampler, None, 7, len(cases), repaint=True))
    cases.append(flow_case("flux", None, None, 6, len(cases), unit=True, tokens=1024, repaint=True))
    return cases


def brownian() -> list:
    """Increments of the path that diffusers' SDE scheduler draws from."""
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    cases = []
    for seed in (0, 7, 2**31, 2**40 + 3):
        for low, high in ((0.0292, 14.6146), (0.002, 80.0)):
            sampler = BrownianTreeNoiseSampler(torch.zeros(1, 4, 5), low, high, seed)
            for start, end in ((high, 5.0), (5.0, 1.7), (1.7, 0.3), (0.3, low), (2.5, 0.123456)):
                a, b = torch.tensor(start), torch.tensor(end)
                values = [float(f"{v:.9g}") for v in sampler(a, b).flatten().tolist()]
                cases.append({"seed": seed, "min": low, "max": high, "from": start, "to": end, "values": values})
    return cases


def main() -> None:
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    DATA.mkdir(parents=True, exist_ok=True)
    write("samplers_randn.json", randn_streams())
    write("samplers_brownian.json", brownian())
    write("samplers_flow.json", {"configs": FLOWS, "cases": flows()})
    write("samplers_diffusion.json", {"configs": CONFIGS, "cases": diffusion()})


def write(name: str, value) -> None:
    (DATA / name).write_text(json.dumps(value, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
