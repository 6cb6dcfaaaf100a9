"""Makes the merges of the tokenizers that ship inside, from vocabularies that PyPI packages have:

    pip download --no-deps open_clip_torch dashscope; unzip each
    python scripts/tokenizer_merges.py clip open_clip/bpe_simple_vocab_16e6.txt.gz
    python scripts/tokenizer_merges.py qwen dashscope/resources/qwen.tiktoken

CLIP's was published by OpenAI under the MIT licence, Qwen's by Alibaba Cloud under the Apache licence 2.0. In both, every
token but the bytes (and CLIP's bytes at the end of a word) is a merge of two earlier ones, and its id is its place. So a
merge is written as two ids, the lower byte first, of two bytes each for CLIP and of three for Qwen:
models/src/weights/single_file/NAME_merges.bin.
"""
import base64
import gzip
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "models/src/weights/single_file"


def byte_order():
    """The bytes in the order of their ids: the printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in printable]


def clip(path):
    """Pairs of ids; the file's lines are the merges themselves, after its version, and go on after those in use."""
    order = byte_order()
    letters = [chr(byte if at < 188 else 0x100 + at - 188) for at, byte in enumerate(order)]
    ids = {token: at for at, token in enumerate(letters + [letter + "</w>" for letter in letters])}
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")
    pairs = []
    for line in lines[1 : 49408 - 2 - len(ids) + 1]:
        left, right = line.split()
        pairs.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    return pairs


def qwen(path):
    """Pairs of ids; the file has the tokens, and the merge is how the ones before it would leave each."""
    ranks = {}
    for line in open(path, "rb").read().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    assert [ranks[bytes([byte])] for byte in byte_order()] == list(range(256))
    assert sorted(ranks.values()) == list(range(len(ranks)))
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1])[256:]:
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            found = [(ranks.get(parts[at] + parts[at + 1], rank), at) for at in range(len(parts) - 1)]
            best, at = min(found)
            assert best < rank, token
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        pairs.append((ranks[parts[0]], ranks[parts[1]]))
    return pairs


def main():
    name, path = sys.argv[1:]
    pairs, size = {"clip": (clip, 2), "qwen": (qwen, 3)}[name][0](path), {"clip": 2, "qwen": 3}[name]
    data = b"".join(number.to_bytes(size, "little") for pair in pairs for number in pair)
    (FOLDER / f"{name}_merges.bin").write_bytes(data)


if __name__ == "__main__":
    main()
