#!/usr/bin/env bash
# test_scripts.sh - the runs that people copy, end to end at toy size, as they meet them: arithmetic, tables,
# resumption, wrong inputs, Slurm and host files with stand-ins for srun and for the hosts, quickstart's choice of a
# program. TAP, run by scripts/test.sh.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
root=$PWD
program=./train_gpt_emu # the CUDA program; quickstart's branches below run the CPU's, for their longer sequences

script() { # [NAME=VALUE...] COMMAND...: run it with these settings; output in $work/out
    env PROGRAM="$program" "$@" >"$work/out" 2>&1
}
has() { grep -Eq -- "$1" "$work/out"; }

# refuses PATTERN [NAME=VALUE...] COMMAND...: exit code 1, one line of error that matches,
# nothing else, no output folder
refuses() {
    local pattern=$1 code
    shift
    rm -rf "$work/refused"
    script OUT="$work/refused" "$@"
    code=$?
    [ "$code" -eq 1 ] && [ "$(wc -l <"$work/out")" -eq 1 ] &&
        grep -Eq "^[a-z0-9_]+\.sh: error: .*$pattern" "$work/out" && [ ! -e "$work/refused" ]
    ok $? "refused: $(head -n 1 "$work/out" | cut -c 1-150)"
}

toy='--layers 2 --dim 64 --heads 4 --vocab 128 --peak-tflops 1'
llama="$toy --kv-heads 2 --ffn 176"
bench=scripts/llama2_7b_8xa100.sh
schemes_of $program

python3 - "$work/tokens.bin" <<'PY'
import array, random, sys
random.seed(7)
tokens = array.array("H", (random.randrange(128) for _ in range(4000)))
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, len(tokens)] + [0] * 253).tobytes() + tokens.tobytes())
PY

steps() { # DIR N: a run directory of N steps with finite losses
    python3 - "$1" "$2" <<'PY'
import json, math, sys
rows = [json.loads(line) for line in open(sys.argv[1] + "/metrics.jsonl")]
sys.exit(not (len(rows) == int(sys.argv[2]) and all(math.isfinite(row["loss"]) for row in rows)))
PY
}

for file in scripts/*.sh scripts/*.sbatch; do
    bash -n "$file" >"$work/out" 2>&1
    ok $? "$file parses"
done

# ---- the benchmark of the original
script DRY_RUN=1 OUT="$work/dry" bash $bench &&
    [ "$(grep -Ec '^ +(16|32|64|96)K [a-z]+ +[0-9.]+e\+1[456] +[0-9.]+ +[0-9.]+ +[0-9.]+' "$work/out")" \
    -eq $((4 * ${#schemes[@]})) ] &&
    has '^ +64K odysseus +5.98e\+15 ' && has "^$((4 * ${#schemes[@]})) cells: " && [ ! -e "$work/dry" ]
ok $? "8xa100: with DRY_RUN=1 the arithmetic of every cell, and nothing else"
script DRY_RUN=1 OUT="$work/dry" SCHEMES="tp tpsp ulysses ring odysseus" bash $bench && has '^20 cells: 17.1 minutes'
ok $? "8xa100: as long as its head says"

# a program that has no memory for one scheme
cat >"$work/small_gpu" <<END
#!/usr/bin/env bash
if [[ -n \${NO_ROOM-} && " \$* " == *" --sp \$NO_ROOM "* && " \$* " != *" --dry-run "* ]]; then
    [[ \${OMPI_COMM_WORLD_RANK-0} == 0 ]] || sleep 3 # as the program: the launcher ends all with the first
    echo "train_gpt: error: out of memory: 1 ranks on this GPU need 81920.0 MB each, 80000.0 MB are available" >&2
    exit 1
fi
exec $program "\$@"
END
chmod +x "$work/small_gpu"
out=$work/bench
toy_bench() { script PROGRAM="$work/small_gpu" NP=2 STEPS=5 MODEL=tiny-llama FLAGS="$llama" OUT="$out" "$@" \
    bash $bench; }
cells() { # EXPRESSION: of the table's JSON, cells as c["32-tp"]
    python3 - "$out/table.json" "$1" <<'PY'
import json, sys
table = json.load(open(sys.argv[1]))
c = {f'{cell["seq_len"]}-{cell["scheme"]}': cell for cell in table["cells"]}
sys.exit(not eval(sys.argv[2]))
PY
}
toy_bench NO_ROOM=ring LENGTHS=32 && cells "sorted(c) == sorted('32-' + s for s in '${schemes[*]}'.split())" &&
    cells 'all((row["result"] == "ok") == (row["scheme"] != "ring") for row in c.values())' &&
    cells 'c["32-ring"]["out_of_memory"]' &&
    has '^\| 32 \| ring +\| +OOM \|' && has '^- 32 ring: out of memory: 1 ranks on this GPU need 81920' &&
    has 'losses mean nothing'
ok $? "8xa100: a cell a scheme; the one without memory is recorded with its reason, the others go on"
python3 - "$out" >"$work/out" 2>&1 <<'PY'
import json, sys
out = sys.argv[1]
for cell in json.load(open(out + "/table.json"))["cells"]:
    if cell["result"] != "ok": continue
    rows = [json.loads(line) for line in open(f"{out}/cells/32-{cell['scheme']}/run/metrics.jsonl")]
    assert len(rows) == 5 and cell["timed_steps"] == 2, cell
    assert abs(cell["seconds"] - (rows[3]["step_ms"] + rows[4]["step_ms"]) / 1e3) < 1e-9, cell
    assert abs(cell["tokens_per_s"] * cell["seconds"] - 2 * 32) < 1e-6, cell
    assert cell["mem_bytes"] == rows[0]["mem_bytes"] > 0, cell
    mfu = [r["mfu_causal"] for r in rows] # a mean of equal numbers may be off in its last bit
    assert (1 - 1e-9) * min(mfu) <= cell["mfu_causal"] <= (1 + 1e-9) * max(mfu), cell
    line = next(line for line in open(out + "/table.md") if line.startswith(f"| 32 | {cell['scheme']} "))
    assert f" {cell['seconds']:.2f} | " in line and line.rstrip().endswith("- |           - |"), line
PY
ok $? "8xa100: the table's figures are those of metrics.jsonl, and not beside the original's for another model"

before=$(stat -c %y "$out/cells/32-ulysses/result")
rm "$out/cells/32-tp/result" # as if interrupted
toy_bench LENGTHS="32 33" SCHEMES="tp ulysses ring"
code=$?
[ $code -eq 1 ] && [ "$(stat -c %y "$out/cells/32-ulysses/result")" = "$before" ] &&
    has '32 ulysses: finished before' && ! has '32 (ring|tp): finished before' &&
    cells 'c["32-ring"]["result"] == c["32-tp"]["result"] == "ok"' &&
    cells '"33 does not divide" in c["33-ring"]["result"] and not c["33-ring"]["out_of_memory"]' &&
    cells "len(c) == $((${#schemes[@]} + 3)) and c['32-odysseus']['result'] == 'ok'" &&
    has '^\| 33 \| ring +\| +failed \|' && has '^- 33 ring: --seq-len 33 does not divide'
ok $? "8xa100: resumed, it repeats what failed or was interrupted, keeps the rest, and ends with 1 where a cell" \
    "failed for another reason"
toy_bench LENGTHS=32 SCHEMES=ulysses FORCE=1
[ "$(stat -c %y "$out/cells/32-ulysses/result")" != "$before" ] &&
    cells "len(c) == $((${#schemes[@]} + 3)) and c['32-ulysses']['result'] == 'ok'"
ok $? "8xa100: FORCE=1 repeats a finished cell"
toy_bench LENGTHS=32 STEPS=6
[ $? -eq 1 ] && has 'error: OUT=.* holds cells of other settings \(NP=2 STEPS=5 ' &&
    cells "len(c) == $((${#schemes[@]} + 3))"
ok $? "8xa100: cells of other settings are not mixed"
toy_bench LENGTHS=32 SCHEMES="ulysses odysseus" DATA="$work/tokens.bin" OUT="$work/own" &&
    ! has 'losses mean nothing' &&
    [ "$(grep -c '^| 32 .*%' "$work/own/table.md")" -eq 2 ] && [ ! -e "$work/own/random_32.bin" ]
ok $? "8xa100: tokens of one's own"

# finished cells as 8 GPUs would leave them
mkdir -p "$work/real"
echo "NP=8 STEPS=10 MODEL=llama2-7b PROGRAM=$program FLAGS= DATA=" >"$work/real/settings"
for cell in 16384-odysseus 16384-tp 65536-odysseus 65536-ring; do
    mkdir -p "$work/real/cells/$cell/run"
    echo ok >"$work/real/cells/$cell/result"
    for s in 0 1 2 3 4 5 6 7 8 9; do
        printf '{"step": %d, "tokens": %d, "step_ms": %d, ' $s "${cell%-*}" $((s < 3 ? 9999 : 1001))
        echo '"mfu_causal": 0.4, "mem_bytes": 20000000000, "comm_bytes": 1, "loss": 1}'
    done >"$work/real/cells/$cell/run/metrics.jsonl"
done
script OUT="$work/real" LENGTHS="16K 64K" SCHEMES=odysseus bash $bench &&
    has '^\| 16K \| odysseus \| +7.01 \| +20.00 \| +16,368 \| 40.0% \| +7.10 \| +18.5/20.8 \|$' &&
    has '^\| 16K \| tp +\| +7.01 .* +- \| +- \|$' && has '^\| 64K \| odysseus .* 38.11 \| +57.6/63.0 \|$' &&
    has '^\| 64K \| ring .* OOM \| +OOM \|$'
ok $? "8xa100: the original's figures stand beside ours, steps 3..9 are timed"

refuses "SCHEMES: 'megatron' is none of tp tpsp" SCHEMES="tp megatron" bash $bench
refuses "LENGTHS: '16M' is no length" LENGTHS="16K 16M" bash $bench
refuses 'NP=0: must be a whole number' NP=0 bash $bench
refuses 'STEPS=two: must be' STEPS=two bash $bench
refuses 'STEPS=3: steps 0 to 2 warm up' STEPS=3 bash $bench
refuses 'DATA=.*nothing.*: no such file' DATA="$work/nothing_*.bin" bash $bench
refuses 'PROGRAM=.*/none: no such program' PROGRAM="$work/none" bash $bench
refuses 'no arguments' bash $bench --lengths

# ---- long context
# shellcheck disable=SC2086
"$program" --init-only --model tiny-llama ${llama/ --peak-tflops 1/} --out "$work/hf" >"$work/out" 2>&1
long() { script NP=4 MODEL="$work/hf" DATA="$work/tokens.bin" SEQ=32 BATCH=2 STEPS=3 FLAGS="--peak-tflops 1" "$@" \
    bash scripts/long_context.sh; }
long OUT="$work/long" && has '^tokens   2 sequences x 32 = 64 a step, x 3 steps = 192$' && has '^FLOP  ' &&
    has '^memory .*--dry-run --world 4' && has '^time ' &&
    has '^mesh     odysseus on 4 ranks' && steps "$work/long" 3
ok $? "long_context: arithmetic, then odysseus on 4 ranks"
long SP=ulysses RING=2 RECOMPUTE=none VAL="$work/tokens.bin" OUT="$work/usp" &&
    has '^mesh     ulysses on 4 ranks: dp 1 x ring 2 zigzag x head 2' && steps "$work/usp" 3 &&
    grep -q val_loss "$work/usp/metrics.jsonl"
ok $? "long_context: ulysses with a ring, validated"
long OUT="$work/usp"
[ $? -ne 0 ] && has 'already holds a metrics.jsonl' && steps "$work/usp" 3
ok $? "long_context: nothing is overwritten, and the program's failure is the script's"
(cd "$work" && script NP=2 MODEL=hf DATA='tok*.bin' SEQ=32 BATCH=2 STEPS=1 OUT=here \
    bash "$root/scripts/long_context.sh") && steps "$work/here" 1
ok $? "long_context: names are relative to where one stands"
script NP=2 MODEL="$work/hf" SEQ=1K DRY_RUN=1 OUT="$work/dry" bash scripts/long_context.sh &&
    has '^tokens   8 sequences x 1024 = 8192 a step, x 200 steps = 1.638e\+06$' && ! has '^mesh' && [ ! -e "$work/dry" ]
ok $? "long_context: DRY_RUN=1 needs no data and starts nothing"
refuses 'MODEL= is missing' DATA="$work/tokens.bin" bash scripts/long_context.sh
refuses 'is not a directory' MODEL="$work/tokens.bin" DATA="$work/tokens.bin" bash scripts/long_context.sh
refuses 'holds no config.json' MODEL="$work" DATA="$work/tokens.bin" bash scripts/long_context.sh
refuses 'DATA= is missing' MODEL="$work/hf" bash scripts/long_context.sh
refuses 'DATA=.*: no such file' MODEL="$work/hf" DATA=nothing.bin bash scripts/long_context.sh
refuses 'SEQ=long: must be' MODEL="$work/hf" DATA="$work/tokens.bin" SEQ=long bash scripts/long_context.sh
refuses 'NP=0: must be' MODEL="$work/hf" DATA="$work/tokens.bin" NP=0 bash scripts/long_context.sh
refuses '--sp megatron: must be one of' MODEL="$work/hf" DATA="$work/tokens.bin" NP=2 SP=megatron \
    bash scripts/long_context.sh

# ---- GPT-2 from scratch
script DRY_RUN=1 NP=8 bash scripts/gpt2_124m.sh &&
    has '^tokens   512 sequences x 1024 = 524288 a step, x 19073 steps = 1e\+10$' &&
    has '^time     0.419 s a step .* 2.22 hours'
ok $? "gpt2_124m: the arithmetic of its recipe"
script NP=2 MODEL=tiny-gpt FLAGS="$toy" DATA="$work/tokens.bin" VAL="$work/tokens.bin" SEQ=32 BATCH=4 STEPS=4 \
    EVAL_EVERY=2 OUT="$work/gpt" bash scripts/gpt2_124m.sh &&
    has '^mesh .* on 2 ranks: dp 2 x' && steps "$work/gpt" 4 &&
    [ "$(grep -c val_loss "$work/gpt/metrics.jsonl")" -eq 2 ]
ok $? "gpt2_124m: trains on 2 data-parallel ranks, validated"
refuses 'BATCH=512 sequences do not divide over NP=3' NP=3 DATA="$work/tokens.bin" bash scripts/gpt2_124m.sh
refuses 'NP=0: must be' NP=0 DATA="$work/tokens.bin" bash scripts/gpt2_124m.sh
refuses 'DATA= is missing' bash scripts/gpt2_124m.sh
refuses 'DATA=.*: no such file' DATA=nothing.bin bash scripts/gpt2_124m.sh

# ---- how a curve leaves another
curve() { # NAME EXPRESSION [FIRST]: a run directory whose losses are that expression of step s
    python3 - "$work/$1" "$2" "${3:-0}" <<'PY'
import json, os, sys
out, first = sys.argv[1], int(sys.argv[3])
os.makedirs(out)
json.dump({"flags": {"sp": "ring"}, "world": 2, "ring": 2, "dp": 1, "precision": "fp32"},
          open(out + "/config.json", "w"))
json.dump([], open(out + "/comm.json", "w"))
with open(out + "/metrics.jsonl", "w") as file:
    for s in range(first, 60):
        file.write(json.dumps({"step": s, "loss": 3 - s / 100 + eval(sys.argv[2]), "tokens_per_s": 1, "mem_bytes": 1})
                   + "\n")
PY
}
leaves() { # PATTERN NAME: the curve leaves, and it is said so
    python3 scripts/compare.py "$work/curve" "$work/$2" >"$work/out" 2>&1
    [[ $? -eq 1 ]] && has "^DIFFERS: .*/$2: its loss curve is not that of" && has "^         $1"
    ok $? "compare: $(grep -A 1 DIFFERS "$work/out" | tail -n 1 | sed 's/^ *//' | cut -c 1-150)"
}
curve curve 0
curve same '1e-7 * (s % 3)'
curve amplified '1e-8 * 1.4 ** s * (-1) ** s'
curve jumps '1e-7 * (s % 3) + (5e-3 if s > 20 else 0)'
curve wrong 0.01
curve went-on 1e-7 50
python3 scripts/compare.py "$work/curve" "$work/same" >"$work/out" 2>&1 && has '^Over 60 steps .* at most 8.[0-9]e-08'
ok $? "compare: curves that coincide"
leaves 'from step 39 on; it grew from rounding.s 1e-06 at step 18, by at most 1.[0-9] in a step' amplified
leaves 'from step 22 on; it jumped at step 22, from [0-9.]+e-08 to 1.[0-9]e-03' jumps
leaves 'from its first step on, by 3.[0-9]e-03: other weights' wrong
python3 scripts/compare.py --brief "$work/curve" "$work/went-on" >"$work/out" 2>&1 &&
    [[ $(wc -l <"$work/out") -eq 1 ]] && has '^10 losses differ by at most'
ok $? "compare: a run that went on elsewhere, against the same steps"
! python3 scripts/compare.py "$work/went-on" "$work/curve" >"$work/out" 2>&1 && has '60 steps, not 10'
ok $? "compare: other steps are no curve"

# ---- Slurm, with a stand-in for srun that starts the ranks by mpirun
mkdir "$work/bin"
cat >"$work/bin/srun" <<END
#!/usr/bin/env bash
echo "srun \$*" >>"$work/srun.txt"
unset \${!SLURM_@} LAUNCHER
while [[ \$1 != -n ]]; do shift; done
ranks=\$2
shift 2
source "$root/scripts/common.sh"
run_ranks "\$ranks" "\$@"
END
chmod +x "$work/bin/srun"
cp scripts/slurm.sbatch "$work/slurm_script" # Slurm runs a copy
# [NAME=VALUE...] [-- COMMAND...]: the batch script as Slurm would start it on the first of two nodes of two GPUs
job() {
    local settings=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do settings+=("$1") && shift; done
    [ $# -eq 0 ] || shift
    rm -f "$work/srun.txt"
    (cd / && env PATH="$work/bin:$PATH" PROGRAM="$program" SLURM_JOB_ID=7 SLURM_SUBMIT_DIR="$root" SLURM_NTASKS=4 \
        SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST="node[1-2]" SLURM_NODELIST="node[1-2]" SLURM_TASKS_PER_NODE="2(x2)" \
        SLURM_PROCID=0 "${settings[@]}" bash "$work/slurm_script" "$@") >"$work/out" 2>&1
}
job -- "$program" --train "$work/tokens.bin" --seq-len 32 --steps 2 --out "$work/slurm1" && steps "$work/slurm1" 2 &&
    has '^job 7: 4 ranks on 2 nodes \(node\[1-2\]\), started by srun' &&
    grep -q "^srun --kill-on-bad-exit=1 --mpi=pmix -n 4 $program --train" "$work/srun.txt" && has '^mesh .* on 4 ranks'
ok $? "slurm.sbatch: a program on every rank, by srun"
job SRUN_FLAGS=--mpi=pmi2 MODEL="$work/hf" DATA="$work/tokens.bin" SEQ=32 BATCH=2 STEPS=2 DP=2 OUT="$work/slurm2" \
    -- scripts/long_context.sh && steps "$work/slurm2" 2 &&
    [ "$(grep -c . "$work/srun.txt")" -eq 1 ] &&
    grep -q "^srun --kill-on-bad-exit=1 --mpi=pmi2 -n 4 $program --model" "$work/srun.txt" &&
    has '^mesh .* on 4 ranks: dp 2'
ok $? "slurm.sbatch: a script, which starts its ranks by srun"
job -- "$program" --train "$work/nothing.bin"
[ $? -ne 0 ] && has '^train_gpt: error: .*no such file'
ok $? "slurm.sbatch: a run that fails fails the job"
job_refuses() { # PATTERN [NAME=VALUE...] [-- COMMAND...]: exit code 1 and one line
    local pattern=$1 code
    shift
    job "$@"
    code=$?
    [ "$code" -eq 1 ] && [ "$(wc -l <"$work/out")" -eq 1 ] && has "^slurm.sbatch: error: $pattern"
    ok $? "slurm.sbatch refuses: $(head -n 1 "$work/out" | cut -c 1-150)"
}
job_refuses 'no command'
job_refuses './train_gpt_nowhere: no such file in' -- ./train_gpt_nowhere
job_refuses "SLURM_NTASKS='': ask for --ntasks-per-node" SLURM_NTASKS= -- "$program"
job_refuses "/ is not the repository's root" SLURM_SUBMIT_DIR=/ -- "$program"
job_refuses 'no Slurm job here' SLURM_JOB_ID= -- "$program"

# A run that saves, told that time is up, and the job's next start: with stand-ins for srun, which hands signals on, for
# scontrol, and for a training that saves when it is told to
mkdir "$work/slurm"
cat >"$work/slurm/srun" <<'END'
#!/usr/bin/env bash
while [[ $1 != -n ]]; do shift; done
shift 2
"$@" &
trap 'kill -USR1 $!' USR1
until wait $! && code=0 || code=$?; ! kill -0 $! 2>/dev/null; do :; done
exit $code
END
cat >"$work/slurm/scontrol" <<END
#!/usr/bin/env bash
echo "\$*" >>"$work/scontrol.txt"
END
cat >"$work/slurm/train" <<END
#!/usr/bin/env bash
echo "train \$*"
run=$work/forever
mkdir -p \$run && touch \$run/metrics.jsonl
save() { mkdir -p "\$run/checkpoints/step-0000000\$1" && touch "\$run/checkpoints/step-0000000\$1/manifest.json"; }
[[ " \$* " != *" --resume "* ]] || { echo "goes on" && exit; }
[[ -z \${BROKEN-} ]] || exit 3
trap 'save 1; exit 0' USR1
echo waits >"$work/waits"
while :; do sleep 0.05; done
END
chmod +x "$work/slurm"/*
# the first shell of the job, which Slurm signals
echo "[[ -e $work/batch ]] || echo \$\$ >$work/batch" >"$work/slurm/env"
time_is_up() { # the job in the background; once it trains, the notice comes
    job PATH="$work/slurm:$PATH" BASH_ENV="$work/slurm/env" -- "$work/slurm/train" --out "$work/forever" \
        --save-every 5 &
    until [[ -e $work/waits ]] || ! kill -0 $! 2>/dev/null; do sleep 0.05; done
    kill -USR1 "$(cat "$work/batch")"
    wait $!
}
time_is_up && has '^run_forever.sh: time is up; the job goes back into the queue$' &&
    [[ $(cat "$work/scontrol.txt") == "requeue 7" && -e $work/forever/checkpoints/step-00000001 ]]
ok $? "slurm.sbatch: time is up: a program that saves is told, saves, and the job goes back into the queue"
job PATH="$work/slurm:$PATH" SLURM_RESTART_COUNT=1 -- "$work/slurm/train" --out "$work/forever" --save-every 5 &&
    has "^train --out $work/forever --save-every 5 --resume$" && has '^goes on$' &&
    [[ $(wc -l <"$work/scontrol.txt") -eq 1 ]]
ok $? "slurm.sbatch: the next start goes on from its checkpoint, ends, and asks for no other"
rm -r "$work/forever/checkpoints"
job PATH="$work/slurm:$PATH" SLURM_RESTART_COUNT=1 BROKEN=1 CRASHES=2 PAUSE=0 -- "$work/slurm/train" \
    --out "$work/forever" --save-every 5
[[ $? -eq 1 && -d $work/forever.crash-1 ]] &&
    has 'gave up after 2 crashes without a new checkpoint; the last had exit code 3' &&
    [[ $(wc -l <"$work/scontrol.txt") -eq 1 ]]
ok $? "slurm.sbatch: a job that a node's failure has started again before the first checkpoint is not stopped by" \
    "what it left; it gives up after crashes"

# ---- plain mpirun over the hosts of a file: this one, which nobody has to call
sed 's/^node1 slots=8/localhost slots=2/; /^node2/d' scripts/hostfile.example >"$work/hosts"
hosts() { script OMPI_MCA_plm_rsh_agent= PRTE_MCA_plm_ssh_agent= HOSTFILE="$work/hosts" MODEL="$work/hf" \
    DATA="$work/tokens.bin" BATCH=2 STEPS=1 FLAGS="--peak-tflops 1" "$@" bash scripts/long_context.sh; }
hosts NP=2 SEQ=32 OUT="$work/hosts1" && steps "$work/hosts1" 1
ok $? "HOSTFILE: 2 ranks on the 2 slots of a host file"
hosts NP=3 SEQ=66 SP=ring OUT="$work/hosts2"
[ $? -ne 0 ] && has '^mesh|^tokens' && [ ! -e "$work/hosts2" ]
ok $? "HOSTFILE: more ranks than slots do not start"
refuses 'HOSTFILE=.*/none: no such file' HOSTFILE="$work/none" MODEL="$work/hf" DATA="$work/tokens.bin" \
    bash scripts/long_context.sh

# ---- quickstart's choice, in a copy of the sources, with stand-ins for nvidia-smi and for
# the build of the CUDA program
copy=$work/copy
mkdir -p "$copy/dev" "$copy/build"
cp -a build/options "$copy/build" # else the copy would be built again
cp -a Makefile ./*.cu ./*.h core kernels scripts train_gpt_cpu "$copy"
cp -a dev/data "$copy/dev"
cat >"$work/bin/nvidia-smi" <<'END'
#!/usr/bin/env bash
for ((i = 0; i < ${GPUS-0}; i++)); do echo "GPU $i: NVIDIA A100-SXM4-80GB (UUID: none)"; done
END
cat >"$work/bin/make" <<END
#!/usr/bin/env bash
if [[ " \$* " == *" train_gpt "* ]]; then
    [[ -n \${TOOLKIT-} ]] || {
        echo "Makefile:72: *** train_gpt needs the CUDA toolkit: nvcc is not in PATH, nor in" \
            "/usr/local/cuda/bin.  Stop." >&2
        exit 2
    }
    cp train_gpt_cpu train_gpt && exit
fi
exec $(command -v make) "\$@"
END
chmod +x "$work/bin/nvidia-smi" "$work/bin/make"
quick() { # RANKS [NAME=VALUE...]
    local ranks=$1
    shift
    rm -rf "$work/quick"
    env PATH="$work/bin:$PATH" "$@" bash "$copy/scripts/quickstart.sh" --text "$root/train_gpt.cu" --steps 2 \
        --ranks "$ranks" --out "$work/quick" >"$work/out" 2>&1
}
made() { [ "$(find "$work/quick" -name metrics.jsonl | wc -l)" -eq $((2 + ${#schemes[@]})) ] && has '^odysseus +2 ' &&
    [ "$(head -n 1 "$work/out")" = "$1" ]; }
quick 2 && made 'no GPU on this machine: training on the CPU' &&
    has '^resumed  odysseus, saved on 2 ranks after step 1, went on under [a-z]+ on 1: 1 losses differ by at most' &&
    has '^training .* 2 ranks; [0-9]+ cores$'
ok $? "quickstart: without a GPU the CPU trains, and it says so"
has '^\./train_gpt_cpu --model .*/step-00000002 --eval-only .* --sample "The "$' && has '^    The '
ok $? "quickstart: in the end it samples from the last run's checkpoint"
quick 3 GPUS=2 # 3 ranks cannot split the heads: it stops before the first run
has 'error: --ranks 3: .* 8 query heads' && has '^building train_gpt_cpu$' &&
    [ "$(head -n 1 "$work/out")" = '2 GPUs on this machine: building train_gpt for them, some minutes' ] &&
    has '^cannot build train_gpt for the GPUs \(train_gpt needs the CUDA toolkit: .*\): training on the CPU$' &&
    has 'toolkit: nvcc is not in PATH, nor in /usr/local/cuda/bin\): training'
ok $? "quickstart: with a GPU and no nvcc the CPU trains, and it says why"
quick 2 GPUS=2 TOOLKIT=1 && made '2 GPUs on this machine: building train_gpt for them, some minutes' &&
    has '^training .* 2 ranks; 2 GPUs, with ./train_gpt$' && ! has 'building train_gpt_cpu'
ok $? "quickstart: with a GPU and the toolkit ./train_gpt trains"

checks_done
