#!/usr/bin/env bash
# test_emu_refusals.sh - the CUDA program where it cannot run, under the emulator, whose environment plays the host
# (dev/emu/runtime.h): each time one line that says what to do, within seconds, and no run directory. Then the program
# as it is built without NCCL, and without MPI.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

python3 - "$work/tokens.bin" <<'PY'
import array, sys
open(sys.argv[1], "wb").write(array.array("i", [20240520, 1, 4000] + [0] * 253).tobytes()
                              + array.array("H", [i * i % 128 for i in range(4000)]).tobytes())
PY
small=(--train "$work/tokens.bin" --layers 1 --dim 64 --heads 4 --ffn 176 --vocab 128 --seq-len 64 --batch 4
    --peak-tflops 1 --steps 1)

one_line() { # PATTERN CODE: the exit code of an error, one line of it that matches, nothing left
    local left=0
    [ ! -e "$work/refused" ] || left=1
    rm -rf "$work/refused"
    [ $left -eq 0 ] && [ "$2" -ge 1 ] && [ "$2" -le 127 ] && [ "$2" -ne 124 ] &&
        [ "$(grep -c '^train_gpt: error: ' "$work/out")" -eq 1 ] &&
        grep -Eq "^train_gpt: error: .*$1" "$work/out"
}

# refuses RANKS PATTERN [NAME=VALUE...] -- FLAGS...: besides the small run's flags, or instead of them where the
# first is --dry-run or --train
refuses() {
    local ranks=$1 pattern=$2 settings=() flags=("${small[@]}" --out "$work/refused") code=0
    shift 2
    while [ "$1" != -- ]; do settings+=("$1") && shift; done
    shift
    [ "${1-}" != --dry-run ] || flags=()
    [ "${1-}" != --train ] || flags=(--out "$work/refused")
    run_ranks -t 600 "$ranks" env "${settings[@]}" ./train_gpt_emu "${flags[@]}" "$@" >"$work/out" 2>&1 || code=$?
    one_line "$pattern" $code
    ok $? "${settings[*]} $*: $(grep -m1 '^train_gpt: error' "$work/out" | cut -c 19-190)"
}

# second PATTERN NAME=VALUE FLAGS...: of two ranks only the second is in trouble
second() {
    local pattern=$1 setting=$2 code=0 own=(env "$2" ./train_gpt_emu "${small[@]}" --out "$work/refused" "${@:3}")
    run_ranks -t 600 1 ./train_gpt_emu "${own[@]:3}" : -n 1 "${own[@]}" >"$work/out" 2>&1 || code=$?
    one_line "$pattern" $code
    ok $? "rank 1 has $setting: $(grep -m1 '^train_gpt: error' "$work/out" | cut -c 19-190)"
}

refuses 1 'no NVIDIA driver on this host; install it' EMU_DRIVER=0 EMU_DEVICES=0 --
refuses 1 'the NVIDIA driver knows CUDA 11.8, this program was built with 12.0; update the driver' EMU_DRIVER=11080 --
refuses 1 'no GPU on this host .*use make train_gpt_cpu' EMU_DEVICES=0 --
refuses 2 'no GPU on this host' EMU_DEVICES=0 --
refuses 1 'sm_75.*need sm_80 or later' EMU_ARCH=75 --
refuses 1 'no kernels for GPU 0.*sm_80.*make -B train_gpt CUDA_ARCHS=80' EMU_ARCH=80 EMU_BUILT=90 --
refuses 2 '2 ranks of this host have the same GPU .each sees 1.*--comm mpi' EMU_DEVICES=1 --
refuses 1 'heads of 256.*multiples of 8 up to 128; change --heads or --dim' X= -- --dry-run --dim 1024 --heads 4
refuses 1 'heads of 12 ' X= -- --dry-run --dim 96 --heads 8
refuses 1 'out of memory: .* its share of a GPU, less 512 MiB for CUDA, is 1\.1 MB .rank 0.; .*or use more ranks' \
    EMU_MEMORY=538 --
refuses 2 'out of memory: .*the largest that fit: --seq-len [0-9]+, or --micro-batch 2; .*or use more ranks' \
    EMU_MEMORY=580 -- --train "$work/tokens.bin" --layers 1 --dim 64 --heads 4 --seq-len 1024 --batch 4 --micro-batch 4
refuses 2 'its share of a GPU, .* is 10.1 MB' EMU_DEVICES=1 EMU_MEMORY=1094 -- --comm mpi
second 'its share of a GPU, .* is 1.1 MB .rank 1.' EMU_MEMORY=538
second 'NCCL: ncclCommInitRank.*--comm mpi does without NCCL .rank 1' EMU_NCCL=init
second 'NCCL: ncclAllGather.*unhandled system error; NCCL_DEBUG=INFO says more.*.rank 1' EMU_NCCL=call
second 'NCCL failed during a transfer: unhandled system error.*.rank 1' EMU_NCCL=later
second 'all_gather of .* over 2 ranks .other, forward, control. has not ended after .*--comm-timeout.*.rank 1' \
    EMU_NCCL=hang --comm-timeout 10
refuses 2 '--graphs on: several ranks: transfers within a graph could be' X= -- --graphs on
refuses 2 '--graphs on: transfers by MPI pass through the host' X= -- --graphs on --comm mpi
refuses 1 '--graphs on: targets are ignored' X= -- --graphs on --ignore-token 7
refuses 1 '--graphs on: the ranges of --nvtx' X= -- --graphs on --nvtx
refuses 1 '--nvtx needs a training step' X= -- --dry-run --nvtx
run_ranks -t 600 1 ./train_gpt_emu "${small[@]}" --ignore-token 7 >"$work/out" 2>&1 &&
    grep -q '^note     no CUDA graphs: targets are ignored' "$work/out"
ok $? "--graphs auto without graphs says why: $(grep -m1 'CUDA graphs' "$work/out")"

# What NCCL takes is measured after it was used: neither a run that dies within it nor one that is refused for less.
refuses 2 'out of memory: a rank needs .* its share of a GPU, .* is 43.1 MB .rank 0.; the largest that fit' \
    EMU_MEMORY=780 EMU_NCCL_MEMORY=200 -- --train "$work/tokens.bin" --layers 1 --dim 64 --heads 4 --seq-len 1024 \
    --batch 4 --micro-batch 4 --sp ulysses
refuses 2 'NCCL: .*unhandled cuda error.*--comm mpi does without NCCL' EMU_MEMORY=800 EMU_NCCL_MEMORY=900 --

# Two ranks that see one GPU each, as a launcher gives it to them: not the same one.
alone=(env EMU_DEVICES=1 ./train_gpt_emu "${small[@]}")
run_ranks -t 600 1 env EMU_UUID=1 "${alone[@]}" : -n 1 env EMU_UUID=2 "${alone[@]}" >"$work/out" 2>&1 &&
    grep -q '^step 1/1' "$work/out" && ! grep -q 'share this GPU' "$work/out"
ok $? "two ranks, each of which sees a GPU of its own, train over NCCL"

# A GPU that computes longer than --comm-timeout before a transfer that the host has asked for long ago:
# nobody waits for that one yet.
run_ranks -t 600 2 env EMU_BUSY=4 ./train_gpt_emu "${small[@]}" --selfcheck off --comm-timeout 2 >"$work/out" 2>&1 &&
    grep -q '^step 1/1' "$work/out"
ok $? "two ranks whose steps take longer than --comm-timeout train: $(grep -m1 '^step 1/1' "$work/out" | cut -c 1-60)"

# A rank that stands still, where the wire is MPI: the other one says what it waited for.
many=$((1000000 + $$)) # steps by which the ranks of this very run are known
run_ranks -t 600 2 ./train_gpt_emu "${small[@]::${#small[@]}-1}" $many --log-every 1 --comm mpi --comm-timeout 10 \
    >"$work/out" 2>&1 &
launched=$!
for _ in $(seq 1500); do ! grep -q '^step 2/' "$work/out" || break; sleep 0.2; done
pkill -STOP -n -f "train_gpt_emu.*--steps $many"
code=0
wait $launched || code=$?
[ $code -ge 1 ] && [ $code -ne 124 ] &&
    grep -Eq '^train_gpt: error: [a-z_]+ of [0-9]+ bytes over 2 ranks .*has not ended after .* s .--comm-timeout' \
        "$work/out" &&
    ! pgrep -f "train_gpt_emu.*--steps $many" >/dev/null
ok $? "a rank stands still: $(grep -m1 '^train_gpt: error' "$work/out" | cut -c 19-190)"

# ---- built without NCCL, without MPI

build() { # NAME COMPILER...
    local name=$1
    shift
    "$@" -x c++ -std=c++20 -Idev/emu -fopenmp -D_GNU_SOURCE -DODYSSEUS_CUDA -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX \
        -Wall -Wextra -Werror -Wno-unused-function -Wno-deprecated-enum-enum-conversion -O1 train_gpt.cu \
        -lcjson -o "$work/$name" >"$work/$name.txt" 2>&1
}
build no_mpi g++ -DODYSSEUS_NO_MPI & # beside the other
no_mpi=$!
build no_nccl mpicxx
code=$?
cp "$work/no_nccl.txt" "$work/out"
ok $code "it builds without NCCL"
run_ranks -t 600 2 "$work/no_nccl" "${small[@]}" >"$work/out" 2>&1 &&
    grep -q '^note .*built without NCCL: apt-get install libnccl-dev' "$work/out"
ok $? "two ranks then train, staged through MPI, and the banner says how to get NCCL"
code=0
"$work/no_nccl" "${small[@]}" --comm nccl --out "$work/refused" >"$work/out" 2>&1 || code=$?
one_line '--comm nccl: must be one of mpi .*built without NCCL: apt-get install libnccl-dev' $code
ok $? "--comm nccl: $(grep -m1 error "$work/out" | cut -c 19-190)"
wait $no_mpi
code=$?
cp "$work/no_mpi.txt" "$work/out"
ok $code "it builds without MPI"
"$work/no_mpi" "${small[@]}" >"$work/out" 2>&1 && grep -q '^step 1/1' "$work/out"
ok $? "one rank trains without MPI"
code=0
OMPI_COMM_WORLD_SIZE=2 "$work/no_mpi" "${small[@]}" --out "$work/refused" >"$work/out" 2>&1 || code=$?
one_line 'built without MPI and is one rank; apt-get install' $code
ok $? "several are refused: $(grep -m1 error "$work/out" | cut -c 19-190)"

checks_done
