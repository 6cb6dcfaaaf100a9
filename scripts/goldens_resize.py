#!/usr/bin/env python3
"""Writes pictures as Pillow resizes them, for the test of families/pixels.rs: models/tests/data/resize.json.
scripts/goldens.py calls it; alone:

    python scripts/goldens_resize.py
"""

import json
import pathlib

import numpy
from PIL import Image

DATA = pathlib.Path(__file__).resolve().parent.parent / "models/tests/data"


def picture(width: int, height: int) -> Image.Image:
    """Smooth waves with hard edges; families/pixels.rs makes the same."""
    y, x, c = numpy.mgrid[0:height, 0:width, 0:3]
    return Image.fromarray(((x * (5 + c) + y * (11 - 3 * c) + (x // 7 + y // 5) % 2 * 90) % 256).astype("uint8"))


def generate(data: pathlib.Path) -> None:
    cases = []
    for source, target in (((24, 20), (40, 32)), ((64, 48), (24, 32)), ((33, 17), (16, 17)), ((20, 50), (21, 8)), ((30, 40), (20, 20)), ((30, 40), (20, 18))):
        resized = picture(*source).resize(target, Image.Resampling.LANCZOS)
        cases.append({"source": source, "target": target, "pixels": numpy.asarray(resized).flatten().tolist()})
    (data / "resize.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    generate(DATA)
