#!/usr/bin/env bash
# test_resume.sh - a run's life as people live it: saved under one mesh and resumed under another, stopped by
# signals and by the clock, refused where it does not fit, and going on when the disk is full. TAP, run from the
# repository's root by scripts/test.sh after the binaries are built. What test_save.c can show without the program,
# it shows; what crashes do, kill.sh.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
# shellcheck source=dev/test/life.sh
source "$(dirname "$0")/life.sh"

refused() { # PATTERN RANKS FLAGS...: one line of error
    local pattern=$1 ranks=$2 code=0
    shift 2
    go "$ranks" train_gpt_fp64 "$@" || code=$?
    [[ $code -eq 1 && $(grep -c '^train_gpt: error: ' "$work/out") -eq 1 ]] &&
        grep -Eq "^train_gpt: error: .*$pattern" "$work/out"
    ok $? "refused: $(grep -m1 '^train_gpt: error' "$work/out" | cut -c 19-190)"
}

at() { printf '%s/%s/checkpoints/step-%08d' "$work" "$1" "$2"; } # RUN STEP: its checkpoint

# ---- one curve, and the same saved and resumed

val=(--val "$work/data.bin" --eval-every 4 --eval-batches 1)
run=("${small[@]}" "${val[@]}" --steps 12)
go 1 train_gpt_fp64 "${run[@]}" --out "$work/one" &&
    go 1 train_gpt_fp64 "${run[@]}" --out "$work/saves" --save-every 3 && compare one saves same 0
ok $? "saving changes no bit of a run"
[[ $(grep -c '"save_ms": [0-9]' "$work/saves/metrics.jsonl") -eq 4 &&
    $(ls "$work/saves/checkpoints" | tr '\n' ' ') == "step-00000003 step-00000006 step-00000009 step-00000012 " ]]
ok $? "checkpoints after steps 3, 6, 9 and 12; what each took is in metrics.jsonl"

for ranks in 1 4; do
    go "$ranks" train_gpt_fp64 "${run[@]}" --out "$work/aside$ranks" --save-every 1 --save-async &&
        compare one "aside$ranks" "$([[ $ranks -eq 1 ]] && say same || say 1e-10)" 0 &&
        [[ $(grep -c '^saved .*checkpoints/step-000000[01][0-9] in' "$work/out") -eq 12 &&
        $(ls "$work/aside$ranks/checkpoints" | wc -l) -eq 12 ]]
    ok $? "--save-async on $ranks ranks, after every step: it changes no number, and all 12 are saved"
done
cmp "$(at saves 6)/optimizer.safetensors" "$(at aside1 6)/optimizer.safetensors" &&
    cmp "$(at saves 6)/manifest.json" "$(at aside1 6)/manifest.json"
ok $? "what is written beside the next steps is what was"

go 1 train_gpt_fp64 "${run[@]}" --out "$work/bits" --resume "$(at saves 6)" && compare one bits same 6
ok $? "resumed in a new run directory: the same bits to the end, steps 6 to 11"
go 2 train_gpt_fp64 "${run[@]}" --sp ring --out "$work/two" --save-every 6 &&
    go 2 train_gpt_fp64 "${run[@]}" --sp ring --out "$work/two6" --resume "$(at two 6)" &&
    compare two two6 same 6
ok $? "the same on two ranks"

cp -r "$work/saves" "$work/torn"
rm -rf "$(at torn 12)"
printf x | dd of="$(at torn 9)/optimizer.safetensors" bs=1 seek=100001 conv=notrunc status=none
skipped='note: .*step-00000009 is skipped: optimizer.safetensors does not hold what was written'
refused 'step-00000009: this checkpoint is not whole: optimizer.safetensors does not hold' 1 "${run[@]}" \
    --out "$work/x" --resume "$(at torn 9)"
go 4 train_gpt_fp64 --train "$work/data.bin" --seq-len 32 --batch 4 --peak-tflops 100 --warmup 3 --lr 0.01 "${val[@]}" \
    --steps 12 --sp ring --out "$work/torn" --save-every 3 --resume &&
    compare one torn 1e-10 0 && grep -q "$skipped" "$work/out" &&
    grep -q '^resume .*step-00000006: 6 of 12 steps are done, read in [0-9.]* s$' "$work/out" &&
    [[ -d $(at torn 9).damaged ]]
ok $? "one that only loading finds torn is named and skipped, the next older one is loaded over it; without --model," \
    "that one's is the model"

cp -r "$work/saves" "$work/again"
rm -rf "$work/again/checkpoints/step-00000012" "$work/again/checkpoints/step-00000009/config.json"
go 1 train_gpt_fp64 "${run[@]}" --out "$work/again" --save-every 3 --resume && compare one again same 0 &&
    grep -q 'step-00000009 is skipped: config.json is missing' "$work/out" &&
    [[ -d $(at again 9).damaged && -f $(at again 9)/config.json ]]
ok $? "resumed in place past a torn one: metrics.jsonl is cut back and goes on, no step twice, none missing; the" \
    "torn one is set aside"
grep -q '^{"step":6,' "$work/again/resumes.jsonl" && [[ $(wc -l <"$work/again/resumes.jsonl") -eq 1 ]]
ok $? "resumes.jsonl says so"

# step 8 is saved; its line has no val_loss yet, and the line after it is half there
cp -r "$work/one" "$work/late"
go 1 train_gpt_fp64 "${run[@]}" --out "$work/late4" --save-every 4 && mv "$work/late4/checkpoints" "$work/late" &&
    rm -rf "$(at late 12)"
{ head -n 8 "$work/one/metrics.jsonl" | sed '8s/, "val_loss": [^}]*//' &&
    printf '{"step": 8, "lo'; } >"$work/late/metrics.jsonl"
go 1 train_gpt_fp64 "${run[@]}" --out "$work/late" --resume && compare one late same 0
ok $? "the validation that a crash took is made up for, half a line is cut away"

go 1 train_gpt_fp64 "${run[@]}" --out "$work/again" --resume && compare one again same 0 &&
    grep -q '12 of 12 steps are done' "$work/out"
ok $? "a run that is at its end resumes, does nothing, and says so"

# what may run out of memory, or fail like this, comes after what must not be lost
python3 - "$work/data.bin" "$work/bad.bin" <<'PY'
import sys
data = open(sys.argv[1], "rb").read()
open(sys.argv[2], "wb").write(data[:1124] + b"\xff\xff" + data[1126:])
PY
code=0
go 1 train_gpt_fp64 "${small[@]}" --steps 12 --val "$work/bad.bin" --eval-every 4 --out "$work/order" --save-every 4 ||
    code=$?
[[ $code -eq 1 ]] && grep -q 'bad.bin: token 65535 at position' "$work/out" &&
    [[ $(wc -l <"$work/order/metrics.jsonl") -eq 4 ]] &&
    go 1 train_gpt_fp64 "${run[@]}" --out "$work/order" --save-every 4 --resume && compare one order same 0
ok $? "a validation that ends the run comes after the save of its step"

# ---- every scheme after every other, each step another launch: it takes one step, saves and stops (--max-hours)

hop() { # RUN RANKS PROGRAM FLAGS...: one step more
    local out="$work/$1" ranks=$2 program=$3 resume=()
    shift 3
    [[ ! -d $out ]] || resume=(--resume)
    go "$ranks" "$program" "$@" --out "$out" --max-hours 1e-9 --keep 1 "${resume[@]}"
}
steps=("${small[@]}" --steps 24)
go 1 train_gpt_fp64 "${steps[@]}" --out "$work/long"
schemes=(tp tpsp ulysses ring odysseus) status=0
for s in 0 1 0 2 0 3 0 4 1 2 1 3 1 4 2 3 2 4 3 4 0; do
    hop chain 4 train_gpt_fp64 "${steps[@]}" --sp "${schemes[s]}" || status=1
done
hop chain 8 train_gpt_fp64 "${steps[@]}" --sp ring && hop chain 8 train_gpt_fp64 "${steps[@]}" --sp odysseus --ring 2 \
    --dp 2 && hop chain 1 train_gpt_fp64 "${steps[@]}" && [[ $status -eq 0 ]] && compare long chain 1e-10 0
ok $? "all 20 changes from a scheme to another on 4 ranks, then ring and odysseus 2 x ring 2 x dp 2 on 8 and one" \
    "rank: losses to 1e-10"
[[ $(ls "$work/chain/checkpoints") == step-00000024 && $(wc -l <"$work/chain/resumes.jsonl") -eq 23 ]]
ok $? "--keep 1 leaves one checkpoint; 23 lines in resumes.jsonl"

gpt=(--model tiny-gpt --layers 2 --dim 32 --heads 4 --ffn 64 --train "$work/data.bin" --seq-len 32 --batch 4
    --peak-tflops 100 --selfcheck off --steps 5)
go 1 train_gpt_fp64 "${gpt[@]}" --out "$work/gpt" && hop gpts 4 train_gpt_fp64 "${gpt[@]}" --sp tpsp &&
    ! hop gpts 3 train_gpt_fp64 "${gpt[@]}" --sp ring &&
    hop gpts 2 train_gpt_fp64 "${gpt[@]}" --sp ulysses &&
    hop gpts 4 train_gpt_fp64 "${gpt[@]}" --sp odysseus --ring 2 && hop gpts 1 train_gpt_fp64 "${gpt[@]}" &&
    hop gpts 2 train_gpt_fp64 "${gpt[@]}" --sp tp && compare gpt gpts 1e-10 0
ok $? "gpt2: tpsp on 4, ulysses on 2, odysseus 2 x ring 2, one rank, tp on 2: losses to 1e-10; a launch that cannot" \
    "run takes nothing with it"

wide=(--layers 2 --dim 64 --heads 4 --kv-heads 2 --ffn 128 --train "$work/data.bin" --seq-len 32 --batch 4
    --peak-tflops 100 --selfcheck off --steps 6)
go 1 train_gpt_fp64 "${wide[@]}" --out "$work/wide" && hop builds 4 train_gpt_cpu "${wide[@]}" --sp tpsp &&
    hop builds 2 train_gpt_fp64 "${wide[@]}" &&
    hop builds 2 train_gpt_emu "${wide[@]}" --sp ulysses && hop builds 1 train_gpt_cpu "${wide[@]}" &&
    hop builds 1 train_gpt_emu "${wide[@]}" &&
    hop builds 2 train_gpt_fp64 "${wide[@]}" --sp ring && compare wide builds 2e-3 0
ok $? "fp32, fp64, emulated bf16, fp32, emulated bf16, fp64: losses as bf16 allows (2e-3)"
head -n 2 "$work/builds/metrics.jsonl" >"$work/two-lines" && mkdir "$work/builds2" &&
    mv "$work/two-lines" "$work/builds2/metrics.jsonl" && compare wide builds2 1e-6 0 1
ok $? "of these the first two, fp32 then fp64, to 1e-6"

# ---- shuffled: 93 sequences, so step 23 takes the end of one order and the beginning of another

mixed=("${small[@]}" --shuffle --steps 30)
go 1 train_gpt_fp64 "${mixed[@]}" --out "$work/mixed" &&
    go 4 train_gpt_fp64 "${mixed[@]}" --sp ring --dp 2 --micro-batch 2 --out "$work/mixed4" --save-every 23 &&
    compare mixed mixed4 1e-10 0 && go 1 train_gpt_fp64 "${mixed[@]}" --out "$work/mixed1" --resume "$(at mixed4 23)" &&
    compare mixed mixed1 1e-10 23 &&
    go 2 train_gpt_fp64 "${mixed[@]}" --out "$work/mixed2" --resume "$(at mixed4 23)" && compare mixed mixed2 1e-10 23
ok $? "--shuffle: the same order on every mesh, and after a checkpoint in the middle of an epoch"
[[ $(head -n 1 "$work/mixed/metrics.jsonl" | cut -c 1-60) != $(head -n 1 "$work/one/metrics.jsonl" | cut -c 1-60) ]]
ok $? "which is not that of the list"

# ---- told to stop

long=("${small[@]}" --steps 1000000 --log-every 1000)
steps_done() { wc -l 2>/dev/null <"$work/$1/metrics.jsonl" || echo 0; }
background() { # RUN RANKS FLAGS...: in the background; $pid is what to wait for, $work/pid.R the processes
    local out="$work/$1" ranks=$2
    shift 2
    rm -f "$work"/pid.*
    go "$ranks" bash -c 'echo $$ >"$0.${OMPI_COMM_WORLD_RANK:-0}"; exec "$@"' "$work/pid" ./train_gpt_fp64 \
        "${long[@]}" --out "$out" "$@" &
    pid=$!
    until [[ $(steps_done "${out##*/}") -gt 1 ]] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
}
one_more() { # RUN: resumed, it takes one step more, and no step is twice or missing
    local before
    before=$(steps_done "$1")
    go 1 train_gpt_fp64 "${long[@]}" --out "$work/$1" --max-hours 1e-9 --resume &&
        [[ $(steps_done "$1") -eq $((before + 1)) ]] &&
        python3 -c 'import json, sys
assert [json.loads(l)["step"] for l in open(sys.argv[1])] == list(range(int(sys.argv[2])))' \
            "$work/$1/metrics.jsonl" $((before + 1))
}
for signal in TERM USR1 INT; do
    background "stop-$signal" 1 --save-every 1000000
    kill -$signal "$(cat "$work/pid.0")"
    wait $pid && grep -q '^stopped  by a signal after .* to go on: the same command and --resume$' "$work/out" &&
        one_more "stop-$signal"
    ok $? "SIG$signal: the step is finished, saved, exit code 0, how to go on; and it goes on"
done
background stop-rank 4 --dp 2 --save-every 1000000
kill -USR1 "$(cat "$work/pid.2")"
wait $pid && grep -q '^stopped  by a signal' "$work/out"
ok $? "a signal on one rank of four stops them all"
grep -q '^stopped  by --max-hours after' \
    <(go 1 train_gpt_fp64 "${long[@]}" --out "$work/hours" --max-hours 1e-9; cat "$work/out") && [[ -d $(at hours 1) ]]
ok $? "--max-hours: saved, exit code 0, how to go on"

rm -f "$work"/pid.*
# a step takes seconds here
timeout 300 bash -c 'echo $$ >"$0"; exec "$@"' "$work/pid.0" ./train_gpt_fp64 --train "$work/data.bin" --seq-len 1024 \
    --batch 512 --layers 2 --dim 128 --steps 9 --peak-tflops 9 --out "$work/twice" --save-every 5 >"$work/out" 2>&1 &
pid=$!
until [[ -e $work/twice/metrics.jsonl ]] || ! kill -0 $pid 2>/dev/null; do sleep 0.05; done
caught() { [[ $((0x$(awk '/^ShdPnd/ { print $2 }' "/proc/$1/status") & 2)) -eq 0 ]]; } # no SIGINT waits to be delivered
process=$(cat "$work/pid.0")
kill -INT "$process"
until caught "$process"; do sleep 0.01; done
kill -INT "$process"
code=0
wait $pid || code=$?
[[ $code -eq 130 && -z $(ls -A "$work/twice/checkpoints") ]]
ok $? "a second SIGINT ends the program at once (exit code $code)"

# ---- what does not fit

changed='not as it was: --steps 13 .was 12., --lr 0.02 .was 0.01.; give the old values, or say --resume-with-changes'
other=(--layers 2 --dim 32 --heads 4 --kv-heads 2 --ffn 64 --train "$work/data.bin" --seq-len 32 --batch 4
    --peak-tflops 100 --warmup 3 --lr 0.02 --min-lr 0.001
    --steps 13)
refused "$changed" 1 "${other[@]}" --out "$work/fit" --resume "$(at saves 6)"
refused "$changed" 4 "${other[@]}" --out "$work/fit" --resume "$work/saves/checkpoints/step-00000006"
go 1 train_gpt_fp64 "${other[@]}" --out "$work/fit" --resume "$(at saves 6)" --resume-with-changes &&
    grep -q '^note     --resume-with-changes: --steps 13 (was 12), --lr 0.02 (was 0.01)$' "$work/out" &&
    grep -q '"changed":"--steps 13 (was 12), --lr 0.02 (was 0.01)"' "$work/fit/resumes.jsonl" &&
    [[ $(steps_done fit) -eq 7 ]]
ok $? "--resume-with-changes goes on, and logs what changed"
# twice the batch from step 6 on: it goes on where the data were left, at sequence 24
go 1 train_gpt_fp64 "${run[@]/--batch/--log-every}" --batch 8 --out "$work/batch" --resume "$(at saves 6)" \
    --resume-with-changes --save-every 1 &&
    grep -q '"next_sequence":.*32,' "$(at batch 7)/trainer.json" &&
    grep -q '"next_sequence":.*24,' "$(at saves 6)/trainer.json"
ok $? "another batch: the next sequence is that after the last one taken"
head -c 4000 "$work/data.bin" >"$work/other.bin" && python3 - "$work/other.bin" <<'PY'
import struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
data[8:12] = struct.pack("<i", (len(data) - 1024) // 2)
open(sys.argv[1], "wb").write(data)
PY
refused '--train with 1488 tokens .was 3000.' 1 "${small[@]/data.bin/other.bin}" --steps 12 --out "$work/x" \
    --resume "$(at saves 6)"
refused '--shuffle on .was off.; give the old' 1 "${run[@]}" --shuffle on --out "$work/x" --resume "$(at saves 6)"
refused 'is another model: --layers 3 .was 2.' 1 "${run[@]/--layers/--log-every}" --layers 3 --out "$work/x" \
    --resume "$(at saves 6)" --resume-with-changes
refused 'no checkpoint is in it' 1 "${run[@]}" --out "$work/x" --resume "$work/one"
refused 'no such directory' 4 "${run[@]}" --out "$work/x" --resume
refused 'step-00000012 is newer and whole; to go back' 1 "${run[@]}" --out "$work/saves" --resume "$(at saves 6)"
refused 'already holds checkpoints: --resume goes on' 1 "${run[@]}" --out "$work/saves" --save-every 3
cp -r "$(at saves 6)" "$work/step-00000006" &&
    sed -i 's/"version":\t1/"version":\t2/' "$work/step-00000006/manifest.json"
refused 'this checkpoint is not whole: it is of version 2, this program reads up to 1' 2 "${run[@]}" --out "$work/x" \
    --resume "$work/step-00000006"
refused '--save-every needs a place' 1 "${run[@]}" --save-every 3
refused '--keep and --keep-every need checkpoints' 1 "${run[@]}" --out "$work/x" --keep 2
refused '--keep-every says what stays beside' 1 "${run[@]}" --out "$work/x" --save-every 1 --keep-every 2
refused '--resume-with-changes needs --resume' 1 "${run[@]}" --out "$work/x" --resume-with-changes
refused '--resume and --dry-run exclude each other' 1 --dry-run --resume "$(at saves 6)"
refused 'means that of --out, which is not given' 1 "${run[@]}" --resume
[[ ! -e $work/x ]]
ok $? "none of them made a run directory"
go 1 train_gpt_fp64 --train "$work/data.bin" --seq-len 32 --batch 4 --peak-tflops 100 --warmup 3 --lr 0.01 --steps 12 \
    --resume "$(at saves 9)" &&
    grep -q '2 layers, d 32' "$work/out" && grep -q '^step 12/12' "$work/out"
ok $? "without --model, the checkpoint's is the model; without --out, nothing is written"

# ---- the model goes back as it came: tokenizer files travel, and what was saved is a model directory

mkdir "$work/hf" && cp -r "$(at saves 3)"/{config.json,model.safetensors} "$work/hf" &&
    echo '{"tokens": []}' >"$work/hf/tokenizer.json"
mkdir "$work/shards" && cp "$work/data.bin" "$work/shards" &&
    printf '%s' '{"format": "odysseus.c dataset", "version": 1, "vocab": 256, "splits": {}, ' \
        '"tokenizer": {"name": "bytes", "kind": "bytes"}}' \
        >"$work/shards/dataset.json" &&
    echo '{}' >"$work/shards/tokenizer.json" &&
    echo '{}' >"$work/shards/merges.txt"
from_hf=(--model "$work/hf" --train "$work/shards/*.bin" --seq-len 32 --batch 4 --peak-tflops 100 --steps 3)
go 1 train_gpt_fp64 "${from_hf[@]}" --out "$work/hf-run" --save-every 2 &&
    cmp "$work/hf/tokenizer.json" "$(at hf-run 3)/tokenizer.json" && rm -r "$work/hf" &&
    cmp "$work/shards/dataset.json" "$(at hf-run 3)/dataset.json" && [[ ! -e $(at hf-run 3)/merges.txt ]] &&
    go 1 train_gpt_fp64 --resume "$(at hf-run 2)" --train "$work/data.bin" --seq-len 32 --batch 4 --peak-tflops 100 \
    --steps 3 --out "$work/hf-2" --save "$work/elsewhere" &&
    cmp "$(at hf-run 3)/tokenizer.json" "$work/elsewhere/step-00000003/tokenizer.json" &&
    cmp "$(at hf-run 3)/optimizer.safetensors" "$work/elsewhere/step-00000003/optimizer.safetensors"
ok $? "tokenizer files and dataset.json travel from checkpoint to checkpoint, also when the first directory is gone;" \
    "--save"
go 1 train_gpt_fp64 "${small[@]/$work\/data.bin/$work/shards/data.bin}" --steps 1 --out "$work/own" --save-every 1 &&
    cmp "$work/shards/tokenizer.json" "$(at own 1)/tokenizer.json" &&
    cmp "$work/shards/dataset.json" "$(at own 1)/dataset.json" && [[ -e $(at own 1)/merges.txt ]]
ok $? "a model that began here takes those that lie beside its shards"

# ---- a full disk, one that is read-only, and errors on the way

gcc -shared -fPIC -O1 dev/test/torn.c -o "$work/torn.so" -ldl || exit 1
torn() { # HOW AT RANK: for the next run
    export LD_PRELOAD="$work/torn.so" TORN_UNDER=/checkpoints TORN_HOW=$1 TORN_AT=$2 TORN_RANK=$3
}
whole_again() { # RUN: the one after the failure is there, nothing half written is, and the curve is that of all
    unset LD_PRELOAD
    grep -q '^train_gpt: note: no checkpoint after step 3: .*No space left on device' "$work/out" &&
        [[ -d $(at "$1" 6) && ! -d $(at "$1" 3) ]] &&
        [[ -z $(find "$work/$1" -name '*.partial') ]] && compare one "$1" "${2:-same}" 0
}
torn fail 1 0
refused 'no checkpoint can be saved: cannot write .*No space left on device; another place' 1 "${run[@]}" \
    --out "$work/x" --save-every 3
torn fail 1 0
refused 'no checkpoint can be saved: cannot write .*No space left on device; another place' 4 "${run[@]}" --sp ring \
    --out "$work/x" --save-every 3
unset LD_PRELOAD
[[ -z $(ls -A "$work/x/checkpoints") && $(ls -A "$work/x") == checkpoints ]] && rm -r "$work/x"
ok $? "a disk that is full at the start: refused, and no run directory begun"
tries=4 # calls that try the place, before the first save: mkdir, write, fsync, unlink
torn fail $((tries + 7)) 0
go 1 train_gpt_fp64 "${run[@]}" --out "$work/full" --save-every 3 && whole_again full
ok $? "a write that fails: said, the run goes on, the next checkpoint is there"
torn fail 5 1
go 4 train_gpt_fp64 "${run[@]}" --sp odysseus --out "$work/full4" --save-every 3 &&
    grep -q 'No space left on device (rank 1)' "$work/out" && whole_again full4 1e-10
ok $? "the same on one rank of four"
torn full $((tries + 7)) 0
code=0
go 1 train_gpt_fp64 "${run[@]}" --out "$work/end" --save-every 5 || code=$?
unset LD_PRELOAD
[[ $code -eq 1 ]] && compare one end same 0 && [[ $(grep -c 'note: no checkpoint after' "$work/out") -eq 3 ]] &&
    grep -q '^train_gpt: error: the run ends after step 12, and that is not saved; the newest checkpoint in .*: none' \
    "$work/out"
ok $? "a disk that stays full: every try is said, the run goes to its end, and then exit code 1: the last step is" \
    "not saved"
touch "$work/nodir"
refused 'no checkpoint can be saved: cannot make the directory .*/nodir/checkpoints: Not a directory; another place' 1 \
    "${run[@]}" --out "$work/x" --save "$work/nodir/checkpoints" --save-every 6
refused 'already holds a metrics.jsonl' 1 "${run[@]}" --out "$work/one" --save-every 6
[[ ! -e $work/x && ! -e $work/one/checkpoints ]]
ok $? "neither has made a directory"

# ---- every call of a save fails, or is the last one

mkdir "$work/nth"
go 1 train_gpt_fp64 "${small[@]}" --steps 12 --out "$work/plain"
few=("${small[@]}" --steps 12 --out "$work/nth/run" --keep 1)
go 1 train_gpt_fp64 "${few[@]}" --max-hours 1e-9 # after one step
torn count 0 0
TORN_COUNT=$work/calls go 1 train_gpt_fp64 "${few[@]}" --max-hours 1e-9 --resume # and another
unset LD_PRELOAD
calls=$(sort -n "$work/calls" | tail -n 1) status=0
nth() { # HOW N CODE PATTERN: resumed, told to stop after a step, the N-th call of its save disturbed
    local code=0
    torn "$1" "$2" 0
    go 1 train_gpt_fp64 "${few[@]}" --max-hours 1e-9 --resume || code=$?
    unset LD_PRELOAD
    [[ $code -eq $3 ]] && { ((i < tries)) || grep -q "^resume .*step-00000002: 2 of 12 steps are done" "$work/out"; } &&
        grep -q "$4" "$work/out" && return
    say "# $1, call $2 of $calls: exit code $code" && sed 's/^/# /' "$work/out" && status=1
    return 1
}
cp -r "$work/nth/run" "$work/nth/start"
# past what a save did that was nearly at its end
again() { rm -rf "$work/nth/run" && cp -r "$work/nth/start" "$work/nth/run"; }
# the last but for those that delete what --keep 1 takes away: a rename, and a call for each file and the directory
saving=$((calls - tries - 2 - $(find "$work/nth/run/checkpoints/step-00000002" -type f | wc -l)))
for ((i = tries; i < tries + saving; i++)); do
    nth fail $i 1 'note: no checkpoint after step 3: .*No space left' || break
    [[ ! -e $(at nth/run 3) ]] || again # its parent's fsync failed
done
[[ $status -eq 0 && $saving -gt 15 ]] && go 1 train_gpt_fp64 "${few[@]}" --save-every 12 --resume &&
    compare plain nth/run same 0
ok $? "each of the $saving calls of a save fails in turn: said, the one before stays; then the run goes on to the" \
    "same end"
again
for ((i = 0; i < calls; i++)); do
    nth kill $i 137 '' || break
    [[ ! -e $(at nth/run 3) ]] || again
done 2>/dev/null # the shell's word on each
[[ $status -eq 0 ]] && go 1 train_gpt_fp64 "${few[@]}" --save-every 12 --resume && compare plain nth/run same 0 &&
    [[ $(ls -A "$work/nth/run/checkpoints") == step-00000012 ]]
ok $? "killed in each of the $calls calls, writes cut short at a random byte: the same, and nothing half written stays"

# ---- run_forever.sh

unset LD_PRELOAD TORN_UNDER TORN_HOW TORN_AT TORN_RANK
forever() { # CALL RUN: every launch dies in that call of its saves
    go 1 bash -c 'CRASHES=2 PAUSE=0 bash scripts/run_forever.sh env LD_PRELOAD="$0" TORN_UNDER=/checkpoints \
        TORN_HOW=kill TORN_AT="$@"' "$work/torn.so" "$1" ./train_gpt_fp64 "${run[@]}" --save-every 2 --out "$work/$2"
}
forever $((tries + (calls - tries) * 3 / 2)) forever &&
    [[ $(grep -c '^run_forever.sh: exit code 137' "$work/out") -ge 2 ]] && compare one forever same 0
ok $? "run_forever.sh: each launch dies in its second save ($(grep -c '^run_forever.sh: exit' "$work/out") did), and" \
    "the run comes to its end bit for bit"
code=0
forever $((tries + 3)) hopeless || code=$?
[[ $code -ne 0 && $code -ne 124 ]] && grep -q 'gave up after 2 crashes without a new checkpoint' "$work/out" &&
    [[ -d $work/hopeless.crash-1 ]]
ok $? "run_forever.sh gives up where no launch gets to a checkpoint, and keeps what each has written"

checks_done
