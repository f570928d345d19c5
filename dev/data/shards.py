"""shards.py - the one writer of token shards, masks and dataset.json; for text_to_shards.py and prepare.py.

    NAME.bin        256 int32 (magic, version, number of tokens, zeros), then the tokens, 2 or 4 bytes each
    NAME_mask.bin   the same header with a magic of its own, then a byte a token: 1 where it counts as a target, else 0
    dataset.json    tokenizer, vocabulary, end-of-text token; of every shard tokens, documents, largest token and sum

uint16  magic 20240520 version 1 (GPT-2's format in llm.c)      uint32  magic 20240801 version 7 (Llama 3's)
A file is written under a temporary name and renamed when it is complete and on disk. Standard library only.
"""

import argparse
import array
import json
import operator
import os
import re
import sys

FORMATS = {1: (20261126, 1), 2: (20240520, 1), 4: (20240801, 7)}  # magic, version by bytes a token; 1: a mask
CODES = {1: "B", 2: "H", 4: "I"}  # array's letters for them
MAX_TOKENS = 2**31 - 1  # the header's count is an int32
U64 = 2**64 - 1
SUM_WORDS = 1024  # of a block that shares one key


def stop(message):
    """End with one line; nothing half-written stays under a name that is read."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    sys.exit(f"{name}: error: {message}")


def argument_parser(doc, inputs, inputs_help, share, wide):
    """A tool's parser: its docstring is the help, and what all tools that write shards take is there. share: of what
    --val-fraction is a part; wide: what --uint32 does."""
    about, _, more = doc.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=about,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: stop(f"{message}; --help says more")
    add = parser.add_argument
    add(inputs[0], nargs="+", metavar=inputs[1], help=inputs_help)
    add("--out", required=True, metavar="DIR", help="where the shards go; made if missing")
    add("--val-fraction", type=float, default=0.1, metavar="F", help=f"{share} for validation [0.1]")
    add("--shard-tokens", type=int, default=100_000_000, metavar="N", help="most tokens in one shard [100000000]")
    add("--uint32", action="store_true", help=wide)
    return parser


def parse_arguments(parser):
    args = parser.parse_args()
    if not 0 <= args.val_fraction < 1:
        stop(f"--val-fraction {args.val_fraction}: must be at least 0 and less than 1")
    if not 2 <= args.shard_tokens <= MAX_TOKENS:
        stop(f"--shard-tokens {args.shard_tokens}: must be from 2 to {MAX_TOKENS}")
    return args


def mix64(x):
    """splitmix64's finaliser, as core/util.h has it."""
    x = (x + 0x9E3779B97F4A7C15) & U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    return x ^ (x >> 31)


WORD_KEYS = [mix64(j) | 1 for j in range(SUM_WORDS)]


class Sum:
    """The sum of a file's bytes as core/manifest.h defines it, from bytes that come in order."""

    def __init__(self):
        self.total, self.block, self.rest = 0, 0, b""

    def _take(self, words):
        key = mix64(self.block + 2**32) | 1
        self.total += sum(map(operator.mul, words, WORD_KEYS)) * key
        self.block += 1

    def add(self, data):
        data = self.rest + data
        whole = len(data) // (4 * SUM_WORDS) * SUM_WORDS
        words = array.array("I", data[: 4 * whole])
        if sys.byteorder == "big":
            words.byteswap()
        for at in range(0, whole, SUM_WORDS):
            self._take(words[at : at + SUM_WORDS])
        self.total &= U64
        self.rest = data[4 * whole :]

    def text(self):
        words = array.array("I", self.rest + bytes(-len(self.rest) % 4))
        if sys.byteorder == "big":
            words.byteswap()
        end = sum(map(operator.mul, words, WORD_KEYS)) * (mix64(self.block + 2**32) | 1)
        return f"{(self.total + end) & U64:016x}"


def little(tokens):
    """An array of tokens as the bytes of a file."""
    if sys.byteorder == "big":
        tokens = array.array(tokens.typecode, tokens)
        tokens.byteswap()
    return tokens.tobytes()


def write_atomically(path, blocks):
    temporary = f"{path}.tmp.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        stop(f"cannot write {path}: {error.strerror}")


def mask_path(path):
    return path[: -len(".bin")] + "_mask.bin"


def write_shard(path, width, count, blocks, ends=None):
    """`count` tokens of `width` bytes, which come as arrays, into a new file; width 1: a mask.

    Returns what dataset.json says of it: tokens, the largest, the sum, and how many are `ends`.
    """
    magic, version = FORMATS[width]
    found = {"tokens": 0, "documents": 0, "largest": 0}
    digest = Sum()

    def pieces():
        header = array.array("i", [magic, version, count] + [0] * 253)
        if header.itemsize != 4 or array.array("I").itemsize != 4:
            stop("this Python's integers have unexpected sizes")
        digest.add(little(header))
        yield little(header)
        for block in blocks:
            found["tokens"] += len(block)
            found["largest"] = max(found["largest"], max(block, default=0))
            found["documents"] += block.count(ends) if ends is not None else 0
            data = little(block)
            digest.add(data)
            yield data
        if found["tokens"] != count:
            raise AssertionError(f"{path}: {found['tokens']} tokens, not {count}")

    write_atomically(path, pieces())
    found["sum"] = digest.text()
    return found


def even_parts(total, limit):
    """[(begin, end)] of equal parts of at most `limit` of `total`: a tiny last shard could not hold a sequence."""
    if total == 0:
        return []
    count = -(-total // limit)
    size = -(-total // count)
    return [(begin, min(begin + size, total)) for begin in range(0, total, size)]


def shard_name(split, index):
    return f"{split}_{index:06d}.bin"


def refuse_others(directory, ours):
    """A shard or a mask of an earlier, longer text would be read as part of this one."""
    for other in sorted(os.listdir(directory)):
        if re.fullmatch(r"(train|val)_\d{6}(_mask)?\.bin", other) and other not in ours:
            why = f"{directory} holds {other} of another text, which would be read too"
            stop(f"{why}; remove it or choose another --out")


def write_dataset(directory, tokenizer, vocab, eot, width, splits):
    """dataset.json, last of all: `splits` has tokens, documents, text_bytes and files by the name of the split."""
    root = {"format": "odysseus.c dataset", "version": 1, "tokenizer": tokenizer, "vocab": vocab, "eot": eot}
    root.update({"token_bytes": width, "splits": splits})
    text = json.dumps(root, indent=1) + "\n"
    write_atomically(os.path.join(directory, "dataset.json"), [text.encode()])


def print_split(split, tokens, names, directory):
    more = f" in {len(names)} shard{'s' if len(names) > 1 else ''}: {os.path.join(directory, names[0])}"
    print(f"{split:5s} {tokens:>12,d} tokens{more}{' ...' if len(names) > 1 else ''}", flush=True)
