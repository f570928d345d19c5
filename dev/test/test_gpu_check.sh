#!/usr/bin/env bash
# test_gpu_check.sh - dev/gpu_check.sh and its benchmarks where there is no GPU: nothing is measured,
# nothing is hidden, everything runs.
#
# Shims in PATH play a machine with a GPU on which nothing builds: the script must say so in its table and fail.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/../../scripts/common.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

n=0
ok() { # TEXT COMMAND...: a check, passed if the command succeeds
    local text=$1 not=
    shift
    "$@" || not="not "
    n=$((n + 1))
    say "${not}ok $n - $text"
}
fails() { ! "$@"; }
has() { grep -q -e "$1" "$2"; }

# ---- no GPU

code=0
bash dev/gpu_check.sh --no-gpu-table >"$work/table" 2>&1 || code=$?
ok "without a GPU the exit code is 0" [ $code -eq 0 ]
ok "its last line says that nothing was measured" [ "$(tail -n 1 "$work/table")" = "no GPU here: nothing was measured" ]
ok "every row says 'not measured'" [ "$(grep -c 'not measured' "$work/table")" \
    -eq "$(($(grep -c . "$work/table") - 2))" ]
ok "a row gives its roofline bound" has 'H100 989' "$work/table"
ok "an unknown argument is refused" fails bash dev/gpu_check.sh --fast 2>"$work/error"

# ---- a GPU on which nothing builds

mkdir "$work/bin"
cat >"$work/bin/nvidia-smi" <<'SHIM'
#!/bin/sh
case "$*" in
*query-gpu=name*) echo NVIDIA Imaginary ;;
*compute_cap*) echo 9.0 ;;
*memory.total*) echo 80000 ;;
*) echo 1 ;;
esac
SHIM
printf '#!/bin/sh\necho "make: error: nothing builds here"\nexit 2\n' >"$work/bin/make"
chmod +x "$work/bin/"*
code=0
PATH=$work/bin:$PATH BUDGET=11 bash dev/gpu_check.sh --results "$work/results" >"$work/failed" 2>&1 || code=$?
ok "a step that fails makes the exit code 1" [ $code -eq 1 ]
ok "it stands in the table as FAILED" has '^build  *FAILED.*nothing builds' "$work/failed"
PATH=$work/bin:$PATH BUDGET=5 bash dev/gpu_check.sh build --results "$work/hurried" >"$work/no_time" 2>&1 || true
ok "what finds no time is SKIPPED, with the reason" has '^build  *SKIPPED.*no time left' "$work/no_time"
ok "results.json names machine and state" python3 -c '
import json, sys
r = json.load(open(sys.argv[1] + "/results.json"))
assert r["machine"]["gpu"] == "NVIDIA Imaginary" and r["machine"]["commit"]
assert any(s["state"] == "FAILED" for s in r["steps"])
assert all(row["ours"].startswith("not measured") for row in r["table"])' "$work/results"
ok "results.md has both tables" [ "$(grep -c '^|--' "$work/results/results.md")" -eq 2 ]

# ---- what the schemes are held to: runs of one tensor, ulysses 1e-4 from one rank, where
# products of fewer rows sum otherwise

made_runs() { # DEVICE DISTANCE
    rm -rf "$work/runs"
    python3 - "$work/runs/gpt2" "$@" <<'END'
import json, os, struct, sys
root, device, off = sys.argv[1], sys.argv[2], float(sys.argv[3])
header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
for case, size in ("referee", 1), ("single", 1), ("ulysses-2", 1 + off):
    os.makedirs(f"{root}/{case}")
    open(f"{root}/{case}/grads.safetensors", "wb").write(struct.pack("<Q", len(header)) + header
                                                         + struct.pack("<4f", *[size] * 4))
    open(f"{root}/{case}/metrics.jsonl", "w").write('{"loss": 1, "grad_norm": 1}\n')
    open(f"{root}/{case}/comm.json", "w").write("[]")
    open(f"{root}/{case}/log", "w").write(f"device   {device} (sm_90, 132 multiprocessors), GPU 0 of 1 on this host\n")
END
}
held() { python3 dev/test/check_runs.py "$work/runs" >"$work/checked"; }
made_runs "NVIDIA H100" 1e-4
ok "on a GPU ulysses may differ from one rank as any two schemes do" held
made_runs "NVIDIA H100" 2e-2
ok "and not more" fails held
made_runs "emulated GPU" 1e-4
ok "in the emulator it must agree" fails held

# ---- the benchmarks

ok "torch_peer.py and gpu_table.py compile" python3 -c '
import sys
for path in sys.argv[1:]: compile(open(path).read(), path, "exec")' dev/bench/torch_peer.py dev/bench/gpu_table.py
code=0
{ make -s build/bench_cuda_emu && build/bench_cuda_emu --toy; } >"$work/bench.jsonl" 2>&1 || code=$?
ok "bench_cuda runs in the emulator$([[ $code -eq 0 ]] || echo ": $(tail -n 3 "$work/bench.jsonl")")" [ $code -eq 0 ]
ok "it prints a figure for every kernel of the table" python3 -c '
import sys
sys.path.insert(0, "dev/bench")
import gpu_table
bench = gpu_table.figures(sys.argv[1])
missing = [name for name, *_ in gpu_table.KERNELS if not bench.get(name, {}).get("value", 0) > 0]
assert not missing, missing' "$work/bench.jsonl"
say "1..$n"
