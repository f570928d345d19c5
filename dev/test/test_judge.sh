#!/usr/bin/env bash
# test_judge.sh - a model judged: --eval-only, perplexity and bits per byte, and what becomes of a step whose loss
# jumps. TAP, run from the repository's root by scripts/test.sh after the binaries are built.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

python3 - "$work" <<'PY'
import random, struct, sys
random.seed(2)
def shard(name, tokens):
    open(f"{sys.argv[1]}/{name}", "wb").write(struct.pack(f"<256i{len(tokens)}H", 20240520, 1, len(tokens), *[0] * 253,
                                                          *tokens))
def line(n): return [97 + (i * i + random.randrange(2)) % 7 for i in range(n)]
shard("calm.bin", line(64 * 140 + 1))
shard("jump.bin", line(64 * 120) + [random.randrange(256) for _ in range(64)]
      + line(64 * 3 + 1)) # the 121st sequence is noise
shard("val.bin", line(64 * 8 + 1))
PY

run() { # run RANKS NAME ARGS...
    local ranks=$1 name=$2
    shift 2
    rm -rf "${work:?}/$name"
    run_ranks "$ranks" ./train_gpt_fp64 --layers 1 --dim 32 --heads 4 --ffn 64 --seq-len 64 --micro-batch 1 \
        --out "$work/$name" "$@" >"$work/out" 2>&1
}

# ---- --eval-only
run 1 judged --eval-only --val "$work/val.bin" --train "$work/calm.bin" --steps 7 && python3 - "$work" <<'PY'
import json, math, sys
d = sys.argv[1]
row, = map(json.loads, open(d + "/judged/metrics.jsonl"))
said = next(l for l in open(d + "/out") if l.startswith("val "))
loss = row["val_loss"]
assert row["loss"] is None and 5 < loss < 7, row
perplexity, bits = math.exp(loss), loss / math.log(2)
assert abs(row["val_perplexity"] - perplexity) < 1e-9 * perplexity, row
assert abs(row["val_bits_per_byte"] - bits) < 1e-12, row
assert f"{loss:.4f} over 8 of 8 sequences: perplexity {perplexity:.4g}, {bits:.4f} bits per byte" in said, said
PY
ok $? "--eval-only trains nothing; perplexity and bits per byte are those of the loss:" \
    "$(sed -n 's/^val *//p' "$work/out")"
run 4 judged4 --eval-only --val "$work/val.bin" --sp tpsp && python3 - "$work" <<'PY'
import json, sys
a, b = (json.loads(open(f"{sys.argv[1]}/{n}/metrics.jsonl").read()) for n in ("judged", "judged4"))
assert all(abs(a[k] / b[k] - 1) < 1e-12 for k in ("val_loss", "val_perplexity", "val_bits_per_byte")), (a, b)
PY
ok $? "the same on four ranks"
run 1 words --eval-only --val "$work/val.bin" --vocab 300 &&
    ! grep -q 'per byte' "$work/out" "$work/words/metrics.jsonl" && grep -q 'val_perplexity' "$work/words/metrics.jsonl"
ok $? "no bits per byte where nobody knows the bytes of a token"
run 1 nothing --eval-only --train "$work/calm.bin"
[ $? -eq 1 ] && grep -q '^train_gpt: error: --eval-only needs --val' "$work/out" && [ ! -e "$work/nothing" ]
ok $? "--eval-only without anything to judge on is refused"

# ---- --sample: the same text under every scheme, at the end and on the way
schemes_of ./train_gpt_fp64
learn=(--train "$work/calm.bin" --steps 6 --lr 1e-2 --sample abc --sample-tokens 30 --temperature 0)
run 1 alone "${learn[@]}" &&
    text=$(sed -n 's/^sample   //p' "$work/out") && [ "${#text}" -ge 3 ] && [ "${text::3}" = abc ]
ok $? "--sample continues the prompt: ${text:-}"
for scheme in "${schemes[@]}"; do
    run 4 "s_$scheme" "${learn[@]}" --sp "$scheme" --sample-every 3 &&
        [ "$(sed -n 's/^sample   //p' "$work/out" | wc -l)" -eq 2 ] &&
        [ "$(sed -n 's/^sample   //p' "$work/out" | tail -n 1)" = "$text" ]
    ok $? "$scheme on four ranks: the same text, and once on the way"
done
printf abc >"$work/prompt"
run 2 file --train "$work/calm.bin" --eval-only --sample-file "$work/prompt" --sample-tokens 61 &&
    grep -q '^sample   abc' "$work/out"
ok $? "--sample-file, --eval-only and a text that fills the sequence"
run 1 ids --train "$work/calm.bin" --eval-only --sample-ids "97, 98 99" --sample-tokens 4 --temperature 0 &&
    grep -qE '^sample   97,98,99(,[0-9]+){4}$' "$work/out"
ok $? "--sample-ids: tokens in and out"

# ---- text by the tokenizer beside a model, of which checkpoints have a copy
text='The gradient <|endoftext|> of größer 123'
says() { # says RANKS ARGS...: a run that samples from a model with a tokenizer
    local ranks=$1
    shift
    run_ranks "$ranks" ./train_gpt_fp64 --seq-len 64 --sample "$text" --sample-tokens 12 --temperature 0 "$@" \
        >"$work/out" 2>&1
}
run 1 wordy --init-only --vocab 700 && cp dev/test/fixtures/tokenizers/gpt2/tokenizer.json "$work/wordy" &&
    says 1 --model "$work/wordy" --train "$work/calm.bin" --steps 2 --out "$work/learned" --save-every 2 &&
    said=$(grep -a '^sample' "$work/out") && [[ $said == "sample   $text"* ]] && rm -r "$work/wordy" &&
    says 4 --model "$work/learned/checkpoints/step-00000002" --eval-only &&
    [ "$(grep -a '^sample' "$work/out")" = "$said" ]
ok $? "text by a tokenizer, and by its copy in a checkpoint on four ranks: ${said:-}"
while IFS='|' read -r pattern args; do
    # shellcheck disable=SC2086
    run 2 refused --train "$work/calm.bin" --steps 1 $args
    code=$?
    [ $code -eq 1 ] && [ "$(grep -cE "^train_gpt: error: .*$pattern" "$work/out")" -eq 1 ] && [ ! -e "$work/refused" ]
    ok $? "refused: $args"
done <<END
a prompt of 3 tokens and --sample-tokens 62 are more than --seq-len 64|--sample abc --sample-tokens 62
with a vocabulary of 300 tokens are no bytes; give the prompt as tokens|--sample abc --vocab 300
no number of a token at "x"|--sample-ids 1,x
token 256 is none of this model's 256|--sample-ids 1,256 --sample-tokens 4
exclude each other|--sample abc --sample-file $work/prompt
--top-p needs --sample|--top-p 0.5
not a regular file|--sample-file /dev/null
END

# ---- spikes
constant=(--schedule constant --lr 3e-3 --val "$work/val.bin")
run 1 calm --batch 1 --train "$work/jump.bin" "${constant[@]}" --steps 120 && ! grep -q spike "$work/calm/metrics.jsonl"
ok $? "120 calm steps: no word of a spike"
for action in default continue skip; do
    flags=(--on-spike $action)
    [[ $action != default ]] || flags=()
    run 1 $action --batch 1 --train "$work/jump.bin" "${constant[@]}" --steps 121 "${flags[@]}"
    ok $? "--on-spike $action goes on: $(grep -m 1 '^note .*standard dev' "$work/out")"
done
python3 - "$work" <<'PY'
import json, sys
runs = {n: [json.loads(l) for l in open(f"{sys.argv[1]}/{n}/metrics.jsonl")]
        for n in ("calm", "default", "continue", "skip")}
for n in ("default", "continue", "skip"):
    assert [r["step"] for r in runs[n] if "spike" in r] == [120], n
    assert runs[n][120]["spike"] == ("skipped" if n == "skip" else "continued")
    assert [r["loss"] for r in runs[n][:120]] == [r["loss"] for r in runs["calm"]]
val = {n: runs[n][-1]["val_loss"] for n in runs}
assert val["skip"] == val["calm"] and val["default"] == val["continue"] != val["calm"], val
PY
ok $? "skip leaves the weights as they were, continue does not; both are in metrics.jsonl"
skips=(--batch 1 --train "$work/jump.bin" "${constant[@]}" --steps 121 --on-spike skip)
run 1 saves "${skips[@]}" --save-every 119 &&
    run 2 resumed "${skips[@]}" --resume "$work/saves/checkpoints/step-00000119" && python3 - "$work" <<'PY'
import json, sys
row = {n: [json.loads(l) for l in open(f"{sys.argv[1]}/{n}/metrics.jsonl")][-1] for n in ("skip", "saves", "resumed")}
assert all(r["step"] == 120 and r.get("spike") == "skipped" for r in row.values()), row
assert abs(row["resumed"]["val_loss"] / row["skip"]["val_loss"] - 1) < 1e-12, row
PY
ok $? "a resumed run judges by the losses before: the same step is skipped on two ranks"
run 2 stop --batch 1 --train "$work/jump.bin" "${constant[@]}" --steps 124 --on-spike stop --sp ring
code=$?
[ $code -ge 1 ] && [ $code -le 127 ] &&
    [ "$(grep -c '^train_gpt: error: step 120: loss .* deviations above .*metrics.jsonl has the steps before' \
        "$work/out")" -eq 1 ] &&
    [ "$(wc -l <"$work/stop/metrics.jsonl")" -eq 120 ]
ok $? "--on-spike stop ends every rank: $(grep -m 1 -o 'step 120: .*' "$work/out" | cut -c 1-100)"
run 1 deaf --batch 1 --train "$work/jump.bin" "${constant[@]}" --steps 121 --on-spike stop --spike-sigma 0 &&
    ! grep -q spike "$work/deaf/metrics.jsonl"
ok $? "--spike-sigma 0 sees none"
wild=(--batch 1 --train "$work/calm.bin" --lr 1000 --grad-clip 0 --weight-decay 1000 --steps 300)
for action in skip continue; do
    run 2 wild "${wild[@]}" --on-spike $action && python3 - "$work/wild/metrics.jsonl" <<'PY'
import json, math, sys
rows = [json.loads(l) for l in open(sys.argv[1])]
bad = [r for r in rows if r["loss"] is None or r["grad_norm"] is None]
assert len(rows) == 300 and bad and all(r["spike"] == "skipped" for r in bad), len(bad)
PY
    ok $? "--on-spike $action never lets what is not finite into the weights:" \
        "$(grep -m 1 -o 'step [0-9]*: .*first not finite: .*' "$work/out" | cut -c 1-110)"
done

checks_done
