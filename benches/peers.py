#!/usr/bin/env python3
"""A denoiser's step at its true size: easel against PyTorch, OpenVINO and stable-diffusion.cpp, interleaved in one run, as ratios.

    pip install torch diffusers openvino
    python benches/peers.py [MODEL [HEIGHT WIDTH]] [--rounds N] [--sd-cpp PROGRAM] [--sides easel,torch,...] [--easel PROGRAM]

MODEL is a folder of models/tests/data/true_configs with a UNet that needs a prompt alone; the sides are those of the latents. All sides have
weights of the real shapes and no meaning. Each round starts a fresh process of each side, one after the other, and counts its third
step. Processor seconds are what can be compared on a machine with other work; wall seconds say how well the work was
shared among the cores. The sides:

    easel      `cargo bench --bench denoiser`, or a program that this has built, where --easel names it
    torch      diffusers' own network, channels last, without gradients
    compile    the same through torch.compile (needs a C++ compiler); the time that takes is said apart
    openvino   what OpenVINO makes of diffusers' network
    sd.cpp     stable-diffusion.cpp's sd-cli, where --sd-cpp names it, with options if any, drawing a picture without guidance

A side whose package is not installed is left out.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "models/tests/data/true_configs"
CORES = len(os.sched_getaffinity(0))
TYPES = "f32", "bf16"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sd15")
    parser.add_argument("height", nargs="?", type=int, default=64)
    parser.add_argument("width", nargs="?", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", help="those to take, with commas between them (default: all that are there)")
    parser.add_argument("--easel", metavar="PROGRAM", help="the bench `denoiser`, built before")
    parser.add_argument("--sd-cpp", metavar="PROGRAM", help="stable-diffusion.cpp's sd-cli")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder:
        prepare, steps = SIDES[asked.sides]
        return prepare(asked) if asked.prepare else steps(asked)

    sides = asked.sides.split(",") if asked.sides else [side for side in SIDES if is_there(side, asked)]
    unknown = [side for side in sides if side not in SIDES]
    if unknown:
        parser.error(f"there is no side {', '.join(unknown)}; there are {', '.join(SIDES)}")
    missing = [side for side in sides if not is_there(side, asked)]
    if missing:
        parser.error(f"not installed, or no program named: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder:
        compare(sides, asked, folder)


def is_there(side, asked):
    packages = {"torch": ["torch", "diffusers"], "openvino": ["torch", "diffusers", "openvino"]}
    packages |= {"compile": packages["torch"], "sd.cpp": ["torch", "safetensors"]}
    return all(map(importlib.util.find_spec, packages.get(side, []))) and (side != "sd.cpp" or bool(asked.sd_cpp))


def compare(sides, asked, folder):
    """Takes the rounds, and prints a table of medians."""
    shape = asked.model, asked.height, asked.width
    programs = [f"--{name}={program}" for name, program in [("easel", asked.easel), ("sd-cpp", asked.sd_cpp)] if program]

    def run(side, *more):
        own = [sys.executable, __file__, *map(str, shape), "--sides", side, "--folder", folder, *programs, *more]
        output = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines = (line.split() for line in output.splitlines())
        return {line[1]: (float(line[2]), float(line[3])) for line in lines if line[:1] == ["step"]}

    for side in sides:
        if SIDES[side][0]:
            run(side, "--prepare")
    seconds = {}
    for _ in range(asked.rounds):
        for side in sides:
            for name, pair in run(side).items():
                seconds.setdefault((name, side), []).append(pair)

    model, height, width = shape
    print(f"{model}, latents {height}x{width}, one row, {CORES} cores, medians of {asked.rounds} rounds; {versions()}\n")
    print("| | processor s | wall s | processor, times easel's | wall, times easel's |\n|---|---|---|---|---|")
    medians = {key: [statistics.median(values) for values in zip(*pairs)] for key, pairs in seconds.items()}
    for (name, side), (processor, wall) in sorted(medians.items(), key=lambda line: TYPES.index(line[0][0])):
        own = medians.get((name, "easel"))
        ratios = f"{processor / own[0]:.2f} | {wall / own[1]:.2f}" if own else "- | -"
        print(f"| {side} {name} | {processor:.2f} | {wall:.2f} | {ratios} |")


def versions():
    packages = [package for package in ("torch", "diffusers", "openvino") if importlib.util.find_spec(package)]
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def third(name, step):
    """Takes three steps, and tells the processor and wall seconds of the third."""
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        seconds = time.process_time() - processor, time.perf_counter() - wall
    print("step", name, *seconds, flush=True)


# --- easel ---


def easel_steps(asked):
    shape = asked.model, str(asked.height), str(asked.width)
    cargo = ["cargo", "bench", "-q", "-p", "easel-models", "-p", "easel-kernels", "--bench", "denoiser", "--profile", "dev", "--"]
    command = [asked.easel, "--bench"] if asked.easel else cargo
    output = subprocess.run([*command, *shape], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for line in re.findall(r"^(\w+)\s+([\d.]+) processor s\s+([\d.]+) s", output, re.MULTILINE):
        print("step", *line)


# --- PyTorch ---


def network(asked, name):
    """diffusers' UNet with weights without meaning, and inputs for it."""
    import torch
    from diffusers import UNet2DConditionModel, logging

    logging.set_verbosity_error()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
    config = json.loads((CONFIGS / asked.model / "unet.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet = unet.to_empty(device="cpu").to(dtype).eval().requires_grad_(False)
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.02)
    latents = torch.randn(1, config["in_channels"], asked.height, asked.width, dtype=dtype)
    return unet, (latents, torch.tensor(500.0), torch.randn(1, 77, config["cross_attention_dim"], dtype=dtype))


def torch_steps(asked, wrap=lambda unet, name: unet):
    import torch

    torch.set_num_threads(CORES)
    for name in TYPES:
        unet, (latents, *others) = network(asked, name)
        unet, latents = (of.to(memory_format=torch.channels_last) for of in (unet, latents))
        with torch.no_grad():
            forward = wrap(unet, name)
            third(name, lambda: forward(latents, *others, return_dict=False))
        del unet, forward


def compile_steps(asked):
    # The first round compiles, and the others find its work here.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(pathlib.Path(asked.folder) / "inductor")
    import torch

    def wrap(unet, name):
        compiled = torch.compile(unet, dynamic=False)

        def forward(*arguments, **options):
            start = time.perf_counter()
            output = compiled(*arguments, **options)
            if not forward.called:
                print(f"torch.compile, {name}: {time.perf_counter() - start:.0f} s for the first step", file=sys.stderr)
            forward.called = True
            return output

        forward.called = False
        return forward

    torch_steps(asked, wrap)


# --- OpenVINO ---


def openvino_convert(asked):
    import openvino
    import torch

    unet, inputs = network(asked, "f32")
    unet.config.return_dict = False
    with torch.no_grad():
        converted = openvino.convert_model(unet, example_input=inputs, input=[tuple(of.shape) for of in inputs])
    openvino.save_model(converted, pathlib.Path(asked.folder) / "unet.xml")


def openvino_steps(asked):
    import numpy
    import openvino

    core = openvino.Core()
    for name in TYPES:
        hints = {"INFERENCE_PRECISION_HINT": name, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": CORES}
        compiled = core.compile_model(pathlib.Path(asked.folder) / "unet.xml", "CPU", hints)
        inputs = [numpy.asarray(numpy.random.randn(*of.shape), numpy.float32) for of in compiled.inputs]
        third(name, lambda: compiled(inputs))
        del compiled


# --- stable-diffusion.cpp ---


def sd_cpp_checkpoint(asked):
    """Writes the whole model as a folder in the layout of diffusers, which sd-cli reads."""
    import torch
    from safetensors.torch import save_file

    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    noise = (0.02 * torch.randn(2**26)).half()
    for part, file in files.items():
        shapes = listing(CONFIGS / asked.model / f"{part}.keys")
        weights = {key: noise[: math.prod(shape)].clone().reshape(shape) for key, shape in shapes}
        target = pathlib.Path(asked.folder) / part / f"{file}.safetensors"
        target.parent.mkdir()
        save_file(weights, target)


def listing(file):
    """Keys and shapes of a list that scripts/true_configs.py has written."""
    for line in file.read_text().splitlines():
        pattern, shape, *runs = line.split(" ")
        shape = [int(side) for side in shape.split("x")] if shape != "scalar" else []
        for run in runs or [""]:
            *numbers, last = run.split(".")
            first, _, end = last.partition("-")
            for number in range(int(first), int(end or first) + 1) if last else [""]:
                filled = iter([*numbers, str(number)])
                yield re.sub(r"(?<=\.)#(?=\.)|^#(?=\.)|(?<=\.)#$", lambda _: next(filled), pattern), shape


def sd_cpp_steps(asked):
    """Draws in three steps, whose ends sd-cli tells by its progress, and stops it before it decodes."""
    size = ["-W", str(8 * asked.width), "-H", str(8 * asked.height)]
    plain = ["--cfg-scale", "1", "--steps", "3", "--sampling-method", "euler", "-p", "a boat", "-t", str(CORES)]
    for name in TYPES:
        command = [*shlex.split(asked.sd_cpp), "-m", asked.folder, *size, *plain, "--type", name, "-o", f"{asked.folder}/picture.png"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, ends = b"", {}
        while len(ends) < 3 and (piece := os.read(process.stdout.fileno(), 4096)):
            said += piece
            for step in re.findall(rb"\| (\d)/3 - [\d.]+(?:s/it|it/s)", said):
                ends.setdefault(int(step), (processor_seconds(process.pid), time.perf_counter()))
        process.kill()
        process.wait()
        if len(ends) < 3:
            sys.exit(f"{' '.join(command)} took no three steps:\n{said.decode(errors='replace')[-2000:]}")
        print("step", name, *(end - start for start, end in zip(ends[2], ends[3])), flush=True)


def processor_seconds(pid):
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


# What each side does once before the rounds, and in each.
SIDES = {
    "easel": (None, easel_steps),
    "torch": (None, torch_steps),
    "compile": (None, compile_steps),
    "openvino": (openvino_convert, openvino_steps),
    "sd.cpp": (sd_cpp_checkpoint, sd_cpp_steps),
}

if __name__ == "__main__":
    main()
