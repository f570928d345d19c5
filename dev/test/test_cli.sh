#!/usr/bin/env bash
# test_cli.sh - the program as people meet it: refusals, dry runs, run directories, repeated bits. TAP, run from the
# repository's root by scripts/test.sh after the binaries are built.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

# refuses RANKS PATTERN ARGS...: exit code 1..127, one line of error that matches, within
# seconds, and no run directory left
refuses() {
    local ranks=$1 pattern=$2 code
    shift 2
    rm -rf "$work/refused"
    timeout 600 bash -c 'source scripts/common.sh; n=$1; shift; run_ranks "$n" "$@"' _ "$ranks" ./train_gpt_cpu "$@" \
        >"$work/out" 2>&1
    code=$?
    local lines
    lines=$(grep -c '^train_gpt: error: ' "$work/out")
    [ "$code" -ge 1 ] && [ "$code" -le 127 ] && [ "$code" -ne 124 ] && [ "$lines" -eq 1 ] &&
        grep -Eq "^train_gpt: error: .*$pattern" "$work/out" && [ ! -e "$work/refused" ]
    ok $? "refused on $ranks: $* ($(grep -m1 '^train_gpt: error' "$work/out" | cut -c 19-160))"
}

python3 - "$work" <<'PY'
import struct, sys, random
d = sys.argv[1]
random.seed(1)
def shard(name, tokens, magic=20240520, version=1, count=None, code="H"):
    with open(f"{d}/{name}", "wb") as f:
        f.write(struct.pack("<256i", magic, version, len(tokens) if count is None else count, *[0] * 253))
        f.write(struct.pack(f"<{len(tokens)}{code}", *tokens))
text = [random.randrange(97, 123) for _ in range(6000)]
shard("a_0.bin", text[:3000])
shard("a_1.bin", text[3000:])
shard("wide.bin", text, 20240801, 7, code="I")
shard("truncated.bin", text[:100], count=5000)
shard("short.bin", text[:10])
shard("vocab.bin", text[:100] + [300] + text[:2000])
shard("foreign.bin", text, magic=12345)
open(f"{d}/empty.bin", "wb").close()
shard("long.bin", [97] * 100001)
PY
schemes_of ./train_gpt_cpu
data="$work/a_*.bin"
small=(--train "$data" --seq-len 64 --batch 4 --steps 3)

# ---- wrong inputs
refuses 1 'unknown flag .--lerning-rate.' --lerning-rate 1
refuses 1 'unknown flag .--sq-len.; did you mean --seq-len' --sq-len 64
refuses 1 'unknown flag .--gpus.; --help lists all, docs/glossary.md has' --gpus 8
refuses 1 'did you mean --seq-len' --seq-length 64
refuses 1 'given twice' "${small[@]}" --lr 1 --lr 2
refuses 1 '--lr fast: must be a number' "${small[@]}" --lr fast
refuses 1 '--batch 0: must be a whole number from 1' --batch 0
refuses 1 '--layers 2x: must be' --layers 2x
refuses 1 '--steps needs a value' --steps
refuses 1 "must be one of $(IFS=. && echo "${schemes[*]}")$" "${small[@]}" --sp megatron
refuses 1 '--train is missing' --steps 1
refuses 1 '--tile-rows many: must be auto, or a whole number from 1' --dry-run --tile-rows many
refuses 1 '--tile-rows 0: must be' --dry-run --tile-rows 0
refuses 1 '--offload all: must be one of none.inputs' --dry-run --offload all
refuses 1 '--recompute some: must be one of none.attention-kept.full' --dry-run --recompute some
refuses 1 '--head-groups 2: --sp tpsp exchanges no heads' --dry-run --world 2 --sp tpsp --head-groups 2
refuses 1 '--head-groups 2: a head axis of 1' --dry-run --world 1 --sp ulysses --head-groups 2
refuses 1 '--head-groups 3 cannot group the 4 query and 2 KV heads of a rank; .*below that can: 2' \
    --dry-run --world 2 --sp ulysses --head-groups 3
refuses 1 '--head-groups 4 .*with a ring, .*below that can: 2' --dry-run --world 4 --sp ulysses --ring 2 --head-groups 4
refuses 1 '--head-groups 2 leaves no cache' --dry-run --world 2 --sp ulysses --head-groups 2 --sample x
refuses 1 'heads of 1024 .*CPU kernels take up to 512' "${small[@]}" --heads 1 --dim 1024
refuses 1 'no such file' --train "$work/nothing_*.bin"
refuses 1 'empty.bin is empty' --train "$work/empty.bin"
refuses 1 'truncated.bin is damaged.*promises 5000 tokens.*holds 100' --train "$work/truncated.bin" --seq-len 64
refuses 1 'foreign.bin is not a token shard' --train "$work/foreign.bin"
refuses 1 'several files after --train .*: put the glob in quotes' --train "$work/a_0.bin" "$work/a_1.bin" --seq-len 64
refuses 1 'several files after --val .*: put the glob in quotes' --train "$data" --val "$work/a_0.bin" "$work/a_1.bin"
mkfifo "$work/pipe.bin"
refuses 1 'pipe.bin is not a regular file' --train "$work/pipe.bin"
refuses 1 'is a directory; name its shards by a quoted glob' --train "$work"
refuses 1 'the longest shard has 10 tokens.*needs 65' --train "$work/short.bin" --seq-len 64
refuses 1 'vocab.bin: token 300 at position 100 is outside the vocabulary of 256' --train "$work/vocab.bin" --seq-len 64
refuses 4 'vocab.bin: token 300 at position 100' --train "$work/vocab.bin" --seq-len 64 --sp ring
refuses 1 'neither a preset.*hf download OWNER/NAME --local-dir DIR, then --model DIR' --model llama9 "${small[@]}"
refuses 1 'neither a preset.*give the directory that the file lies in: --model .dev/test/fixtures/gpt2-tied.' \
    "${small[@]}" --model dev/test/fixtures/gpt2-tied/model.safetensors
printf 'GGUF\3\0\0\0' >"$work/model.gguf"
refuses 1 'model.gguf: is a GGUF file' --model "$work/model.gguf" "${small[@]}"
refuses 1 '--layers cannot change the model in' --model dev/test/fixtures/llama-mha --layers 3 "${small[@]}"
refuses 3 'a head axis of 3 cannot split 8 query heads.*nearest that does: 2 or 4' "${small[@]::2}" --seq-len 48
refuses 4 '--seq-len 66 does not divide.*64 and 68' "${small[@]::2}" --seq-len 66
refuses 4 '4 ranks do not divide over --dp 3' "${small[@]}" --dp 3
refuses 4 'does not divide over --ring 3' "${small[@]}" --ring 3
refuses 4 'use --ring 4' "${small[@]}" --sp ring --ring 2
refuses 4 '--context mesh: must be one of ring.allgather' "${small[@]}" --sp tpsp --ring 2 --context mesh
refuses 4 '--sp ring is the context ring .*; use --sp allgather' "${small[@]}" --sp ring --context allgather
refuses 4 '--ring-backward needs --context ring' "${small[@]}" --ring 2 --context allgather --ring-backward q
refuses 4 '--gather-tokens needs --context allgather' "${small[@]}" --ring 2 --gather-tokens 8
refuses 2 '--batch 5 is not a multiple of dp 2 x micro-batch 1.*4 and 6' "${small[@]::4}" --batch 5 --dp 2
refuses 1 'longer than the 32 positions' --model tiny-gpt --max-pos 32 "${small[@]}"
refuses 1 '--world needs --dry-run' "${small[@]}" --world 4
refuses 1 '--init-only needs --out' --init-only
refuses 1 'write flag and value with a space' --seq-len=32
refuses 1 '--eot needs --doc-mask' "${small[@]}" --eot 3
refuses 1 '--doc-targets needs --doc-mask' "${small[@]}" --doc-targets inside
refuses 2 'no dataset.json beside .* --train says which token ends a document; --eot' "${small[@]}" --doc-mask
refuses 1 '--eot 256 is no token of this model; its vocabulary is 0 to 255' "${small[@]}" --doc-mask --eot 256
refuses 1 '--doc-length is for --dry-run and the simulator' "${small[@]}" --doc-mask --eot 97 --doc-length 8
refuses 1 '--window: config.json of gpt2 cannot say so; use --arch mistral' --model tiny-gpt "${small[@]}" --window 8
mkdir "$work/phi"
echo '{"model_type": "phi3", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}' \
    >"$work/phi/config.json"
refuses 1 'phi: a phi3.s rotary embedding is scaled by longrope or not at all, not by yarn' --model "$work/phi" \
    "${small[@]}" --rope-scaling yarn --rope-factor 2
refuses 1 'with --doc-mask or windows, a sequence has up to 2147483647' --dry-run --seq-len 4000000000 --doc-mask
refuses 1 'need --val' "${small[@]}" --eval-every 2
refuses 1 'needs a training step' --init-only --out "$work/refused" --dump-grads "$work/g"
refuses 1 'cannot write into' "${small[@]}" --dump-grads "$work/nowhere/g.safetensors"
refuses 1 'is not a directory' "${small[@]}" --out "$work/a_0.bin"
refuses 1 'does not divide by 8 heads' "${small[@]}" --dim 100
refuses 1 'more than 1e15 numbers' --dry-run --seq-len 1000000000000 --micro-batch 1000000 --batch 1000000
refuses 1 'more than 1e18 bytes' --dry-run --seq-len 1000000000000 --batch 1 --layers 1000
no_room='out of memory: a rank needs .* MB, its share of a host is .*; no --seq-len fits with this model on this mesh'
refuses 1 "$no_room; or use more ranks" "${small[@]}" --dim 65536 --heads 512 --layers 100
refuses 2 'out of memory: .*the largest that fit: --seq-len [0-9]+, or --micro-batch [0-9]+.*; or use more ranks' \
    --train "$work/long.bin" --seq-len 100000 --micro-batch 65536 --batch 65536 --out "$work/refused"
[ "$(grep -c '^  activations  ' "$work/out")" -eq 1 ] && [ "$(grep -c '^memory of a rank' "$work/out")" -eq 1 ]
ok $? "the table by category stands before it, once"
fits=$(sed -n 's/.*--seq-len \([0-9]*\), or.*/\1/p' "$work/out") \
    share=$(sed -n 's/.*host is \([0-9]*\)\..*/\1/p' "$work/out")
total() { ./train_gpt_cpu --dry-run --world 2 --batch 65536 --micro-batch 65536 --seq-len "$1" |
    sed -n 's/^  total  *\([0-9]*\)\.[0-9]*$/\1/p'; }
[ -n "$fits" ] && [ "$(total "$fits")" -le "$share" ] && [ "$(total $((fits + 2)))" -ge "$share" ]
ok $? "a dry run of the length it names fits into the $share MB there are, one 2 tokens longer does not"
refuses 1 'cannot make the directory' "${small[@]}" --out /proc/refused
refuses 2 'either the peak is too low' "${small[@]}" --peak-tflops 1e-6


# ---- runs
train() { # train RANKS NAME ARGS...
    local ranks=$1 name=$2
    shift 2
    rm -rf "${work:?}/$name"
    run_ranks "$ranks" ./train_gpt_cpu "${small[@]}" --out "$work/$name" "$@" >"$work/out" 2>&1
}
strip() { sed -E 's/"(step_ms|tokens_per_s|mfu_causal|mfu_full|comm_exposed_ms)": [^,}]*,? ?//g' "$1"; }
same() { [ -s "$work/$1/metrics.jsonl" ] &&
    diff <(strip "$work/$1/metrics.jsonl") <(strip "$work/$2/metrics.jsonl") >/dev/null; }

train 4 first --sp odysseus --val "$data" && train 4 second --sp odysseus --val "$data" && same first second
ok $? "the same command twice writes the same bits into metrics.jsonl"
train 4 quiet --sp odysseus --val "$data" --overlap off && same first quiet
ok $? "--overlap off changes no bit"
python3 - "$work/first" <<'PY'
import json, sys
d = sys.argv[1]
rows = [json.loads(l) for l in open(d + "/metrics.jsonl")]
need = "step tokens loss grad_norm lr step_ms tokens_per_s mfu_causal mfu_full mem_bytes comm_bytes".split()
assert [r["step"] for r in rows] == [0, 1, 2] and all(k in r for r in rows for k in need) and "val_loss" in rows[-1]
ledger = json.load(open(d + "/comm.json"))
assert sum(r["bytes"] for r in ledger) == rows[0]["comm_bytes"] > 0
assert all(r["bytes"] == r["expected_bytes"] for r in ledger)
assert json.load(open(d + "/config.json"))["flags"]["sp"] == "odysseus"
PY
ok $? "the run directory holds what the contract names"
before=$(cat "$work/first/metrics.jsonl" | cksum)
run_ranks 1 ./train_gpt_cpu "${small[@]}" --out "$work/first" >"$work/out" 2>&1
[ $? -ne 0 ] && grep -q 'already holds a metrics.jsonl' "$work/out" &&
    [ "$before" = "$(cat "$work/first/metrics.jsonl" | cksum)" ]
ok $? "a second run into the same directory is refused and changes nothing"
train 2 wide --sp ulysses --train "$work/wide.bin" 2>/dev/null
refuses 1 'given twice' "${small[@]}" --train "$work/wide.bin"
rm -rf "$work/w1"
run_ranks 1 ./train_gpt_cpu --train "$work/wide.bin" --seq-len 64 --steps 2 --out "$work/w1" >"$work/out" 2>&1
ok $? "uint32 shards are read"

# ---- the team of threads that OpenMP grants, whatever was planned
losses() { sed -E 's/.*"loss": ([^,]*), "grad_norm": ([^,]*),.*/\1 \2/' "$work/$1/metrics.jsonl" 2>/dev/null; }
wide=(--seq-len 256 --micro-batch 4 --dim 256 --ffn 512)
team() { # team RANKS NAME ENVIRONMENT ARGS...
    local ranks=$1 name=$2 setting=$3
    shift 3
    rm -rf "${work:?}/$name"
    env "$setting" bash -c 'source scripts/common.sh; n=$1; shift; run_ranks "$n" "$@"' _ "$ranks" ./train_gpt_cpu \
        --train "$data" --batch 4 --steps 3 --threads 3 --out "$work/$name" "$@" >"$work/out" 2>&1
}
for ranks in 1 2; do
    team $ranks "team$ranks" ODYSSEUS=1 "${wide[@]}"
    for setting in OMP_THREAD_LIMIT=1 OMP_THREAD_LIMIT=2 OMP_DYNAMIC=true OMP_MAX_ACTIVE_LEVELS=0 OMP_NUM_THREADS=1; do
        team $ranks granted $setting "${wide[@]}" && [ -n "$(losses granted)" ] &&
            [ "$(losses granted)" = "$(losses "team$ranks")" ]
        status=$?
        note=$(grep -m 1 -o 'OpenMP grants . of the 3 threads planned' "$work/out")
        case $setting in *LIMIT* | *LEVELS*) [ -n "$note" ] || status=1 ;; *) [ -z "$note" ] || status=1 ;; esac
        ok $status "$setting, $ranks ranks: the bits of a full team${note:+; $note}"
    done
done

# ---- a process alone needs no launcher, and what it prints arrives or is an error
if is_open_mpi; then
    for args in --help --dry-run "--init-only --out $work/alone" "--train $work/a_0.bin --seq-len 64 --steps 1"; do
        # shellcheck disable=SC2086
        OMPI_MCA_pml=none-such ./train_gpt_cpu $args >"$work/out" 2>&1 # with this, MPI does not start
        ok $? "no MPI for ${args%% *}"
    done
    PMI_RANK=0 PMI_SIZE=4 ./train_gpt_cpu --dry-run >"$work/out" 2>&1
    [ $? -eq 1 ] && grep -q '^train_gpt: error: 4 ranks were started, but MPI sees one' "$work/out"
    ok $? "ranks whose launcher is not MPI's do not train alone, each for itself"
fi
for args in --help --dry-run "--train $work/a_0.bin --seq-len 64 --steps 2 --out $work/unheard"; do
    # shellcheck disable=SC2086
    ./train_gpt_cpu $args >/dev/full 2>"$work/out"
    code=$?
    [ $code -eq 1 ] && [ "$(grep -c '^train_gpt: error: cannot write to standard output' "$work/out")" -eq 1 ]
    ok $? "${args%% *} onto a full disk: exit code $code, $(cut -c 1-90 "$work/out" | head -n 1)"
done
[ "$(wc -l <"$work/unheard/metrics.jsonl")" -eq 2 ]
ok $? "a training that nobody hears ends with its metrics"
# ---- nothing to learn is no perfect loss
python3 - "$work" <<'PY'
import struct, sys
def shard(name, tokens):
    open(f"{sys.argv[1]}/{name}", "wb").write(struct.pack(f"<256i{len(tokens)}H", 20240520, 1, len(tokens), *[0] * 253,
                                                          *tokens))
shard("mute.bin", [97] * 257)
shard("half.bin", [98 + i % 9 for i in range(64)] + [97] * 65)
PY
mute=(--seq-len 64 --batch 1 --ignore-token 97)
refuses 1 'every target of --train .* is ignored' --train "$work/mute.bin" "${mute[@]}" --steps 9
refuses 2 'every target of --train .* is ignored' --train "$work/mute.bin" "${mute[@]}" --steps 9
refuses 1 'ignore-token 256 is no token of this model; its vocabulary is 0 to 255' "${small[@]}" --ignore-token 256
refuses 1 'every target is ignored, so there is no loss' --val "$work/mute.bin" "${mute[@]}" --steps 0
small=("${mute[@]}" --train "$work/half.bin" --steps 2)
train 2 half --val "$work/mute.bin" && grep -q 'step 2/2 | loss none, no target counts' "$work/out" &&
    grep -q '^note .*no validation loss' "$work/out" &&
    ! grep -q 'val 0\.' "$work/out" && python3 - "$work/half/metrics.jsonl" <<'PY'
import json, sys
a, b = map(json.loads, open(sys.argv[1]))
assert a["loss"] > 1 and b["loss"] is None and b["grad_norm"] == 0 and "val_loss" not in b
PY
ok $? "a step without a target, and a validation without one, state no loss"
small=(--val "$data" --seq-len 64 --batch 4)
train 2 judged --steps 0 && judged=$(sed -n 's/^val *\([^ ]*\) over.*/\1/p' "$work/out") && [ -n "$judged" ] &&
    python3 - "$work/judged/metrics.jsonl" "$judged" <<'PY'
import json, sys
row, = map(json.loads, open(sys.argv[1]))
assert row["step"] == 0 and row["loss"] is None and f'{row["val_loss"]:.4f}' == sys.argv[2] and 5 < row["val_loss"] < 7
PY
ok $? "--steps 0 --val validates once, without --train: ${judged:-}"
small=(--train "$data" --seq-len 64 --batch 4 --steps 3)

# ---- outputs replace nothing
echo mine >"$work/mine" && ln -s "$work/nothing" "$work/dangling" && ln -s "$work/mine" "$work/link" &&
    ln -s /dev/null "$work/sink"
for flag in dump-grads trace; do
    for taken in mine dangling link; do
        refuses 1 "--$flag .*/$taken is there already.*nothing is overwritten" "${small[@]}" --out "$work/refused" \
            --$flag "$work/$taken"
    done
    refuses 1 "--$flag .* is there already" "${small[@]}" --$flag "$work/a_0.bin"
    refuses 1 "--$flag .* is a file of the run itself" "${small[@]}" --out "$work/refused" \
        --$flag "$work/refused/metrics.jsonl"
    train 1 sunk --$flag "$work/sink" && [ -L "$work/sink" ] && [ -c /dev/null ]
    ok $? "--$flag writes through a link to /dev/null"
    mkfifo "$work/$flag.pipe" && { cat "$work/$flag.pipe" >"$work/$flag.read" & }
    reader=$!
    train 1 piped --$flag "$work/$flag.pipe"
    code=$?
    [ $code -eq 0 ] || kill $reader 2>/dev/null
    wait $reader
    [ $code -eq 0 ] && [ -p "$work/$flag.pipe" ] && [ "$(wc -c <"$work/$flag.read")" -gt 1000 ]
    ok $? "--$flag writes into a pipe and leaves it one"
    train 1 inside --$flag "$work/inside/$flag.json" && [ "$(wc -c <"$work/inside/$flag.json")" -gt 1000 ]
    ok $? "--$flag into the run's own directory"
done
[ "$(cat "$work/mine")" = mine ] && [ ! -e "$work/nothing" ]
ok $? "what stood there still stands"
refuses 1 'name the same file' "${small[@]}" --dump-grads "$work/one" --trace "$work/one"
run_ranks -t 60 2 ./train_gpt_cpu "${small[@]::6}" --steps 100000000 --log-every 100000000 --out "$work/gone" \
    >"$work/out" 2>&1 &
launched=$!
for ((i = 0; i < 200; i++)); do [ -s "$work/gone/metrics.jsonl" ] && break || sleep 0.2; done
rm -rf "$work/gone"
wait $launched
code=$?
[ $code -ne 0 ] && [ $code -ne 124 ] &&
    [ "$(grep -c '^train_gpt: error: .*was removed while the run went on' "$work/out")" -eq 1 ]
ok $? "a run directory removed in mid-run ends the run, exit code $code"

# ---- a path that exists is taken before its pattern
first_loss() { sed -n 's/.*"step": 0,.*"loss": \([^,]*\),.*/\1/p' "$work/$1/metrics.jsonl"; }
small=(--seq-len 64 --batch 4 --steps 1)
train 1 plain --train "$work/a_1.bin" && plain=$(first_loss plain)
mkdir "$work/run[1]" "$work/run1"
cp "$work/a_1.bin" "$work/run[1]/a.bin" && cp "$work/a_0.bin" "$work/run1/a.bin" &&
    cp "$work/a_1.bin" "$work/back\\slash*.bin"
for name in 'run[1]/a.bin' 'back\slash*.bin'; do
    train 1 exact --train "$work/$name" --val "$work/$name" && [ -n "$plain" ] && [ "$(first_loss exact)" = "$plain" ]
    ok $? "--train $name is that file"
done
mkdir "$work/order" # 64 tokens + 1 each: the first step's four sequences say in which order they came
for name in t_10 t_2 B a; do python3 - "$work/order/$name.bin" $RANDOM <<'PY'
import struct, sys
open(sys.argv[1], "wb").write(struct.pack("<256i", 20240520, 1, 65, *[0] * 253)
                              + bytes(b for i in range(65) for b in (97 + (i * int(sys.argv[2])) % 23, 0)))
PY
done
python3 - "$work/order" <<'PY' # what the right order gives, as one file of one sequence a step
import sys
d = sys.argv[1]
for i, name in enumerate(["B", "a", "t_10", "t_2"]):
    open(f"{d}/../sorted_{i}.bin", "wb").write(open(f"{d}/{name}.bin", "rb").read())
PY
small=(--seq-len 64 --batch 1 --steps 4)
train 1 sorted --train "$work/sorted_*.bin" && train 1 listed --train "$work/order/*.bin" && same sorted listed
ok $? "shards come in the order of their names' bytes"
small=(--train "$data" --seq-len 64 --batch 4 --steps 3)

# ---- things that go wrong on the way
rm -rf "$work/nan"
run_ranks 2 ./train_gpt_cpu "${small[@]::6}" --lr 1000 --grad-clip 0 --weight-decay 1000 --steps 200 --out "$work/nan" \
    >"$work/out" 2>&1
code=$?
[ $code -ge 1 ] && [ $code -le 127 ] &&
    grep -Eq '^train_gpt: error: step [0-9]+: loss .*first not finite: .* on rank [01]' "$work/out" &&
    [ "$(wc -l <"$work/nan/metrics.jsonl")" -ge 1 ] &&
    python3 -c 'import json,sys; [json.loads(l) for l in open(sys.argv[1])]' "$work/nan/metrics.jsonl"
ok $? "a loss that is not finite: $(grep -m1 -o 'step [0-9]*: loss.*' "$work/out" | cut -c 1-150)"
(
    trap '' XFSZ # a write past the limit then fails like one on a full disk; 16 MB leave room for MPI's own files
    ulimit -f 16384
    ./train_gpt_cpu --init-only --dim 512 --heads 8 --ffn 1536 --layers 6 --out "$work/full" >"$work/out" 2>&1
)
code=$?
[ $code -ge 1 ] && [ $code -le 127 ] && grep -Eq '^train_gpt: error: .*File too large' "$work/out" &&
    ! ls "$work/full" | grep -q safetensors
ok $? "a full disk: $(grep -m1 '^train_gpt' "$work/out" | cut -c 19-140)"
many=$((1000000 + $$)) # steps by which the ranks of this very run are known
run_ranks -t 600 4 ./train_gpt_cpu "${small[@]::6}" --steps $many --log-every 1 >"$work/out" 2>&1 &
launched=$!
for _ in $(seq 3000); do ! grep -q '^step 1/' "$work/out" || break; sleep 0.1; done # until all ranks train
begin=$(date +%s%N)
pkill -9 -n -f "train_gpt_cpu.*--steps $many"
wait $launched
code=$?
seconds=$((($(date +%s%N) - begin) / 1000000000))
[ $code -ne 0 ] && [ $code -ne 124 ] && ! pgrep -f "train_gpt_cpu.*--steps $many" >/dev/null
ok $? "a killed rank takes all down (after $seconds s, exit code $code)"
for scheme in "${schemes[@]}"; do
    run_ranks 4 ./train_gpt_cpu "${small[@]}" --sp $scheme --selfcheck on >"$work/out" 2>&1 &&
        grep -q 'check .*changed tokens move what may see them' "$work/out"
    ok $? "$scheme: --selfcheck on finds nothing wrong"
done

# ---- memory
python3 - "$work" <<'PY'
import json, resource, subprocess, sys
d = sys.argv[1]
args = ["./train_gpt_cpu", "--train", d + "/a_*.bin", "--seq-len", "1024", "--batch", "2", "--micro-batch", "2",
        "--steps", "2", "--layers", "6", "--dim", "512", "--heads", "8",
        "--ffn", "1536", "--threads", "2", "--out", d + "/rss"]
subprocess.run(args, check=True, stdout=subprocess.DEVNULL)
rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
arena = json.loads(open(d + "/rss/metrics.jsonl").readline())["mem_bytes"]
print(f"{rss / 1e6:.0f} MB resident, arena {arena / 1e6:.0f} MB", file=open(d + "/out", "w"))
sys.exit(not (arena * 0.9 <= rss <= arena * 1.1 + 64e6 and arena > 3e8))
PY
ok $? "resident memory is the arena within 10% + 64 MB: $(cat "$work/out")"

# ---- dry runs equal real runs
for scheme in "${schemes[@]}"; do
    train 4 "real_$scheme" --sp $scheme
    ./train_gpt_cpu --dry-run --world 4 --sp $scheme --seq-len 64 --batch 4 >"$work/dry" 2>&1
    python3 - "$work/real_$scheme" "$work/dry" <<'PY'
import json, sys
rows = json.load(open(sys.argv[1] + "/comm.json"))
real = {(r["op"], r["block"], r["phase"], r["what"]): (r["calls"], r["bytes"], r["expected_bytes"]) for r in rows}
dry, total = {}, None
for line in open(sys.argv[2]):
    w = line.split()
    if len(w) == 7 and w[0] in "all_gather reduce_scatter all_reduce all_to_all send_recv".split():
        dry[tuple(w[:4])] = tuple(int(x) for x in w[4:])
    if len(w) == 2 and w[0] == "total": total = float(w[1])
mem = json.loads(open(sys.argv[1] + "/metrics.jsonl").readline())["mem_bytes"]
assert dry == real and real, (dry, real)
assert abs(total * 1e6 - mem) < 5000, (total, mem)
PY
    ok $? "$scheme: a dry run prints the real run's traffic and memory"
done
begin=$(date +%s%N)
./train_gpt_cpu --dry-run --world 4096 --model llama2-7b --dp 128 --seq-len 65536 --batch 128 >"$work/out" 2>&1 &&
    grep -q 'DIFFERS' "$work/out" && false
code=$?
ok $((code == 1 ? 0 : 1)) "a dry run of 4096 ranks: $((($(date +%s%N) - begin) / 1000000)) ms"

# ---- weights in and out
run_ranks 1 ./train_gpt_cpu --init-only --seed 5 --model tiny-gpt --out "$work/i1" >"$work/out" 2>&1 &&
    run_ranks 4 ./train_gpt_cpu --init-only --seed 5 --model tiny-gpt --sp tpsp --out "$work/i4" >>"$work/out" 2>&1 &&
    cmp "$work/i1/model.safetensors" "$work/i4/model.safetensors" && cmp "$work/i1/config.json" "$work/i4/config.json"
ok $? "--init-only writes the same bytes on 1 and 4 ranks"
run_ranks 4 ./train_gpt_cpu --init-only --model "$work/i1" --sp ring --out "$work/i5" >"$work/out" 2>&1 &&
    cmp "$work/i1/model.safetensors" "$work/i5/model.safetensors"
ok $? "--model DIR --init-only gives the directory back"
run_ranks 1 ./train_gpt_cpu --init-only --window 24 --out "$work/i6" >"$work/out" 2>&1 &&
    grep -q '"model_type":.*"mistral"' "$work/i6/config.json" &&
    grep -q '"sliding_window":.*24' "$work/i6/config.json" &&
    run_ranks 2 ./train_gpt_cpu --model "$work/i6" "${small[@]}" --doc-mask --eot 97 >"$work/out" 2>&1 &&
    grep -q '^masks .*sees 24 keys in 4 of 4 layers; documents see themselves, and end at token 97$' "$work/out" &&
    grep -q '^check .*changed tokens move what may see them' "$work/out"
ok $? "--window stands in config.json, and is what the model read from there has"
train 1 grads1 --model "$work/i1" --dump-grads "$work/g1.safetensors" &&
    train 4 grads4 --model "$work/i1" --sp tpsp --dump-grads "$work/g4.safetensors" &&
    python3 - "$work/g1.safetensors" "$work/g4.safetensors" <<'PY'
import json, struct, sys
def read(path):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8:8 + n])
    out = {}
    for k, t in head.items():
        if k == "__metadata__": continue
        b, e = t["data_offsets"]
        out[k] = struct.unpack(f"<{(e - b) // 4}f", raw[8 + n + b:8 + n + e])
    return out
a, b = read(sys.argv[1]), read(sys.argv[2])
assert a.keys() == b.keys() and len(a) == 4 * 12 + 4
for k in a:
    scale = max(map(abs, a[k]))
    assert scale > 0 and max(abs(x - y) for x, y in zip(a[k], b[k])) <= 1e-4 * scale, k
PY
ok $? "--dump-grads: every tensor under its Hugging Face name, 1 rank as 4"


# ---- the line of a step ----------------------------------------------------------------------------------------------

# on_terminal COLUMNS [NAME=VALUE...] COMMAND...: run it with a terminal for stdout and stderr; what came to
# $work/out, bytes as they are
on_terminal() {
    python3 - "$work/out" "$@" <<'PY'
import fcntl, os, pty, struct, subprocess, sys, termios
out, columns, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
ours, theirs = pty.openpty()
fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
run = subprocess.Popen(["env", "TERM=xterm", "LC_ALL=C.UTF-8"] + words, stdin=theirs, stdout=theirs, stderr=theirs)
os.close(theirs)
with open(out, "wb") as file:
    while True:
        try: part = os.read(ours, 65536)
        except OSError: break  # all ends of the terminal are closed
        if not part: break
        file.write(part)
sys.exit(run.wait())
PY
}
# shows PYTHON: `seen` is what stands on the terminal in the end, line by line; `raw` all that came
shows() {
    python3 - "$work/out" "$1" <<'PY'
import re, sys
raw = open(sys.argv[1], encoding="utf-8", newline="").read()
seen = [re.split(r"\r\x1b\[K", line.rstrip("\r"))[-1] for line in raw.replace("\r\n", "\n").split("\n")]
steps = [line for line in seen if line.startswith("step ")]
sys.exit(0 if eval(f"({sys.argv[2]})") else print(raw[-2000:]) or 1)
PY
}
eight=(--train "$data" --seq-len 64 --batch 4 --steps 8)
on_terminal 100 ./train_gpt_cpu "${eight[@]}" &&
    shows 'raw.count("\r\x1b[K") == 7 and len(steps) == 1 and re.match(r"step 8/8 .* lr ", steps[0]) and
        re.search("[\u2581-\u2588]{6}$", raw.split("\r\x1b[K")[5]) and
        not re.search("[\u2581-\u2588]", raw.split("\r\x1b[K")[0])'
ok $? "on a terminal a step's line is written over the one before, with the losses so far, and the last stays"
on_terminal 60 ./train_gpt_cpu "${eight[@]}" &&
    shows 'max(len(x) for x in raw.split("\r\x1b[K")[1:-1]) <= 59 and not re.search("[\u2581-\u2588]", raw)'
ok $? "on a narrow one it has no losses, and no more columns than there are"
on_terminal 100 LC_ALL=C ./train_gpt_cpu "${eight[@]}" && shows 'raw.isascii() and raw.count("\r\x1b[K") == 7'
ok $? "where the locale does not know the characters it has no losses"
on_terminal 100 TERM=dumb ./train_gpt_cpu "${eight[@]}" && shows '"\x1b" not in raw and len(steps) == 8'
ok $? "a terminal that cannot write over a line gets plain ones"
on_terminal 100 ./train_gpt_cpu "${eight[@]}" --val "$data" --eval-every 3 --eval-batches 1 --save-every 4 \
    --out "$work/live" &&
    shows '[x.split()[1] for x in steps] == ["3/8", "6/8", "8/8"] and
        all(" val " in x for x in steps) and sum(x.startswith("saved  ") for x in seen) == 2'
ok $? "validations stay on it, and whatever else is said has lines of its own"
on_terminal 100 ./train_gpt_cpu --train "$data" --seq-len 64 --batch 1 --steps 60 --lr 0 --spike-sigma 1e-9 \
    --on-spike stop
shows 'any(x.startswith("train_gpt: error: step ") for x in seen)'
ok $? "an error has a line of its own: $(grep -ao 'train_gpt: error.*' "$work/out" | cut -c 1-80)"
on_terminal 100 bash -c 'source scripts/common.sh && run_ranks 2 "$@"' - ./train_gpt_cpu "${eight[@]}" --sp ring &&
    shows 'raw.count("\r\x1b[K") == 7 and len(steps) == 1'
ok $? "so it is under mpirun"
on_terminal 100 bash -c 'source scripts/common.sh && run_ranks 2 "$@" >"$0" 2>&1' "$work/to_file" ./train_gpt_cpu \
    "${eight[@]}" --sp ring &&
    mv "$work/to_file" "$work/out" && shows '"\x1b" not in raw and len(steps) == 8'
ok $? "but not where mpirun writes to a file, though its ranks have terminals"

checks_done
