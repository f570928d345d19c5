#!/usr/bin/env python3
"""text_to_shards.py - text files to token shards, one token a byte.

    FILE FILE ... -> concatenated -> first 90% train | last 10% val -> DIR/train_000000.bin ... DIR/val_000000.bin ...

Shard  = 256 int32 (magic, version, number of tokens, zeros), then the tokens: 1,024 bytes + tokens x 2 (uint32: x 4).
Tokens = bytes 0..255, so --vocab 256 is enough and text comes back from tokens without a table.
1.1 MB of text = 1.1M tokens = 1.0M train + 0.1M val = 2.0 MB + 0.2 MB on disk.

uint16  magic 20240520 version 1 (GPT-2's format in llm.c)      uint32  magic 20240801 version 7 (Llama 3's)
A shard is written under a temporary name and renamed when complete. Standard library only.
"""

import argparse
import array
import os
import re
import sys

FORMATS = {"H": (20240520, 1), "I": (20240801, 7)}  # by array type code: uint16, uint32
MAX_TOKENS = 2**31 - 1  # the header's count is an int32


def stop(message):
    sys.exit(f"text_to_shards: error: {message}")


def read_text(paths):
    text = bytearray()
    for path in paths:
        try:
            with open(path, "rb") as file:
                text += file.read()
        except OSError as error:
            stop(f"cannot read {path}: {error.strerror}")
    return bytes(text)


def write_shard(path, tokens, code):
    magic, version = FORMATS[code]
    header = array.array("i", [magic, version, len(tokens)] + [0] * 253)
    body = array.array(code, iter(tokens))  # values; from bytes it would take the raw memory
    if header.itemsize != 4 or body.itemsize != {"H": 2, "I": 4}[code]:
        stop("this Python's integers have unexpected sizes")
    if sys.byteorder == "big":
        header.byteswap()
        body.byteswap()
    temporary = f"{path}.tmp.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            header.tofile(file)
            body.tofile(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        stop(f"cannot write {path}: {error.strerror}")


def split_shards(directory, name, text, limit):
    """`text` in files of at most `limit` tokens: a list of (path, tokens)."""
    if not text:
        return []
    count = -(-len(text) // limit)
    size = -(-len(text) // count)  # equal parts: a tiny last shard could not hold a sequence
    return [(os.path.join(directory, f"{name}_{i:06d}.bin"), text[i * size : (i + 1) * size]) for i in range(count)]


def refuse_others(directory, name, shards):
    """A shard of an earlier, longer text would be read as part of this one."""
    ours = {os.path.basename(path) for path, _ in shards}
    for other in sorted(os.listdir(directory)):
        if re.fullmatch(name + r"_\d{6}\.bin", other) and other not in ours:
            stop(f"{directory} holds {other} of another text, which would be read too; remove it or choose "
                 "another --out")


def parse_arguments():
    about, _, arithmetic = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="text_to_shards.py", description=about, epilog=arithmetic,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: stop(f"{message}; --help says more")
    parser.add_argument("files", nargs="+", metavar="FILE", help="text, or any bytes; concatenated in this order")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go; made if missing")
    parser.add_argument("--val-fraction", type=float, default=0.1, metavar="F",
                        help="share of the text, at its end, for validation [0.1]")
    parser.add_argument("--shard-tokens", type=int, default=100_000_000, metavar="N",
                        help="most tokens in one shard [100000000]")
    parser.add_argument("--uint32", action="store_true", help="4 bytes a token instead of 2 (Llama 3's format)")
    args = parser.parse_args()
    if not 0 <= args.val_fraction < 1:
        stop(f"--val-fraction {args.val_fraction}: must be at least 0 and less than 1")
    if not 2 <= args.shard_tokens <= MAX_TOKENS:
        stop(f"--shard-tokens {args.shard_tokens}: must be from 2 to {MAX_TOKENS}")
    return args


def main():
    args = parse_arguments()
    text = read_text(args.files)
    if not text:
        stop("the text is empty" if len(args.files) > 1 else f"{args.files[0]} is empty")
    train = int(len(text) * (1 - args.val_fraction) + 1e-6)
    if train < 2 or (args.val_fraction > 0 and len(text) - train < 2):
        stop(f"{len(text)} bytes are too few: training and validation need at least 2 tokens each")
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        stop(f"cannot make the directory {args.out}: {error.strerror}")
    names = {"train": text[:train], "val": text[train:]}
    shards = {name: split_shards(args.out, name, part, args.shard_tokens) for name, part in names.items()}
    for name in shards:
        refuse_others(args.out, name, shards[name])
    for name, part in names.items():
        for path, tokens in shards[name]:
            write_shard(path, tokens, "I" if args.uint32 else "H")
        if part:
            count = len(shards[name])
            print(f"{name:5s} {len(part):>12,d} tokens in {count} shard{'s' if count > 1 else ''}: "
                  f"{shards[name][0][0]}{' ...' if count > 1 else ''}")


if __name__ == "__main__":
    main()
