#!/usr/bin/env python3
"""text_to_shards.py - text files to token shards, one token a byte.

    FILE ... -> concatenated -> first 90% train | last 10% val -> DIR/train_000000.bin ... DIR/val_000000.bin ...

Tokens = bytes 0..255, so --vocab 256 is enough and text comes back from tokens without a table.
1.1 MB of text = 1.1M tokens = 1.0M train + 0.1M val = 2.0 MB + 0.2 MB on disk. The files: shards.py. Documents that
stay apart, other tokenizers, large sets: prepare.py. Standard library only.
"""

import array
import os

import shards
from shards import stop


def read_text(paths):
    text = bytearray()
    for path in paths:
        try:
            with open(path, "rb") as file:
                text += file.read()
        except OSError as error:
            stop(f"cannot read {path}: {error.strerror}")
    return bytes(text)


def main():
    args = shards.parse_arguments(shards.argument_parser(
        __doc__, ("files", "FILE"), "text, or any bytes; concatenated in this order", "share, at the end,",
        "4 bytes a token instead of 2 (Llama 3's format)"))
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
    width = 4 if args.uint32 else 2
    parts = {"train": text[:train], "val": text[train:]}
    cuts = {split: shards.even_parts(len(part), args.shard_tokens) for split, part in parts.items()}
    shards.refuse_others(args.out, {shards.shard_name(s, i) for s in cuts for i in range(len(cuts[s]))})
    stale = os.path.join(args.out, "dataset.json")
    if os.path.exists(stale):
        os.unlink(stale)
    splits = {}
    for split, part in parts.items():
        if not part:
            continue
        files = {}
        for i, (begin, end) in enumerate(cuts[split]):
            values = iter(part[begin:end])  # bytes themselves would be taken for the array's raw memory
            tokens = array.array(shards.CODES[width], values)
            name = shards.shard_name(split, i)
            files[name] = shards.write_shard(os.path.join(args.out, name), width, end - begin, [tokens])
        splits[split] = {"tokens": len(part), "documents": 0, "text_bytes": len(part), "files": files}
        shards.print_split(split, len(part), list(files), args.out)
    shards.write_dataset(args.out, {"kind": "bytes", "name": "bytes"}, 256, None, width, splits)


if __name__ == "__main__":
    main()
