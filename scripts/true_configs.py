"""Lists the tensors of full-size models: for every configuration in models/tests/data/true_configs, the keys and shapes
of the real diffusers or transformers class, built on torch's meta device, so that nothing is downloaded or allocated.

    pip install -r scripts/goldens-requirements.txt
    python scripts/true_configs.py             # writes the .keys files anew
    python scripts/true_configs.py --check     # fails where a .keys file is not what it should be

A configuration is MODEL/PART.json, as it is published in PART/config.json, less what no class reads. Its list is
MODEL/PART.keys; a line is a key with # in the place of numbers, its shape, and the numbers: 0-18 is a range, 1.0-2 two
numbers, the second a range. models/tests/true_configs holds easel's networks to the lists.
"""
import argparse
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import transformers
from accelerate import init_empty_weights

DATA = Path(__file__).resolve().parent.parent / "models" / "tests" / "data" / "true_configs"


def build(config):
    """The model of a configuration, without memory."""
    with init_empty_weights(include_buffers=True):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        cls = getattr(transformers, config["architectures"][0])
        return cls(cls.config_class.from_dict(config))


def tensors(model):
    """Keys and shapes as published files have them."""
    # A tensor that two layers share is stored under the first of its names only.
    names = {name for name, _ in model.named_parameters()}
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)} - names
    # transformers 5 leaves this prefix out; the published files were written before.
    prefix = "text_model." if isinstance(model, transformers.CLIPTextModel) else ""
    return {prefix + key: tuple(value.shape) for key, value in model.state_dict().items() if key not in shared}


def ranges(numbers):
    """[(1, 0), (1, 1), (2, 0)] as "1.0-1 2.0"."""
    runs = []
    for number in sorted(numbers):
        if runs and runs[-1][0][:-1] == number[:-1] and runs[-1][1] + 1 == number[-1]:
            runs[-1][1] += 1
        else:
            runs.append([number, number[-1]])
    words = []
    for first, last in runs:
        word = ".".join(map(str, first))
        words.append(word if last == first[-1] else f"{word}-{last}")
    return " ".join(words)


def listing(shapes):
    patterns = defaultdict(dict)
    for key, shape in shapes.items():
        words = key.split(".")
        pattern = tuple(None if word.isdigit() else word for word in words)
        patterns[pattern][tuple(int(word) for word in words if word.isdigit())] = shape
    lines = []
    for pattern, found in patterns.items():
        # A number that is the same in all keys is part of the name.
        columns = list(zip(*found))
        fixed = iter([len(set(column)) == 1 for column in columns])
        values = iter(column[0] for column in columns)
        words = []
        for word in pattern:
            number = None if word is not None else next(values)
            words.append(word or (str(number) if next(fixed) else "#"))
        varying = [at for at, column in enumerate(columns) if len(set(column)) > 1]
        sizes = defaultdict(list)
        for numbers, shape in found.items():
            sizes[shape].append(tuple(numbers[at] for at in varying))
        for shape, numbers in sizes.items():
            size = "x".join(map(str, shape)) or "scalar"
            lines.append(" ".join(filter(None, [".".join(words), size, ranges(numbers) if varying else ""])))
    return "\n".join(sorted(lines)) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    wrong = []
    for path in sorted(DATA.glob("*/*.json")):
        text = listing(tensors(build(json.loads(path.read_text()))))
        keys = path.with_suffix(".keys")
        if not args.check:
            keys.write_text(text)
        elif not keys.exists() or keys.read_text() != text:
            wrong.append(str(keys.relative_to(DATA)))
    if wrong:
        sys.exit("these lists are not what the reference gives: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
