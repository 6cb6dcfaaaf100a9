#!/usr/bin/env python3
"""A denoiser's step at its true size: easel against PyTorch and OpenVINO, interleaved in one run, as ratios.

    pip install torch diffusers openvino
    python benches/peers.py [MODEL [HEIGHT WIDTH]] [--rounds N]

MODEL is a folder of models/tests/data/true_configs with a UNet; the sides are those of the latents. Both sides have weights of
the real shapes and no meaning. PyTorch runs diffusers' own network, channels last, without gradients; OpenVINO, which is
left out where it is not installed, runs what it makes of that network. Each round
starts a fresh process of each side, one after the other, and counts its third step. Processor seconds are what can be compared on a
machine with other work; wall seconds say how well the work was shared among the cores.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "models/tests/data/true_configs"
CORES = len(os.sched_getaffinity(0))


def third(name, step):
    """Takes three steps, and prints the name with processor and wall seconds of the third."""
    for _ in range(3):
        wall, processor = time.perf_counter(), time.process_time()
        step()
        seconds = time.process_time() - processor, time.perf_counter() - wall
    print(name, *seconds, flush=True)


def network(model, height, width, dtype):
    """diffusers' UNet with weights without meaning, and inputs for it."""
    import torch
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS / model / "unet.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet = unet.to_empty(device="cpu").to(dtype).eval()
    for parameter in unet.parameters():
        parameter.data.normal_(0, 0.02)
    latents = torch.randn(1, config["in_channels"], height, width, dtype=dtype)
    return unet, (latents, torch.tensor(500.0), torch.randn(1, 77, config["cross_attention_dim"], dtype=dtype))


def torch_steps(model, height, width, _folder):
    import torch

    torch.set_num_threads(CORES)
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        unet, (latents, *others) = network(model, height, width, dtype)
        unet, latents = (of.to(memory_format=torch.channels_last) for of in (unet, latents))
        with torch.no_grad():
            third(name, lambda: unet(latents, *others))
        del unet


def openvino_steps(model, height, width, folder):
    """Steps of the network that the first call converts into `folder`."""
    import openvino

    file = pathlib.Path(folder) / "unet.xml"
    if not file.exists():
        import torch

        unet, inputs = network(model, height, width, torch.float32)
        unet.config.return_dict = False
        with torch.no_grad():
            converted = openvino.convert_model(unet, example_input=inputs, input=[tuple(of.shape) for of in inputs])
        openvino.save_model(converted, file)
        return
    core = openvino.Core()
    for name in ("f32", "bf16"):
        hints = {"INFERENCE_PRECISION_HINT": name, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": CORES}
        compiled = core.compile_model(file, "CPU", hints)
        inputs = [numpy_noise(of.shape) for of in compiled.inputs]
        third(name, lambda: compiled(inputs))
        del compiled


def numpy_noise(shape):
    import numpy

    return numpy.asarray(numpy.random.randn(*shape), numpy.float32)


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
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    shape = asked.model, asked.height, asked.width
    if asked.peer:
        return PEERS[asked.peer](*shape, asked.folder)

    with tempfile.TemporaryDirectory() as folder:
        compare(shape, asked.rounds, folder)


def compare(shape, rounds, folder):
    def steps(peer):
        own = [sys.executable, __file__, "--peer", peer, "--folder", folder, *map(str, shape)]
        output = subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines = (line.split() for line in output.splitlines())
        return {line[0]: (float(line[1]), float(line[2])) for line in lines if len(line) == 3 and line[0] in ("f32", "bf16")}

    peers = [peer for peer in PEERS if importlib.util.find_spec(peer)]
    if "openvino" in peers:
        steps("openvino")
    seconds = {}
    for _ in range(rounds):
        for peer in ["easel", *peers]:
            taken = easel_steps(*shape) if peer == "easel" else steps(peer)
            for name, pair in taken.items():
                seconds.setdefault((peer, name), []).append(pair)
    medians = {key: [statistics.median(values) for values in zip(*pairs)] for key, pairs in seconds.items()}
    model, height, width = shape
    print(f"{model}, latents {height}x{width}, one row, medians of {rounds} rounds; {' '.join(map(version, peers))}")
    for (peer, name), (processor, wall) in medians.items():
        ratios = [f"{other} / this {medians[other, name][1] / wall:.2f}x" for other in peers]
        print(f"{peer:<9} {name:<5} {processor:>7.2f} processor s {wall:>7.2f} s   {'   '.join(ratios)}")


def version(peer):
    return f"{peer} {importlib.metadata.version(peer)}"


PEERS = {"torch": torch_steps, "openvino": openvino_steps}

if __name__ == "__main__":
    main()
