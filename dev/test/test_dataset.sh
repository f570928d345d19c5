#!/usr/bin/env bash
# test_dataset.sh - dataset.json, --check-data and masks, as people meet them. TAP, run from the repository's root by
# scripts/test.sh after the binaries are built.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

look() { ./train_gpt_cpu --seq-len 64 --check-data "$@" >"$work/out" 2>&1; }

# wrong PATTERN COMMAND...: one line of error that matches, exit code 1
wrong() {
    local pattern=$1 code
    shift
    "$@" >"$work/out" 2>&1
    code=$?
    [ $code -eq 1 ] && [ "$(grep -c '^train_gpt: error: ' "$work/out")" -eq 1 ] &&
        grep -Eq "^train_gpt: error: .*$pattern" "$work/out" && [ "$(tail -n 1 "$work/out" | cut -c 1-9)" = train_gpt ]
    ok $? "refused: $(grep -m 1 '^train_gpt: error' "$work/out" | cut -c 19-150)"
}

python3 dev/data/text_to_shards.py --out "$work/set" --shard-tokens 9000 train_gpt.cu LICENSE >"$work/out"
read -r bytes <<<"$(cat train_gpt.cu LICENSE | wc -c)"
# change NAME SCRIPT: a copy of the set, d, with its dataset.json, dataset, changed by Python; prints its shards' glob
change() {
    rm -rf "${work:?}/$1"
    cp -r "$work/set" "$work/$1"
    PYTHONPATH=dev/data python3 - "$work/$1" "$2" <<'PY'
import array, glob, json, os, struct, sys
import shards
d = sys.argv[1]
dataset = json.load(open(d + "/dataset.json"))
train = dataset["splits"]["train"]["files"]
first = train["train_000000.bin"]
def put(name, at, values):
    with open(f"{d}/{name}", "r+b") as file:
        file.seek(at)
        file.write(values)
def mask(name, counts=lambda token: token != 32):  # of a shard of bytes, listed
    path = f"{d}/{name}.bin"
    values = array.array("B", [counts(token) for token in open(path, "rb").read()[1024::2]])
    made = shards.write_shard(shards.mask_path(path), 1, len(values), [values], 1)
    for split in dataset["splits"].values():
        if name + ".bin" in split["files"]:
            split["files"][name + ".bin"].update(mask_sum=made["sum"], counted=made["documents"])
def masks():
    for path in glob.glob(d + "/*.bin"): mask(os.path.basename(path)[:-4])
exec(sys.argv[2])
json.dump(dataset, open(d + "/dataset.json", "w"))
print(d + "/*.bin")
PY
}

# ---- --check-data
look "$work/set/*.bin" &&
    grep -q ": $bytes tokens in [0-9]* shards, bytes: vocabulary 256, 1.00 bytes a token$" "$work/out" &&
    [ "$(grep -c 'as in dataset.json$' "$work/out")" -eq "$(ls "$work/set" | grep -c bin)" ] &&
    grep -q "^sequence 0: /\* train_gpt.cu - trains " "$work/out"
ok $? "--check-data: $bytes bytes of text counted, every sum that of dataset.json, the text is read"
cp -r "$work/set" "$work/bare" && rm "$work/bare/dataset.json"
look "$work/bare/*.bin" && ! grep -q 'dataset.json' "$work/out" && grep -q "$bytes tokens in" "$work/out"
ok $? "... and without a dataset.json"
look "$work/set/*.bin" --vocab 300 && look "$work/set/train_*.bin" --model tiny-gpt --vocab 50304
ok $? "a model with a larger vocabulary is no error"
wrong 'train_000001.bin: sum .* a byte has changed' look "$(change flipped 'put("train_000001.bin", 5000, b"z")')"
wrong 'has 8000 tokens, .* by .*dataset.json' look "$(change other 'os.truncate(d + "/train_000000.bin", 17024)
put("train_000000.bin", 8, struct.pack("<i", 8000))')"
wrong 'lists val_000000.bin, which is missing' look "$(change missing 'os.unlink(d + "/val_000000.bin")')"
wrong 'zz.bin is not in .*dataset.json' look "$(change more 'os.link(d + "/val_000000.bin", d + "/zz.bin")')"
wrong 'token [0-9]+ at position [0-9]+ is outside the vocabulary of 100' look "$work/bare/*.bin" --vocab 100
wrong 'holds token [0-9]+, the model.s vocabulary is 0 to 99' look "$work/set/*.bin" --vocab 100
wrong 'largest token: [0-9]+, but 90 in' look "$(change largest 'first["largest"] = 90')"
wrong 'documents: 0, but 5 in' look "$(change documents 'first["documents"] = 5; dataset["eot"] = 255')"
wrong 'of version 2, this program reads up to 1' look "$(change version 'dataset["version"] = 2')"
look "$(change foreign 'dataset = {"format": "x", "splits": 3}')" &&
    grep -q "tokens in [0-9]* shards; dataset.json beside them is another program's: not read$" "$work/out" &&
    ! grep -q 'as in dataset.json' "$work/out"
ok $? "a dataset.json of another program is not read, which is said"
wrong 'vocab is missing' look "$(change vocab 'del dataset["vocab"]')"
wrong 'train_000000.bin: sum is not a sum' look "$(change sum 'first["sum"] = "12"')"
wrong 'lists val_000000.bin twice' look "$(change twice 'dataset["splits"]["x"] = dataset["splits"]["val"]')"
cp -r "$work/set" "$work/torn" && head -c 300 "$work/set/dataset.json" >"$work/torn/dataset.json"
wrong 'torn/dataset.json: the file is not JSON' look "$work/torn/*.bin"
wrong '--lr has no effect beside it' look "$work/set/*.bin" --lr 1
wrong 'no such file' look "$work/nothing_*.bin"

# ---- training reads dataset.json
train=(--seq-len 64 --batch 2 --steps 2 --layers 1)
./train_gpt_cpu "${train[@]}" --train "$work/set/train_*.bin" --val "$work/set/val_*.bin" --save "$work/saved" \
    >"$work/out" 2>&1 &&
    grep -q '^data .*--train: .*bytes: vocabulary 256' "$work/out" && grep -q '^data .*--val: ' "$work/out" &&
    cmp "$work/set/dataset.json" "$work/saved/step-00000002/dataset.json"
ok $? "a run says what it reads, and its checkpoint carries dataset.json"
wrong 'the model.s vocabulary is 0 to 99; the shard was made with bytes' \
    ./train_gpt_cpu "${train[@]}" --vocab 100 --train "$work/set/*.bin"
mkdir "$work/mix" && cp -r "$work/set" "$work/mix"
change mix/words >"$work/out" 'dataset.update(vocab=300, tokenizer={"kind": "tokenizer.json", "name": "words"})'
wrong 'shards of different tokenizers: bytes by .*, words by' \
    ./train_gpt_cpu "${train[@]}" --vocab 300 --train "$work/mix/*/train_*.bin"
change unlisted >"$work/out" 'del train["train_000000.bin"]'
./train_gpt_cpu "${train[@]}" --train "$work/unlisted/train_*.bin" >"$work/out" 2>&1
ok $? "training takes a shard that dataset.json does not list"
change coarse >"$work/out" 'dataset["splits"]["val"]["text_bytes"] *= 3'
./train_gpt_cpu "${train[@]}" --eval-only --val "$work/coarse/val_*.bin" --vocab 300 --out "$work/judged" \
    >"$work/out" 2>&1 &&
    python3 -c 'import json, math, sys; r = json.loads(open(sys.argv[1]).read())
assert abs(r["val_bits_per_byte"] / (r["val_loss"] / math.log(2) / 3) - 1) < 1e-12, r' "$work/judged/metrics.jsonl"
ok $? "bits per byte by the bytes a token of dataset.json"

# ---- masks: what --ignore-token leaves out, left out by a mask instead, gives the same bits
strip() {
    sed -E 's/"(step_ms|tokens_per_s|mfu_causal|mfu_full|comm_exposed_ms|val_bits_per_byte)": [^,}]*,? ?//g' "$1"
}
same() {
    [ -s "$work/$1/metrics.jsonl" ] &&
        diff <(strip "$work/$1/metrics.jsonl") <(strip "$work/$2/metrics.jsonl") >>"$work/out"
}
run() { # RANKS NAME SET FLAGS...
    local ranks=$1 name=$2 set=$3
    shift 3
    rm -rf "${work:?}/$name"
    run_ranks "$ranks" ./train_gpt_fp64 "${train[@]}" --out "$work/$name" --train "$work/$set/train_*.bin" \
        --val "$work/$set/val_*.bin" "$@" >"$work/out" 2>&1
}
change masked 'masks()' >"$work/out"
look "$work/masked/*.bin" && grep -Eq 'train_000000.bin: .* [0-9]+ targets; as in dataset.json$' "$work/out" &&
    grep -q "$bytes tokens in .*; masks beside" "$work/out" && ! grep -q 'mask.bin:' "$work/out"
ok $? "--check-data reads masks, and takes none for a shard"
run 1 ignored set --ignore-token 32 && run 1 plain set && run 1 mask1 masked && same ignored mask1 && ! same plain mask1
ok $? "a mask of the spaces is --ignore-token of the space, to the bit"
run 4 ignored4 set --ignore-token 32 --sp ring --selfcheck on && run 4 mask4 masked --sp ring --selfcheck on &&
    grep -q '^check .*the labels' "$work/out" && same ignored4 mask4
ok $? "... on four ranks, whose self-check finds nothing wrong"
run 1 kept masked --save-every 1 &&
    change sparser 'masks(); mask("train_000000", lambda token: token > 100)' >"$work/out" &&
    run 1 again masked --resume "$work/kept/checkpoints/step-00000001" &&
    tail -n 1 "$work/kept/metrics.jsonl" | sed 's/"save_ms": [^,]*, //' >"$work/again/last" &&
    [ "$(strip "$work/again/last")" = "$(strip "$work/again/metrics.jsonl")" ]
ok $? "a run resumes where its masks are the same"
wrong 'not as it was: --train with other tokens or masks' ./train_gpt_fp64 "${train[@]}" --out "$work/refused" \
    --train "$work/sparser/train_*.bin" --val "$work/masked/val_*.bin" --resume "$work/kept/checkpoints/step-00000001"
wrong 'byte 2 at position 100 is neither 0 nor 1' \
    look "$(change two 'masks(); put("train_000000_mask.bin", 1124, b"\2")')"
wrong 'mask .* is of 100 tokens, its shard has' \
    look "$(change short 'masks(); os.truncate(d + "/val_000000_mask.bin", 1124)
put("val_000000_mask.bin", 8, struct.pack("<i", 100))')"
wrong 'mask.bin: sum .* a byte has changed' look "$(change turned 'masks(); put("train_000000_mask.bin", 1124, b"\0")
put("train_000000_mask.bin", 1125, b"\0")')"
wrong 'the mask of .*val_000000.bin is missing, which .* lists' \
    look "$(change lost 'masks(); os.unlink(d + "/val_000000_mask.bin")')"
wrong 'has the name of a mask of .* and is none' look "$(change none 'open(d + "/val_000000_mask.bin", "wb").close()')"
wrong 'is a mask; name the shard' ./train_gpt_cpu "${train[@]}" --train "$work/masked/train_000000_mask.bin"
wrong 'there are masks only' ./train_gpt_cpu "${train[@]}" --train "$work/masked/*_mask.bin"
wrong 'byte 2 at position 100 is neither 0 nor 1' \
    ./train_gpt_cpu "${train[@]}" --train "$work/two/train_*.bin"
wrong 'every target of --train .* is ignored' ./train_gpt_cpu "${train[@]}" \
    --train "$(change mute 'masks(); [mask(n[:-4], lambda token: False) for n in train]' | sed 's/\*/train_*/')"

checks_done
