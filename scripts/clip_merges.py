"""Makes models/src/weights/single_file/clip_merges.bin, the merges of CLIP's tokenizer, from the vocabulary that OpenAI
published with CLIP (MIT licence) and open_clip ships:

    pip download --no-deps open_clip_torch && unzip open_clip_torch-*.whl
    python scripts/clip_merges.py open_clip/bpe_simple_vocab_16e6.txt.gz

Every token but the bytes and the two marks is a merge of two earlier ones, so a merge is written as their two ids, of two
bytes each.
"""
import gzip
import struct
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "models/src/weights/single_file/clip_merges.bin"
TOKENS = 49408


def letters():
    """The letters that stand for the 256 bytes, in the order of their ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + at) for at in range(256 - len(printable))]


def main():
    lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")
    tokens = letters() + [letter + "</w>" for letter in letters()]
    ids = {token: at for at, token in enumerate(tokens)}
    merges = b""
    # The first line is the version; the file goes on after the merges that CLIP uses.
    for line in lines[1 : TOKENS - 2 - len(ids) + 1]:
        left, right = line.split()
        merges += struct.pack("<HH", ids[left], ids[right])
        ids[left + right] = len(ids)
    assert len(ids) == TOKENS - 2
    TARGET.write_bytes(merges)


if __name__ == "__main__":
    main()
