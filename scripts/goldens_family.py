"""What the scripts of the families share: strong weights, a mask, how a folder of pictures is written down, and the command
line."""
import argparse
import json
import math
import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from goldens_pictures import start_image

# Tables and single tokens, which nothing is multiplied by.
TABLES = ("shared.weight", "embedding.weight", "embed_tokens.weight", "pad_token")


@torch.no_grad()
def strong(module, seed, gain=1.0):
    """Weights that all matter: norms are not the identity, biases and pad tokens not zero; stored as f16 without loss."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in sorted(module.named_parameters()):
        values = torch.randn(p.shape, generator=rng)
        if p.ndim >= 2 and not name.endswith(TABLES):
            values *= gain / math.sqrt(p[0].numel())
        elif p.ndim == 1 and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif p.ndim == 1:
            values *= 0.2
        p.copy_(values.half().float())
    for name, b in sorted(module.named_buffers()):
        if name.endswith("running_mean"):
            b.copy_((0.3 * torch.randn(b.shape, generator=rng)).half().float())
        if name.endswith("running_var"):
            b.copy_((0.5 + torch.rand(b.shape, generator=rng)).half().float())
    return module.eval()


def save(pipe, folder, tokenizers):
    """Saves a pipeline in f16, with these folders of tokenizers as they are already: transformers would rewrite them in its
    newest form."""
    files = {f: f.read_bytes() for part in tokenizers for f in (folder / part).iterdir()}
    pipe.to(torch.float16).save_pretrained(folder)
    for part in tokenizers:
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
    for file, content in files.items():
        file.write_bytes(content)


def mask_image(size):
    """A slanted band, with grey values on both sides of one half."""
    y, x = np.mgrid[0:size[1], 0:size[0]]
    return Image.fromarray(np.uint8(np.clip(128 + 6 * (x - y + 8), 0, 255)))


def write_pictures(folder, name, rows):
    """`rows` are (case, image, latents): writes the pictures, and gives the lines of cases.json and the latents by file."""
    cases, latents = [], {}
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for i, (what, image, finished) in enumerate(rows):
        file = f"{name}-{i:02}.png"
        image.save(folder / "pictures" / file, optimize=True)
        latents[file] = finished.contiguous().clone()
        cases.append(dict(model=name, file=file, **what))
    return cases, latents


def finish(folder, cases, latents):
    """Writes the pictures that the cases start from, the latents and the cases."""
    sizes = {(c["width"], c["height"]) for c in cases if c["strength"] is not None}
    sizes |= {tuple(r) for c in cases for r in c["references"]}
    for size in sorted(sizes):
        start_image(*size).save(folder / "pictures" / f"start-{size[0]}x{size[1]}.png", optimize=True)
        mask_image(size).save(folder / "pictures" / f"mask-{size[0]}x{size[1]}.png", optimize=True)
    save_file(latents, folder / "latents.safetensors")
    lines = ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases)
    (folder / "cases.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def run(about, generate, random_spec):
    """A script's command line: the committed models, or N that nobody chose, written into a folder."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=int, default=0, help="this many random configurations instead")
    parser.add_argument("--first", type=int, default=0, help="the first one's number")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    models = {f"random{i}": random_spec(i) for i in range(args.first, args.first + args.random)}
    generate(args.folder, *[models] if models else [])
