#!/usr/bin/env python3
"""A denoiser's step at its true size: easel against PyTorch, interleaved in one run, as ratios.

    pip install torch diffusers
    python benches/peers.py [MODEL [HEIGHT WIDTH]] [--rounds N]

MODEL is a folder of models/tests/data/true_configs with a UNet; the sides are those of the latents. Both sides have weights of
the real shapes and no meaning. PyTorch runs diffusers' own network, channels last, without gradients. Each round
starts a fresh process of either side, easel first and then PyTorch, and counts its third step. Processor seconds are what can be compared on a
machine with other work; wall seconds say how well the work was shared among the cores.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "models/tests/data/true_configs"


def torch_steps(model, height, width):
    """Prints a line for each type: its name, processor and wall seconds of the third step."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = json.loads((CONFIGS / model / "unet.json").read_text())
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        unet = unet.to_empty(device="cpu").to(dtype).eval().to(memory_format=torch.channels_last)
        for parameter in unet.parameters():
            parameter.data.zero_()
        latents = torch.randn(1, config["in_channels"], height, width, dtype=dtype).to(memory_format=torch.channels_last)
        states = torch.randn(1, 77, config["cross_attention_dim"], dtype=dtype)
        with torch.no_grad():
            for _ in range(3):
                wall, processor = time.perf_counter(), time.process_time()
                unet(latents, torch.tensor(500.0), states)
                seconds = time.process_time() - processor, time.perf_counter() - wall
        print(name, *seconds, flush=True)
        del unet


def easel_steps(model, height, width):
    command = ["cargo", "bench", "-q", "-p", "easel-models", "-p", "easel-kernels", "--bench", "denoiser", "--profile", "dev", "--"]
    output = subprocess.run([*command, model, str(height), str(width)], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name: (float(p), float(w)) for name, p, w in re.findall(r"(\w+)\s+([\d.]+) processor s\s+([\d.]+) s", output.stdout)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sd15")
    parser.add_argument("height", nargs="?", type=int, default=64)
    parser.add_argument("width", nargs="?", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.torch:
        return torch_steps(asked.model, asked.height, asked.width)

    seconds = {}
    for _ in range(asked.rounds):
        for name, pair in easel_steps(asked.model, asked.height, asked.width).items():
            seconds.setdefault(("easel", name), []).append(pair)
        own = [sys.executable, __file__, "--torch", asked.model, str(asked.height), str(asked.width)]
        output = subprocess.run(own, check=True, capture_output=True, text=True).stdout
        for line in output.splitlines():
            name, processor, wall = line.split()
            seconds.setdefault(("PyTorch", name), []).append((float(processor), float(wall)))
    medians = {key: [statistics.median(values) for values in zip(*pairs)] for key, pairs in seconds.items()}
    print(f"{asked.model}, latents {asked.height}x{asked.width}, one row, medians of {asked.rounds} rounds")
    for (peer, name), (processor, wall) in medians.items():
        theirs = medians["PyTorch", name]
        print(f"{peer:<8} {name:<5} {processor:>7.2f} processor s {wall:>7.2f} s   "
              f"PyTorch / this: {theirs[0] / processor:.2f}x processor, {theirs[1] / wall:.2f}x wall")


if __name__ == "__main__":
    main()
