#!/usr/bin/env bash
# test_nvcc.sh - nvcc compiles the program for sm_80 and sm_90a, with and without MPI and NCCL, the kernels' tests and
# benchmark: no warning, no spilled register, no wgmma that waits for the one before. SKIP where there is no nvcc. First
# where the build finds CUDA's libraries, with an nvcc that only says what it is.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"

# ---- where the build finds CUDA's libraries: make -n with an nvcc that only says which it is,
# and no libraries of the system

mkdir -p "$work/toolkit/bin"
cat >"$work/toolkit/bin/nvcc" <<'SHIM'
#!/bin/sh
[ "$1" = --version ] || exit 1
echo "Cuda compilation tools, release ${RELEASE:-13.0}, V13.0.88"
SHIM
# none of this machine's packages
printf '#!/bin/sh\nexec %s -S "$@"\n' "$(command -v python3)" >"$work/toolkit/bin/python3"
chmod +x "$work/toolkit/bin/nvcc" "$work/toolkit/bin/python3"
plan() { # TARGET [PYTHONPATH]
    PATH=$work/toolkit/bin:$PATH PYTHONPATH=${2-} make -n --no-print-directory SYSTEM= MPI=mpi CJSON=cjson \
        BUILD="$work/build" NVCC="$work/toolkit/bin/nvcc" "$1" >"$work/out" 2>&1
}
linked() { grep -q -e "$1" "$work/out"; } # PATTERN
# FOLDER FILE: linked with it, and found there when the program starts
folder() { say "-L$1 -l:$2 -Xlinker -rpath -Xlinker $1 "; }

! plan train_gpt && linked \
    'train_gpt needs cuBLAS, without which .*/toolkit came: apt-get install .* or pip install nvidia-cublas'
ok $? "a toolkit without cuBLAS is refused before anything is compiled:" \
    "$(grep -m 1 -o 'needs cuBLAS.*' "$work/out" | cut -c 1-80)"
plan all && linked 'echo "CUDA    missing: train_gpt for GPUs needs cuBLAS' &&
    linked 'build   train_gpt_cpu train_gpt_fp64 train_gpt_sim'
ok $? "a bare make says so, and builds the others"
! RELEASE=11.8 plan train_gpt && linked 'needs the CUDA toolkit, 12.0 or later: .* is of 11'
ok $? "a toolkit that is too old is refused"
for library in nccl:nccl:libnccl.so.2 cu13:cublasLt:libcublasLt.so.13; do
    IFS=: read -r home header file <<<"$library"
    mkdir -p "$work/py/nvidia/$home/include" "$work/py/nvidia/$home/lib"
    touch "$work/py/nvidia/$home/include/$header.h" "$work/py/nvidia/$home/lib/$file"
done
py=$work/py/nvidia
plan train_gpt "$work/py" && linked "-I$py/cu13/include $(folder "$py/cu13/lib" libcublasLt.so.13)" &&
    linked "-DODYSSEUS_NCCL -I$py/nccl/include $(folder "$py/nccl/lib" libnccl.so.2)"
ok $? "Python's packages stand in for it, and for NCCL"
mv "$py/cu13" "$py/cublas"
RELEASE=12.4 plan train_gpt "$work/py" && linked "-I$py/cublas/include $(folder "$py/cublas/lib" libcublasLt.so.13)" &&
    ! plan train_gpt "$work/py"
ok $? "in the folder that they have for CUDA 12, which is not taken for another"
mkdir -p "$work/toolkit/include" "$work/toolkit/lib64"
touch "$work/toolkit/include/cublasLt.h" "$work/toolkit/include/nccl.h" "$work/toolkit/lib64/libcublasLt.so" \
    "$work/toolkit/lib64/libnccl.so"
plan train_gpt "$work/py" && linked "$(folder "$work/toolkit/lib64" libcublasLt.so)" &&
    linked "$(folder "$work/toolkit/lib64" libnccl.so)" && ! linked "$py"
ok $? "the toolkit's own come first"

# ---- nvcc itself

if ! have nvcc && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    ok 0 "# SKIP no nvcc on this machine: the kernels were compiled for the emulator only"
    checks_done
    exit
fi

builds() { # WHAT MAKE-ARGUMENTS...: warnings and spills are errors
    local what=$1 began=$SECONDS code=0
    shift
    make -k -s "$@" >"$work/out" 2>&1 || code=$?
    ok $code "$what ($((SECONDS - began)) s)"
}

builds "the program alone, without MPI and NCCL, for sm_80" -B MPI= NCCL= CUDA_ARCHS=80 train_gpt
./train_gpt --model tiny-gpt --dry-run >"$work/out" 2>&1 && ! ldd train_gpt | grep -qE 'libmpi|libnccl'
ok $? "it needs neither, and makes a dry run"
mapfile -t kernels < <(basename -s .cu -a dev/test/test_cuda_*.cu | sed 's|.*|build/&_cuda|')
builds "the kernels' tests and benchmark, for sm_80" -j "$(nproc)" CUDA_ARCHS=80 build/bench_cuda "${kernels[@]}"
builds "train_gpt for $(make -s print-archs)" -B train_gpt
env -u LD_LIBRARY_PATH ldd train_gpt >"$work/out" && ! grep -q 'not found' "$work/out"
ok $? "it finds its libraries without LD_LIBRARY_PATH"

# Without a GPU the program must say so, in one line, and a dry run must work all the same.
if ! have nvidia-smi; then
    code=0
    ./train_gpt --train nothing.bin >"$work/out" 2>&1 || code=$?
    [[ $code -ge 1 && $code -le 127 && $(wc -l <"$work/out") -eq 1 ]] && grep -q '^train_gpt: error: no ' "$work/out"
    ok $? "no GPU: exit code $code, $(head -n 1 "$work/out")"
    ./train_gpt --model llama2-7b --seq-len 16384 --batch 1 --sp odysseus --dry-run --world 8 >"$work/out" 2>&1 &&
        grep -q '^  total' "$work/out"
    ok $? "a dry run needs no GPU:$(grep -m 1 '^  total' "$work/out" | tr -s ' ') MB"
fi
checks_done
