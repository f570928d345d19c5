#!/usr/bin/env python3
"""tokenizers_check.py - core/tokenizer.h and Hugging Face's tokenizers make the same tokens of the same texts.

Each DIR holds a published tokenizer: tokenizer.json, or GPT-2's vocab.json and merges.txt. Texts are the 10,000 that
test_tokenizer.c knows, and of each FILE the whole of it (its first 60,000 characters) and its lines. A text that a
tokenizer may bring into another normal form is refused here; how many of those had it all the same is told.

TAP. Run by hand when a tokenizer's files are at hand, which are too large to be kept here. Needs tokenizers.

  python3 -m venv /tmp/fx && /tmp/fx/bin/pip install tokenizers unicodedata2
  make build/test_tokenizer_fp32
  /tmp/fx/bin/python dev/test/tokenizers_check.py DIR... -- FILE...
"""
import os, struct, subprocess, sys, unicodedata
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "fixtures/tokenizers"))
import make  # noqa: E402

PROGRAM = os.path.join(HERE, "../../build/test_tokenizer_fp32")


def texts_of(files):
    texts = make.Texts()
    out = [texts.text() for _ in range(make.STRINGS)]
    for name in files:
        with open(name, encoding="utf-8", newline="") as f:
            whole = f.read(60000)
        out += [whole] + whole.split("\n")
    return [text for text in out if text and "\0" not in text]


def load(directory):
    path = os.path.join(directory, "tokenizer.json")
    if os.path.exists(path):
        return Tokenizer.from_file(path)
    files = [os.path.join(directory, name) for name in ("vocab.json", "merges.txt")]
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def encoded(directory, texts):
    """The tokens of each text; None: refused."""
    given = b"".join(struct.pack("<I", len(b)) + b for b in (text.encode() for text in texts))
    made = subprocess.run([PROGRAM, "encode", directory], input=given, stdout=subprocess.PIPE, check=True).stdout
    at, out = 0, []
    while at < len(made):
        (n,) = struct.unpack_from("<i", made, at)
        out.append(None if n < 0 else list(struct.unpack_from(f"<{n}i", made, at + 4)))
        at += 4 + 4 * max(n, 0)
    assert len(out) == len(texts)
    return out


def main():
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    directories, texts, failed = sys.argv[1:split], texts_of(sys.argv[split + 1:]), 0
    for i, directory in enumerate(directories):
        theirs = [e.ids for e in load(directory).encode_batch(texts)]
        ours = encoded(directory, texts)
        refused = [t for t, ids in zip(texts, ours) if ids is None]
        normal = sum(unicodedata.is_normalized("NFC", t) for t in refused)
        wrong = [t for t, ids, want in zip(texts, ours, theirs) if ids is not None and ids != want]
        failed += bool(wrong)
        print(f"{'not ok' if wrong else 'ok'} {i + 1} - {directory}: {len(wrong)} of {len(texts) - len(refused)} texts "
              f"differ, {sum(len(ids) for ids in ours if ids)} tokens; {len(refused)} refused for their normal form, "
              f"which {normal} of them had", flush=True)
        for text in wrong[:3]:
            print(f"# {text[:100]!r}")
    print(f"1..{len(directories)}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
