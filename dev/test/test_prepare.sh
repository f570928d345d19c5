#!/usr/bin/env bash
# test_prepare.sh - dev/data/prepare.py: documents into shards, masks and dataset.json, by any number of processes,
# after a kill, from every kind of input. What needs a Python package that is not here says so. TAP, run from the
# repository's root by scripts/test.sh after the binaries are built.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

prepare() { python3 dev/data/prepare.py "$@" >"$work/out" 2>&1; }
look() { ./train_gpt_cpu --seq-len 16 --check-data "$@" >>"$work/out" 2>&1; }
package() { python3 -c "import $1" 2>/dev/null; }
same() { diff -r "$work/$1" "$work/$2" >>"$work/out"; }

wrong() { # PATTERN ARGS...: one line of error that matches, exit code 1, nothing that a trainer would take for a set
    local pattern=$1
    shift
    rm -rf "$work/wrong"
    python3 dev/data/prepare.py --out "$work/wrong" "$@" >"$work/out" 2>&1
    [ $? -eq 1 ] && [ "$(wc -l <"$work/out")" -eq 1 ] && grep -Eq -- "^prepare: error: .*($pattern)" "$work/out" &&
        [ -z "$(find "$work/wrong" -maxdepth 1 -name '*.json' -o -name '*.bin' 2>/dev/null)" ]
    ok $? "refused: $(cut -c 17-150 "$work/out" | head -n 1)"
}

python3 - "$work" <<'PY'
import json, os, random, sys
random.seed(5)
d = sys.argv[1]
words = "the cat sat on a mat and then it went home to see what there was for dinner \u00e9\u20ac".split()
rows = []
for i in range(400):
    text = " ".join(random.choices(words, k=random.randrange(1, 60)))
    answer = " A: " + " ".join(random.choices(words, k=5))
    rows.append({"text": text, "q": "Q: " + random.choice(words), "a": answer, "n": i})
for name, part in (("all", rows), ("a", rows[:150]), ("b", rows[150:]), ("again", rows[::-1])):
    with open(f"{d}/{name}.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in part)
os.makedirs(d + "/folder/deep")
for i, row in enumerate(rows[:30]):
    open(f"{d}/folder/{'deep/' if i % 2 else ''}{i:02d}.txt", "w").write(row["text"])
with open(d + "/stories.txt", "w") as f:
    f.write("\n<|end|>\n".join(row["text"] for row in rows[:30]) + "\n<|end|>\n")
PY

# documents SET FIELD...: is what the shards hold, split at <eot>, what the fields of all.jsonl are, in their order?
documents() {
    python3 - "$work" "$@" >>"$work/out" 2>&1 <<'PY'
import array, glob, json, sys
d, name, *fields = sys.argv[1:]
dataset = json.load(open(f"{d}/{name}/dataset.json"))
want = ["".join(json.loads(line)[f] for f in fields) for line in open(d + "/all.jsonl")]
found, val = [], []
for split, into in (("train", found), ("val", val)):
    raw = array.array("H")
    for path in sorted(glob.glob(f"{d}/{name}/{split}_??????.bin")):
        raw.frombytes(open(path, "rb").read()[1024:])
    texts = bytes(list(raw)).decode().split("\0")
    assert texts.pop() == "", "the last document has no <eot>"
    into += texts
    files = dataset["splits"][split]["files"]
    assert sum(f["tokens"] for f in files.values()) == len(raw) == dataset["splits"][split]["tokens"]
    assert sum(f["documents"] for f in files.values()) == len(texts) == dataset["splits"][split]["documents"]
    assert dataset["splits"][split]["text_bytes"] == len(raw) - len(texts)
assert 10 < len(val) < 90, len(val)
in_val = set(val)
assert not in_val & set(found), "a document is of both splits"
assert found == [t for t in want if t not in in_val] and val == [t for t in want if t in in_val]
PY
}

# ---- the same bytes on any number of processes, from any cut of the input, after a kill
cut=(--unit-bytes 2000 --shard-tokens 20000)
prepare --out "$work/one" "$work/all.jsonl" "${cut[@]}" --processes 1 && look "$work/one/*.bin" && documents one text &&
    grep -q '^tokens .*100.0%' "$work/out" && [ "$(ls "$work/one" | grep -c train)" -gt 1 ]
ok $? "JSONL, byte by byte: documents in their order, <eot> behind each, and --check-data agrees"
prepare --out "$work/three" "$work/all.jsonl" "${cut[@]}" --processes 3 && same one three
ok $? "three processes write the same bytes"
prepare --out "$work/whole" "$work/a.jsonl" "$work/b.jsonl" --shard-tokens 20000 && same one whole
ok $? "two files in one unit are the same documents"
for ((try = 0, killed = 0; try < 20 && !killed; try++)); do
    rm -rf "$work/killed"
    python3 dev/data/prepare.py --out "$work/killed" "$work/all.jsonl" "${cut[@]}" --processes 2 >"$work/out" 2>&1 &
    while kill -0 $! 2>/dev/null && ! [ -e "$work/killed/.prepare/unit_000000.json" ]; do :; done
    kill -9 $! 2>/dev/null
    wait $! 2>/dev/null
    [ -e "$work/killed/.prepare/unit_000000.json" ] && [ ! -e "$work/killed/dataset.json" ] && killed=1
done
sleep 1 # its processes end by themselves, within a fifth of a second
cp -r "$work/killed" "$work/tainted"
cp -r "$work/killed" "$work/short"
[ $killed -eq 1 ] && prepare --out "$work/killed" "$work/all.jsonl" "${cut[@]}" --processes 2 && same one killed
ok $? "killed after its first unit, the same command ends with the same bytes"
printf '!' | dd of="$work/tainted/.prepare/unit_000000_train.tok" bs=1 conv=notrunc 2>/dev/null
prepare --out "$work/tainted" "$work/all.jsonl" "${cut[@]}" &&
    [ "$(cmp -l "$work/one/train_000000.bin" "$work/tainted/train_000000.bin" | wc -l)" -eq 1 ]
ok $? "... and does not make again what was made"
truncate -s 10 "$work/short/.prepare/unit_000000_train.tok"
prepare --out "$work/short" "$work/all.jsonl" "${cut[@]}" --processes 1
[ $? -eq 1 ] && grep -q 'prepare: error: .*unit_000000_train.tok is shorter than its record says' "$work/out"
ok $? "... nor takes what has become shorter"
(echo '{"text": "what is mended"}' && head -n 300 "$work/all.jsonl" && echo '{"text": 3}') >"$work/late.jsonl"
prepare --out "$work/mended" "$work/late.jsonl" "${cut[@]}" --processes 2
[ $? -eq 1 ] && grep -q "late.jsonl, byte [0-9]*: field 'text' is no text" "$work/out" &&
    cp "$work/all.jsonl" "$work/late.jsonl" &&
    prepare --out "$work/mended" "$work/late.jsonl" "${cut[@]}" --processes 2 && same one mended
ok $? "a wrong line ends all processes; mended, the same command goes on, and takes nothing from before"
prepare --out "$work/order" "$work/again.jsonl" --shard-tokens 20000 && python3 - "$work" >"$work/out" 2>&1 <<'PY'
import sys
read = lambda name: sorted(open(f"{sys.argv[1]}/{name}/val_000000.bin", "rb").read()[1024::2].split(b"\0"))
assert read("one") == read("order") and len(read("one")) > 10
PY
ok $? "in another order the same documents are of validation"

# ---- kinds of input
prepare --out "$work/files" "$work/folder" --val-fraction 0 &&
    prepare --out "$work/parted" "$work/stories.txt" --separator '<|end|>' --val-fraction 0 --unit-bytes 500 &&
    python3 - "$work" >"$work/out" 2>&1 <<'PY'
import json, sys
read = lambda name: open(f"{sys.argv[1]}/{name}/train_000000.bin", "rb").read()[1024::2].decode().split("\0")[:-1]
rows = [json.loads(line)["text"] for line in open(sys.argv[1] + "/all.jsonl")][:30]
assert read("parted") == rows and read("files") == rows[0::2] + rows[1::2]
PY
ok $? "a folder of text files, and a file of documents with a separator between them"
prepare --out "$work/talk" "$work/all.jsonl" --prompt-field q --completion-field a --shard-tokens 5000 &&
    look "$work/talk/*.bin" &&
    documents talk q a && python3 - "$work" >>"$work/out" 2>&1 <<'PY'
import glob, sys
tokens = masks = b""
for path in sorted(glob.glob(sys.argv[1] + "/talk/train_??????.bin")):
    tokens += open(path, "rb").read()[1024::2]
    masks += open(path[:-4] + "_mask.bin", "rb").read()[1024:]
assert len(tokens) == len(masks)
counted = bytes(t if m else 35 for t, m in zip(tokens, masks)).split(b"\0")
for text, kept in zip(tokens.split(b"\0")[:-1], counted):
    prompt = text.index(b" A: ")
    assert kept == b"#" * prompt + text[prompt:], (text, kept)
assert masks.count(1) - len(counted) + 1 == len(b"".join(counted).replace(b"#", b""))
PY
ok $? "prompt and completion: only the completion and <eot> count"
./train_gpt_cpu --layers 1 --seq-len 64 --batch 2 --steps 2 --train "$work/talk/train_*.bin" >"$work/out" 2>&1 &&
    grep -q '^data .*<eot> 0; masks beside' "$work/out" && grep -q '^step 2/2 | loss [0-9.]* ' "$work/out"
ok $? "... and the trainer takes them"

# ---- tokenizers, and inputs that packages read
if package tokenizers; then
    mkdir "$work/words" && python3 - "$work" <<'PY'
import json, sys
d = sys.argv[1]
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
it = Tokenizer(models.BPE())
it.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
texts = [json.loads(line)["text"] for line in open(d + "/all.jsonl")]
letters = pre_tokenizers.ByteLevel.alphabet()
how = {"vocab_size": 320, "special_tokens": ["<|endoftext|>"], "initial_alphabet": letters, "show_progress": False}
it.train_from_iterator(texts, trainers.BpeTrainer(**how))
it.save(d + "/words/tokenizer.json")
PY
    echo '{"text": "a mat<|endoftext|>a cat"}' >"$work/spelt.jsonl"
    prepare --out "$work/bpe" "$work/all.jsonl" --tokenizer "$work/words" "${cut[@]}" --processes 2 &&
        look "$work/bpe/*.bin" &&
        cmp "$work/words/tokenizer.json" "$work/bpe/tokenizer.json" && python3 - "$work" >"$work/out" 2>&1 <<'PY'
import array, json, sys
d = sys.argv[1]
from tokenizers import Tokenizer
it = Tokenizer.from_file(d + "/words/tokenizer.json")
said = json.load(open(d + "/bpe/dataset.json"))
assert said["vocab"] == it.get_vocab_size() and said["eot"] == 0 and said["tokenizer"]["name"] == "words", said
got = array.array("H", open(d + "/bpe/val_000000.bin", "rb").read()[1024:]).tolist()
want = open(d + "/one/val_000000.bin", "rb").read()[1024::2].decode().split("\0")[:-1]
assert got == [t for text in want for t in it.encode(text, add_special_tokens=False).ids + [0]]
PY
    ok $? "a tokenizer.json: the tokens of the package itself, its <eot> by name, the file beside the shards"
    spelt=(--tokenizer "$work/words/tokenizer.json" --val-fraction 0 "$work/spelt.jsonl")
    prepare --out "$work/text" "${spelt[@]}" && prepare --out "$work/special" "${spelt[@]}" --parse-special &&
        python3 - "$work" >"$work/out" 2>&1 <<'PY'
import json, sys
for name, ends in (("text", 1), ("special", 2)):
    split = json.load(open(f"{sys.argv[1]}/{name}/dataset.json"))["splits"]["train"]
    assert split["files"]["train_000000.bin"]["documents"] == ends, name
PY
    ok $? "<|endoftext|> in a text is text, unless --parse-special"
else
    ok 0 "a tokenizer.json # skip no Python package tokenizers"
fi
if package tiktoken; then
    mkdir "$work/patch" && cat >"$work/patch/sitecustomize.py" <<'PY'
import tiktoken # its table of gpt2 needs the Internet; another one in its place
ranks = {bytes([i]): i for i in range(256)}
special = {"<|endoftext|>": 256}
made = {"pat_str": ".+", "mergeable_ranks": ranks, "special_tokens": special}
tiktoken.get_encoding = lambda name: tiktoken.Encoding(name, **made)
PY
    PYTHONPATH=$work/patch prepare --out "$work/gpt2" "$work/all.jsonl" --tokenizer gpt2 && look "$work/gpt2/*.bin" &&
        grep -q 'gpt2: vocabulary 257, .* <eot> 256' "$work/out"
    ok $? "tiktoken's gpt2"
else
    ok 0 "tiktoken's gpt2 # skip no Python package tiktoken"
fi
if package pyarrow; then
    python3 - "$work" <<'PY'
import json, sys
import pyarrow, pyarrow.parquet
rows = [json.loads(line) for line in open(sys.argv[1] + "/all.jsonl")]
pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sys.argv[1] + "/all.parquet", row_group_size=70)
PY
    prepare --out "$work/parquet" "$work/all.parquet" "${cut[@]}" --processes 2 && same one parquet
    ok $? "parquet"
    wrong "no field 'body'; --field: one of text, q, a, n" "$work/all.parquet" --field body
else
    ok 0 "parquet # skip no Python package pyarrow"
fi
if package datasets; then
    python3 - "$work" >"$work/out" 2>&1 <<'PY'
import json, sys
import datasets
rows = datasets.Dataset.from_list([json.loads(line) for line in open(sys.argv[1] + "/all.jsonl")])
rows.save_to_disk(sys.argv[1] + "/rows")
datasets.DatasetDict({"test": rows.select(range(3)), "main": rows}).save_to_disk(sys.argv[1] + "/splits")
PY
    prepare --out "$work/hf" "$work/rows" "${cut[@]}" --processes 2 && same one hf &&
        prepare --out "$work/hfs" "$work/splits" --split main "${cut[@]}" && same one hfs
    ok $? "folders of save_to_disk, with splits and without"
    wrong "no split 'train'; --split test or main" "$work/splits"
else
    ok 0 "folders of save_to_disk # skip no Python package datasets"
fi

# ---- wrong inputs
printf '{"text": "a"}\n{"text": "b' >"$work/cut.jsonl"
printf '{"text": "a\\u0000b"}\n' >"$work/zero.jsonl"
printf 'PAR1' >"$work/torn.parquet"
: >"$work/empty.txt"
wrong 'nothing.jsonl: no such file or folder; named sets: tinystories' "$work/nothing.jsonl"
wrong "all.jsonl, byte 0: no field 'body'; --field: one of text, q, a, n" "$work/all.jsonl" --field body
wrong 'cut.jsonl, byte 14: the line is not JSON' "$work/cut.jsonl"
wrong 'byte 0 ends documents, and this one holds it' "$work/zero.jsonl"
wrong 'no text for training' "$work/empty.txt"
wrong 'neither bytes, gpt2 nor a tokenizer.json' "$work/all.jsonl" --tokenizer "$work/nowhere"
wrong '--eot 256: no token of this tokenizer' "$work/all.jsonl" --eot 256
wrong '--prompt-field and --completion-field go together' "$work/all.jsonl" --prompt-field q
wrong '--val-fraction 1.0: must be' "$work/all.jsonl" --val-fraction 1
wrong 'torn.parquet: |needs the Python package pyarrow' "$work/torn.parquet"
prepare --out "$work/one" "$work/all.jsonl"
[ $? -eq 1 ] && grep -q 'one already holds a data set' "$work/out" && same one three
ok $? "a data set is not overwritten: $(cut -c 17-120 "$work/out")"

checks_done
