#!/usr/bin/env bash
# test_layers.sh - the order of the sources: every plain header compiles by itself, as C11 and as C++20, and no
# include leads back to where it came from. The headers of kernels/cuda and dev/emu are C++ of one program and are
# compiled with it. Prints TAP.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
source scripts/common.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0

ok() { # ok STATUS NAME
    n=$((n + 1))
    if [ "$1" -eq 0 ]; then echo "ok $n - $2"; else
        echo "not ok $n - $2: $(grep -m 1 error "$work/out" || tail -n 1 "$work/out")"
    fi
}

alone() { # HEADER FLAGS...: it, in a file with nothing else; what it only defines may be unused
    local header=$1
    shift
    printf '#include "%s"\n' "$PWD/$header" >"$work/alone.c"
    mpicc -x c -std=c11 -ffp-contract=fast "${flags[@]}" "$@" "$work/alone.c" >"$work/out" 2>&1 &&
        mpicxx -x c++ -std=c++20 -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX "${flags[@]}" "$@" "$work/alone.c" \
        >"$work/out" 2>&1
    ok $? "$header${1:+, ${1#-D}}"
}

flags=(-fopenmp -fsyntax-only -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-function)
for header in ./*.h core/*.h kernels/*.h kernels/cpu/*.h kernels/cuda/scratch.h; do
    header=${header#./}
    case $header in
    core/transfer_cuda.h | core/transfer_sim.h) ;; # of another backend
    *) alone "$header" ;;
    esac
done
for header in core/transfer_sim.h kernels/sim/*.h sim/*.h; do alone "$header" -DODYSSEUS_SIM -DODYSSEUS_NO_MPI; done
mpicc -x c -std=c11 "${flags[@]}" -DODYSSEUS_FP64 dev/test/fuzz.c >"$work/out" 2>&1
ok $? "the fuzzer's harness, which only test.sh --long builds, fits the program"

cat >"$work/circles.py" <<'PY'
import os, re, sys
def includes(path):
    here = os.path.dirname(path)
    found = (os.path.normpath(os.path.join(here, name)) for name in re.findall(r'^ *#include "([^"]+)"',
                                                                               open(path).read(), re.M))
    return [f for f in found if os.path.exists(f)]
def files(*folders):
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            if name.endswith((".h", ".cuh", ".cu")) and os.path.isfile(os.path.join(folder, name)):
                yield os.path.normpath(os.path.join(folder, name))
done, faults = set(), []
def walk(path, way):
    if path in way: faults.append(" -> ".join(way[way.index(path):] + [path]))
    elif path not in done:
        for f in includes(path): walk(f, way + [path])
        done.add(path)
base = {"core/util.h", "core/positions.h", "core/ledger.h", "core/cgroup.h"} # what kernels may stand on
for path in files(".", "core", "kernels", "kernels/cpu", "kernels/cuda", "kernels/sim", "sim", "dev/emu"):
    walk(path, [])
    for f in includes(path):
        room = lambda p: p.split("/")[0] if "/" in p else "."
        up = {"core": {".", "sim"}, "kernels": {".", "sim"}, ".": {"sim"}}.get(room(path), set())
        if room(f) in up or (room(path) == "kernels" and room(f) == "core" and f not in base):
            faults.append(f"{path} includes {f}, which stands above it")
print("\n".join(faults))
sys.exit(bool(faults))
PY
python3 "$work/circles.py" >"$work/out"
ok $? "no circle of includes, and none that points up"
echo "1..$n"
