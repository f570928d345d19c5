#!/usr/bin/env bash
# test_stops.sh - what may stop a sound run must not: the self-check under weights, data and shapes at their extremes,
# where besides the run must be, bit for bit, that without it; and --comm-timeout, which must stop where a rank stands
# still, and not where it is slow. TAP, run from the repository's root by scripts/test.sh after the binaries are built.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

python3 - "$work" <<'PY'
import array, random, sys
d = sys.argv[1]
random.seed(3)
def shard(name, tokens):
    header = array.array("i", [20240520, 1, len(tokens)] + [0] * 253)
    open(f"{d}/{name}.bin", "wb").write(header.tobytes() + array.array("H", tokens).tobytes())
shard("text", [random.randrange(97, 123) for _ in range(6000)])
shard("constant", [97] * 6000)
shard("binary", [random.randrange(2) for _ in range(6000)])
PY

# weights NAME FACTOR WORDS FLAGS...: an initial model whose matrices with one of WORDS (a|b) in their
# names are FACTOR times as large
weights() { make_weights "$@" || ok 1 "weights for $1"; }
make_weights() {
    rm -rf "$work/start"
    ./train_gpt_cpu --init-only --out "$work/start" "${@:4}" >"$work/out" 2>&1 &&
        python3 - "$work/start" "$work/$1" "$2" "$3" <<'PY'
import array, json, os, struct, sys
source, out, factor, words = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4].split("|")
raw = bytearray(open(source + "/model.safetensors", "rb").read())
n = 8 + struct.unpack("<Q", raw[:8])[0]
changed = 0
for name, t in json.loads(raw[8:n]).items():
    if name == "__metadata__" or len(t["shape"]) < 2 or not any(w in name for w in words): continue
    begin, end = (n + x for x in t["data_offsets"])
    raw[begin:end] = array.array("f", (x * factor for x in array.array("f", bytes(raw[begin:end])))).tobytes()
    changed += 1
assert changed
os.mkdir(out)
open(out + "/model.safetensors", "wb").write(raw)
open(out + "/config.json", "w").write(open(source + "/config.json").read())
PY
}

strip() { sed -E 's/"(step_ms|host_ms|tokens_per_s|mfu_causal|mfu_full|comm_exposed_ms)": [^,}]*,? ?//g' "$1"; }

# quiet RANKS TEXT FLAGS...: trains (with $program, on $data), the self-check says TEXT, and the run's numbers, memory
# and traffic are those of --selfcheck off
data=text program=train_gpt_cpu
quiet() {
    local ranks=$1 text=$2 common=("./$program" --train "$work/$data.bin" --steps 2 --peak-tflops 1000)
    shift 2
    rm -rf "$work/on" "$work/off"
    run_ranks -t 120 "$ranks" "${common[@]}" --selfcheck on --out "$work/on" "$@" >"$work/out" 2>&1 &&
        grep -q "^check .*$text" "$work/out" &&
        run_ranks -t 120 "$ranks" "${common[@]}" --selfcheck off --out "$work/off" "$@" >>"$work/out" 2>&1 &&
        [ "$(wc -l <"$work/on/metrics.jsonl")" -eq 2 ] &&
        diff <(strip "$work/on/metrics.jsonl") <(strip "$work/off/metrics.jsonl") >>"$work/out"
    ok $? "$program, $ranks ranks, ${*//$work\//}: the self-check says '$text', and the run is that without it"
}
exact='changed tokens move what may see them'
schemes_of ./train_gpt_cpu

meshes() { # FLAGS...
    quiet 4 "$exact" --sp ring --ring-layout contiguous "$@"
    quiet 6 "$exact" --sp odysseus "$@"
    quiet 6 "$exact" --sp ulysses --ring 2 "$@"
}

llama=(--dim 96 --heads 6 --ffn 132 --vocab 256)
gpt=(--model tiny-gpt --dim 96 --heads 6 --ffn 192)
for factor in 1e-6 1e-5 1e4; do
    weights "all$factor" $factor layers "${llama[@]}"
    meshes --seq-len 60 --model "$work/all$factor"
done
for factor in 3e-5 1e-5; do
    weights "gpt$factor" $factor attn "${gpt[@]}"
    meshes --seq-len 60 --model "$work/gpt$factor"
done
weights one-hot 1e4 'q_proj|k_proj' "${llama[@]}"
meshes --seq-len 60 --model "$work/one-hot"
weights mute 0 o_proj --layers 1 "${llama[@]}"
quiet 2 "$exact" --seq-len 64 --model "$work/mute"
weights blank 0 embed "${llama[@]}"
quiet 4 "$exact" --seq-len 64 --sp ring --model "$work/blank"
data=constant quiet 4 "$exact" --seq-len 64 --sp ring "${llama[@]}"

# ---- small: a token a rank, two words, few channels, heads shared
for scheme in "${schemes[@]}"; do # with the default layout a ring of 4 wants 8 tokens
    quiet 4 "$exact" --seq-len 4 --sp "$scheme" --ring-layout contiguous
done
quiet 4 "$exact" --seq-len 4 --sp ring --ring-layout stripe
data=binary quiet 4 "$exact" --seq-len 64 --sp ulysses --vocab 2
quiet 8 "$exact" --seq-len 8 --sp odysseus --heads 8 --kv-heads 1
quiet 4 "$exact" --seq-len 8 --sp ring --dim 2 --heads 1 --ffn 1 --layers 1
quiet 4 "$exact" --seq-len 8 --sp ring --model tiny-gpt --dim 2 --heads 2 --ffn 1 --layers 1
quiet 4 'cannot tell one token from another, so the probe says nothing' --seq-len 8 --sp ring --model tiny-gpt --dim 1 \
    --heads 1 --ffn 1 --layers 1

# ---- compare.py: a text learned by heart leaves losses near 0, of which a rounding is a large part
compared() { # LOSS LOSS: the exit code of two runs that end with them
    python3 - "$work" "$1" "$2" <<'PY' && python3 scripts/compare.py "$work/run0" "$work/run1" >"$work/out" 2>&1
import json, os, shutil, sys
for i, loss in enumerate(sys.argv[2:]):
    to = f"{sys.argv[1]}/run{i}"
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(sys.argv[1] + "/on", to)
    rows = [json.loads(line) for line in open(to + "/metrics.jsonl")]
    rows[-1]["loss"] = float(loss)
    open(to + "/metrics.jsonl", "w").write("".join(json.dumps(row) + "\n" for row in rows))
PY
}
quiet 1 "$exact" --seq-len 16
compared 0.0012 0.0011
ok $? "compare.py: losses of 0.0012 and 0.0011 are one curve"
compared 5.52 5.51
[ $? -eq 1 ] && grep -q DIFFERS "$work/out"
ok $? "compare.py: losses of 5.52 and 5.51 are not"

# ---- the same in bf16, under the emulator
program=train_gpt_emu
for factor in 1e-3 1e4; do
    weights "bf16-$factor" $factor layers --layers 1 --dim 64 --heads 4 --kv-heads 2 --ffn 96
    quiet 2 "$exact" --seq-len 48 --sp ring --ring-layout contiguous --model "$work/bf16-$factor"
done
quiet 4 "$exact" --seq-len 4 --sp odysseus --ring 2 --layers 1 --dim 64 --heads 4 --ffn 96
quiet 2 "$exact" --seq-len 1024 --sp ulysses --model tiny-gpt --max-pos 1024 --layers 1 --dim 16 --heads 2 --ffn 16

# ---- a rank that stands still, and one that is only slow

# still WHAT SECONDS STARTED FLAGS...: on three ranks, once STARTED has been printed rank 1 is stopped; after
# --comm-timeout SECONDS one line names it and its host, what was waited for, and nobody is left
still() {
    local what=$1 timeout=$2 started=$3 code=0 launched pid silent
    silent="rank 1 on $(hostname) does not answer"
    shift 3
    run_ranks -t 120 3 "./$program" --train "$work/text.bin" --seq-len 48 --batch 3 --layers 2 --dim 24 --heads 6 \
        --ffn 24 --peak-tflops 1000 --threads 1 --comm-timeout "$timeout" --out "$work/still" "$@" >"$work/out" 2>&1 &
    launched=$!
    for _ in $(seq 600); do ! grep -q "$started" "$work/out" || break; sleep 0.1; done
    pid=$(rank_pid 1)
    [ -n "$pid" ] && kill -STOP "$pid"
    wait $launched || code=$?
    [ $code -ge 1 ] && [ $code -ne 124 ] && [ "$(grep -c '^train_gpt: error' "$work/out")" -eq 1 ] &&
        grep -Eq "^train_gpt: error: $what.* has not ended after [0-9.]+ s .--comm-timeout.: $silent" "$work/out" &&
        ! pgrep -f "$work/still" >/dev/null
    ok $? "$program: a rank stands still: $(grep -m 1 '^train_gpt: error' "$work/out" | cut -c 18-200)"
    rm -rf "$work/still"
}

rank_pid() { # RANK: its process, by what Open MPI tells it
    local pid
    for pid in $(pgrep -f "^\\./$program .*$work/still"); do
        ! tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1" || echo "$pid"
    done
}

# slow SECONDS TIMES TEXT FLAGS...: rank 1 is stopped for SECONDS, so many TIMES, and the run goes on to its end;
# TEXT: what must have been said
slow() {
    local seconds=$1 times=$2 text=$3 code=0 stopped=0 launched pid
    shift 3
    run_ranks -t 120 3 "./$program" --train "$work/text.bin" --seq-len 48 --batch 3 --layers 2 --dim 24 --heads 6 \
        --ffn 24 --peak-tflops 1000 --threads 1 --log-every 1000000 --out "$work/still" "$@" >"$work/out" 2>&1 &
    launched=$!
    for _ in $(seq 600); do [ ! -s "$work/still/metrics.jsonl" ] || break; sleep 0.1; done
    for _ in $(seq "$times"); do
        pid=$(rank_pid 1)
        [ -n "$pid" ] && kill -STOP "$pid" && sleep "$seconds" && kill -CONT "$pid" && stopped=$((stopped + 1))
        sleep 0.5
    done
    wait $launched || code=$?
    [ $code -eq 0 ] && [ "$stopped" -eq "$times" ] && ! grep -q 'error' "$work/out" && grep -q "$text" "$work/out"
    ok $? "$program: a rank that stands still for $seconds s, $times times, $*"
    rm -rf "$work/still"
}

program=train_gpt_cpu
still '(all_gather|reduce_scatter|all_reduce) of [0-9]+ bytes over 3 ranks .[a-z]+, [a-z]+, [a-z]+(; layer [0-9]+)?.' \
    4 '^step 2/' --steps 1000000 --sp odysseus
still '(send_recv|all_gather|reduce_scatter|all_reduce) of [0-9]+ bytes over 3 ranks .*' 4 '^step 2/' \
    --steps 1000000 --sp ring
slow 2 3 '^step 3000/3000' --steps 3000 --comm-timeout 20
slow 4 1 '^step 3000/3000' --steps 3000 --comm-timeout 0

checks_done
