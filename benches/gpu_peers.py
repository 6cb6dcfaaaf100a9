#!/usr/bin/env python3
"""The models of `easel bench gpu` with diffusers on the same GPU: eager, and compiled by torch.compile.

    pip install torch diffusers
    python benches/gpu_peers.py [--models sd15,sdxl,flux-dev] [--rows 1,2,4,8,16] [--dtype bf16] [--calls 10] [--shrink 1]

The networks are diffusers' own, of the configurations in models/tests/data/true_configs, with random weights made on the GPU;
UNets are channels last. Times are medians of calls, each waited for, after three more. Options of `easel bench gpu` that have no
meaning here are ignored, so that scripts/gpu-bench can pass all on.

To try the script without a GPU, with networks of fewer layers:

    python benches/gpu_peers.py --device cpu --rows 1,2 --calls 1 --shrink 8 --layers 1
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "models/tests/data/true_configs"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
SIDES = {"sd15": 64, "sdxl": 128, "flux-dev": 128}


def random_weights(network):
    """Values of the size that trained weights have, so that nothing overflows on the way."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.02)
        else:
            parameter.data.normal_(mean=1.0, std=0.02)


def build(cls, config, device, dtype):
    """The network of a configuration on the device, of which it alone takes memory."""
    with torch.device("meta"):
        network = cls.from_config(config)
    network = network.to_empty(device=device).to(dtype).eval()
    random_weights(network)
    return network


def fewer(config, keys, most):
    """The configuration with numbers of layers no larger than `most`; all of them where that is None."""
    numbers = {key: config[key] for key in keys if key in config}
    cut = {key: [min(n, most) for n in of] if isinstance(of, list) else min(of, most) for key, of in numbers.items() if most}
    return config | cut


def unet(model, side, device, dtype, layers):
    from diffusers import UNet2DConditionModel

    config = json.loads((CONFIGS / model / "unet.json").read_text())
    config = fewer(config, ["layers_per_block", "transformer_layers_per_block"], layers)
    network = build(UNet2DConditionModel, config, device, dtype).to(memory_format=torch.channels_last)

    def inputs(rows):
        def noise(*shape):
            return torch.randn(*shape, device=device, dtype=dtype)

        latents = noise(rows, 4, side, side).to(memory_format=torch.channels_last)
        arguments = dict(sample=latents, timestep=torch.full((rows,), 500.0, device=device))
        arguments["encoder_hidden_states"] = noise(rows, 77, config["cross_attention_dim"])
        if config.get("addition_embed_type") == "text_time":
            size = [8.0 * side, 8.0 * side, 0.0, 0.0, 8.0 * side, 8.0 * side]
            time_ids = torch.tensor([size] * rows, device=device, dtype=dtype)
            arguments["added_cond_kwargs"] = {"text_embeds": noise(rows, 1280), "time_ids": time_ids}
        return arguments

    return network, inputs


def flux(model, side, device, dtype, layers):
    from diffusers import FluxTransformer2DModel

    config = json.loads((CONFIGS / model / "transformer.json").read_text())
    config = fewer(config, ["num_layers", "num_single_layers"], layers)
    network = build(FluxTransformer2DModel, config, device, dtype)

    def inputs(rows):
        def noise(*shape):
            return torch.randn(*shape, device=device, dtype=dtype)

        half = side // 2
        places = torch.zeros(half, half, 3, device=device, dtype=dtype)
        places[..., 1] += torch.arange(half, device=device, dtype=dtype)[:, None]
        places[..., 2] += torch.arange(half, device=device, dtype=dtype)[None, :]
        return dict(
            hidden_states=noise(rows, half * half, config["in_channels"]),
            encoder_hidden_states=noise(rows, 512, config["joint_attention_dim"]),
            pooled_projections=noise(rows, config["pooled_projection_dim"]),
            timestep=torch.full((rows,), 0.5, device=device, dtype=dtype),
            guidance=torch.full((rows,), 3.5, device=device, dtype=torch.float32),
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(512, 3, device=device, dtype=dtype),
        )

    return network, inputs


def median_ms(call, calls, device):
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        call()
    times = []
    for _ in range(calls):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="sd15,sdxl,flux-dev")
    parser.add_argument("--rows", default="1,2,4,8,16")
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--layers", type=int, help="most layers of a block, and blocks of a transformer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true")
    asked, _ = parser.parse_known_args()
    device = asked.device.split(":")[0]

    import diffusers

    diffusers.logging.set_verbosity_error()
    print(f"\n## diffusers {diffusers.__version__}, torch {torch.__version__}\n")
    print("| model | rows | eager, ms a step | torch.compile, ms a step |")
    print("|---|---|---|---|")
    for model in asked.models.split(","):
        side = max(8, -(-SIDES[model] // asked.shrink // 8) * 8)
        make = flux if model.startswith("flux") else unet
        network, inputs = make(model, side, device, DTYPES[asked.dtype], asked.layers)
        # PyTorch compiles a function for so many shapes only, of all models together.
        torch.compiler.reset()
        # A shape of its own for each number of rows is what a server would compile, too.
        compiled = None if asked.no_compile else torch.compile(network, dynamic=False)
        for rows in map(int, asked.rows.split(",")):
            arguments = inputs(rows)
            cells = []
            for forward in [network, compiled]:
                if forward is None:
                    cells.append("-")
                    continue
                try:
                    cells.append(f"{median_ms(lambda: forward(**arguments), asked.calls, device):.2f}")
                except torch.OutOfMemoryError:
                    cells.append("no room")
            print(f"| {model} | {rows} | {' | '.join(cells)} |", flush=True)
        del network, compiled
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
