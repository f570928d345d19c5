#!/usr/bin/env bash
# test_peak.sh - the loop that measures a core's peak, as the compiler makes it for each kind of vectors: multiply-adds
# in registers and nothing else, so that it measures neither spills nor memory. Read from the assembly: no clock is
# asked, and no such machine needed. TAP.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

cat >"$work/peak.c" <<C
#include "$PWD/kernels/compute.h"
double measured_peak(void);
double measured_peak(void) { return cpu_core_peak(); }
C
cat >"$work/loop.py" <<'PY'
import collections, re, sys
lines = [line.split("#")[0].strip() for line in open(sys.argv[1])]
want, chains = sys.argv[2].split(","), int(sys.argv[3])
labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
best = None # the shortest loop that multiplies
for i, line in enumerate(lines):
    jump = re.match(r"(?:j[a-z]+|b\.?[a-z]+)\s+(\.L\w+)$", line) or re.match(r"cbn?z\s+\w+,\s*(\.L\w+)$", line)
    if not jump or labels.get(jump[1], i) >= i:
        continue
    body = [l for l in lines[labels[jump[1]] + 1:i + 1] if l and not l.endswith(":") and not l.startswith(".")]
    if any(re.match(want[0], l) for l in body) and (best is None or len(body) < len(best)):
        best = body
best = best or []
memory = [l for l in best if "(" in l or "[" in l]
counts = collections.Counter(l.split()[0] for l in best)
arithmetic = all(sum(n for name, n in counts.items() if re.match(w, name)) == chains for w in want)
print(f"{dict(counts)}, {len(memory)} with memory")
sys.exit(not arithmetic or len(memory) > 0 or len(best) > len(want) * chains + 3)
PY

# loop WHAT INSTRUCTIONS CHAINS COMPILER...: every chain once, no memory, and at most three instructions besides
loop() {
    local what=$1 want=$2 chains=$3 precision
    shift 3
    for precision in fp32 fp64; do
        "$@" -x c -std=c11 -O3 -fopenmp -fno-math-errno -ffp-contract=fast -D_GNU_SOURCE $([[ $precision == fp32 ]] ||
            say -DODYSSEUS_FP64) -S "$work/peak.c" -o "$work/peak.s" >"$work/out" 2>&1 &&
            python3 "$work/loop.py" "$work/peak.s" "$want" "$chains" >"$work/out"
        ok $? "$what, $precision: $(tail -n 1 "$work/out" | cut -c 1-150)"
    done
}

if [[ $(gcc -dumpmachine) == x86_64* ]]; then
    loop 'x86-64-v4 (AVX-512)' 'vfn?madd' 24 gcc -march=x86-64-v4
    loop 'x86-64-v3 (AVX2, FMA)' 'vfn?madd' 12 gcc -march=x86-64-v3
    loop 'sandybridge (AVX)' 'vmulp,vaddp' 12 gcc -march=sandybridge
    loop 'x86-64-v2 (SSE)' 'mulp,addp' 12 gcc -march=x86-64-v2
fi
arm=$(compgen -c | grep -m 1 -E '^aarch64-linux-gnu-gcc$' || true)
[[ $(gcc -dumpmachine) != aarch64* ]] || arm=gcc
[[ -z $arm ]] || loop 'aarch64 (NEON)' fmla 24 "$arm"
checks_done
