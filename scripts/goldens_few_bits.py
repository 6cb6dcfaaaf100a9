"""Makes models/tests/data/few_bits.json: weights in few bits, and the values that the reference gives them.

ggml's blocks are random bytes, spread out by diffusers' own functions in f32, which agree with gguf-py's; fp8 is every byte, cast
by torch.

    pip install -r scripts/goldens-requirements.txt
    python scripts/goldens_few_bits.py
"""
import json
from pathlib import Path

import gguf
import torch
from diffusers.quantizers.gguf import utils

# Values and bytes of a block.
BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}
# Where the scales of a block are, in f16: random bytes there could be infinite.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}


def main():
    generator = torch.Generator().manual_seed(7)
    blocks = {}
    for name, (values, size) in BLOCKS.items():
        data = torch.randint(0, 256, (2, size), dtype=torch.uint8, generator=generator)
        for at in SCALES[name]:
            scale = torch.rand(2, 1, generator=generator).sub(0.5).half()
            data[:, at:at + 2] = scale.view(torch.uint8)
        spread = getattr(utils, f"dequantize_blocks_{name}")(data, values, size, dtype=torch.float32)
        other = torch.from_numpy(gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[name]))
        assert torch.allclose(spread, other.reshape(spread.shape), rtol=1e-6, atol=0), name
        blocks[name] = {"bytes": data.flatten().tolist(), "values": spread.float().flatten().tolist()}
    every = torch.arange(256, dtype=torch.uint8)
    fp8 = {}
    for name, dtype in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        # As bits, since JSON has no NaN.
        fp8[name] = every.view(dtype).float().view(torch.int32).tolist()
    path = Path(__file__).resolve().parent.parent / "models" / "tests" / "data" / "few_bits.json"
    path.write_text(json.dumps({"blocks": blocks, "fp8": fp8}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
