#!/usr/bin/env bash
# test_bare_gpu.sh - dev/gpu_check.sh on a bare machine with a GPU: no MPI, no cJSON, no network. Then with cJSON
# alone, then with its --pack.
#
# The machine is this one, in a mount namespace with a layer over /usr where what the pack carries is deleted. Where
# that is not allowed (or BARE=paths), a PATH without MPI's programs and headers that are errors do it: less thorough,
# and said. The GPU is imaginary: nvidia-smi is a script, and so is nvcc, which compiles the program for the emulator;
# the kernels' tests and benchmark are those that scripts/test.sh has built for it.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
export REPOSITORY=$PWD MACHINE=$work/machine CARRIED=$work/carried # for the scripts below
tree=$work/tree
mkdir -p "$tree" "$MACHINE/bin" "$MACHINE/cuda/bin" "$work/layer"
cp -r Makefile train_gpt.cu ./*.h core kernels sim dev scripts "$tree"

# ---- its GPU and its toolkit

cat >"$MACHINE/bin/nvidia-smi" <<'SHIM'
#!/bin/sh
case "$*" in
*query-gpu=name*) echo NVIDIA Imaginary ;;
*compute_cap*) echo 9.0 ;;
*memory.total*) echo 80000 ;;
*memory.used*) echo 1000; echo 1500 ;;
*) echo 1 ;;
esac
SHIM
printf '#!/bin/sh\necho Device not supported\n' >"$MACHINE/bin/compute-sanitizer"
ln -s "$PWD/dev/emu" "$MACHINE/cuda/include"
cat >"$MACHINE/cuda/bin/nvcc" <<'SHIM'
#!/usr/bin/env bash
[[ $1 != --version ]] || { echo 'Cuda compilation tools, release 13.0, V13.0.0' && exit; }
args=() out='' source=''
while [[ $# -gt 0 ]]; do
    case $1 in
    -x | -Xptxas | -gencode | --threads) shift ;;
    -Xcompiler) IFS=, read -ra more <<<"$2" && args+=("${more[@]}") && shift ;;
    -Xlinker) args+=("-Wl,$2") && shift ;;
    -o) out=$2 && shift ;;
    -lcublasLt | -lnccl | -O3) ;;
    *.cu) source=$1 ;;
    *) args+=("$1") ;;
    esac
    shift
done
[[ -n $source ]] || exit 1 # is there a header? Only what the Makefile finds by itself
printf 'ptxas info    : %s\n' "Compiling entry function 'imaginary' for 'sm_90a'" 'Used 32 registers' >&2
name=$(basename "$out")
case $name in
train_gpt)
    g++ -x c++ "$source" -o "$out.emu" -I"$MACHINE/cuda/include" "${args[@]}" -O1 -w && cp "$MACHINE/small" "$out"
    ;;
bench_cuda)
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s --toy "$@"\n' "$CARRIED" "$REPOSITORY/build/bench_cuda_emu" >"$out"
    ;;
*)
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s %s\n' "$CARRIED" "$REPOSITORY/build/${name%_cuda}_emu" \
        "$(grep -o -m 1 '"small"' "$source")" >"$out"
    ;;
esac && chmod +x "$out"
SHIM
# the program: what a GPU would take minutes for is a step of a small model here
cat >"$MACHINE/small" <<'SHIM'
#!/usr/bin/env bash
[[ $* == *"--model gpt2-124m"* || $* == *"--model llama2-7b"* ]] || exec "$0.emu" "$@"
kept=()
while [[ $# -gt 0 ]]; do
    case $1 in --train | --steps | --selfcheck | --trace | --out) kept+=("$1" "$2") ;; esac
    shift
done
exec "$0.emu" --model tiny-gpt --layers 1 --dim 32 --heads 2 --ffn 64 --vocab 32000 --seq-len 16 --batch 1 "${kept[@]}"
SHIM
# there is no network: packages are made of the files that are installed
cat >"$MACHINE/bin/apt-get" <<'SHIM'
#!/usr/bin/env bash
[[ $1 == download ]] || exit 1
for name in "${@:2}"; do
    root=$(mktemp -d)
    mkdir "$root/DEBIAN"
    printf '%s\n' "Package: $name" 'Version: 1' 'Architecture: all' 'Maintainer: none <none@localhost>' \
        'Description: installed files' >"$root/DEBIAN/control"
    dpkg -L "$name" | while read -r file; do
        [[ -d $file && ! -L $file ]] || cp -P --parents "$file" "$root" || exit 1
    done || exit 1
    dpkg-deb -Znone -b "$root" "$name.deb" || exit 1
    rm -r "$root"
done
SHIM
chmod +x "$MACHINE"/bin/* "$MACHINE/cuda/bin/nvcc" "$MACHINE/small"

# ---- what it lacks

mpi_names='mpi* orte* ompi* opal* prte* oshmem* pmix*'
hidden() { # mpi|"mpi cjson": what of the pack is not there, cJSON's only if it is named
    (cd "$work/pack" && find usr/include/* usr/bin/* usr/share/* usr/lib/*/* -maxdepth 0 \
        ! -path "usr/include/*-linux-*" ! -name pkgconfig ! -name cmake) |
        if [[ $1 == *cjson* ]]; then cat; else grep -v cjson; fi
}
in_namespace() { # WITHOUT COMMAND...
    local user=()
    [[ $(id -u) -eq 0 ]] || user=(-r)
    # shellcheck disable=SC2016
    unshare "${user[@]}" -m --propagation private bash -c '
        mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" &&
            mount -t overlay -o "lowerdir=/usr,upperdir=$1/upper,workdir=$1/work" none /usr &&
            (cd / && xargs rm -rf) <"$2" && exec "${@:3}"' _ "$work/layer" <(hidden "$1") "${@:2}"
}
in_paths() { # WITHOUT COMMAND...
    local bin=$work/path folder name headers=(mpi.h)
    [[ $1 != *cjson* ]] || headers+=(cjson/cJSON.h)
    rm -rf "$bin" "$work/errors"
    mkdir -p "$bin" "$work/errors/cjson"
    for name in "${headers[@]}"; do echo "#error $name is not here" >"$work/errors/$name"; done
    while IFS= read -rd : folder; do ln -s "$folder"/* "$bin" 2>/dev/null; done <<<"$PATH:"
    # shellcheck disable=SC2086
    (cd "$bin" && rm -f $mpi_names)
    for name in gcc g++ cc c++; do
        rm -f "$bin/$name"
        # behind -I and CPATH, before the system's
        printf '#!/bin/sh\nexec %s "$@" -isystem %s\n' "$(command -v "$name")" "$work/errors" >"$bin/$name"
        chmod +x "$bin/$name"
    done
    PATH=$bin "${@:2}"
}
lacks() { # HOW: does a command see neither?
    [[ $("$1" "mpi cjson" bash -c 'source scripts/common.sh && missing_packages mpi cjson' 2>"$work/out" |
        grep -c .) -eq 3 ]]
}

# check WITHOUT PART...: gpu_check.sh there -> $work/out, $code
check() {
    local without=$1
    shift
    code=0
    (cd "$tree" && "$how" "$without" env -u WERROR -u CPATH -u LIBRARY_PATH -u LD_LIBRARY_PATH COMMIT=trial \
        SCHEMES=odysseus bash -c 'PATH=$MACHINE/bin:$MACHINE/cuda/bin:$PATH exec bash dev/gpu_check.sh "$@"' _ \
        --results "$work/results" "$@") >"$work/out" 2>&1 || code=$?
}
row() { grep -qE "^ +[0-9]+ s  $1 +$2" "$work/out"; } # NAME STATE-AND-NOTE, as it is printed when it is known
table() { grep -qE "^$1 +$2" "$work/out"; }            # the same in the table at the end

# ---- what is carried

packed=1
if have dpkg-deb && have apt-cache && dpkg -L libopenmpi-dev libcjson-dev >/dev/null 2>&1; then
    (cd "$tree" && PATH=$MACHINE/bin:$PATH bash dev/gpu_check.sh --pack) >"$work/out" 2>&1 &&
        mv "$tree/build/gpu/pack" "$work/pack"
    ok $? "--pack: $(tail -n 1 "$work/out" | grep -o '[^ ]* [0-9]* MB$')"
    megabytes=$(grep -oE '[0-9]+ MB$' "$work/out")
    [[ ${megabytes% MB} -le 60 && ! -e $work/pack/usr/share/man ]] && ln -s "$work"/pack/usr/lib/*/ "$CARRIED"
    ok $? "it has less than 60 MB"
else
    packed=0
    ok 0 "# SKIP --pack: MPI and cJSON did not come in Debian's packages here"
fi
how=in_paths
if [[ ${BARE-} != paths && $packed -eq 1 ]] && lacks in_namespace; then how=in_namespace; fi
lacks $how
ok $? "a machine that sees neither MPI nor cJSON, $how"
if [[ $how != in_paths ]]; then
    lacks in_paths
    ok $? "so would one be where namespaces are not allowed"
fi

# ---- with neither

check "mpi cjson" build kernels train speed
[[ $code -eq 0 ]] && row 'build train_gpt' \
    'SKIPPED +missing: libopenmpi-dev openmpi-bin libcjson-dev; apt-get install them, or see --pack' && row build PASSED
ok $? "bare: the kernels are built, the program is not, and why"
for source in dev/test/test_cuda_*.cu; do
    row "$(basename "$source" .cu)" 'PASSED +[1-9][0-9]* ok, 0 not ok'
    ok $? "bare: $(basename "$source")"
done
row schemes 'SKIPPED +no mpirun here: one rank only, see the steps; or --pack' &&
    row 'train gpt2-124m' 'SKIPPED +.* is not built' && row bench_cuda PASSED
ok $? "bare: no training, and why; kernels are measured"

# ---- with cJSON

check mpi build train speed
[[ $code -eq 0 ]] && row build PASSED && grep -q '^MPI .*one rank only' "$tree/build/gpu/check/build.txt" &&
    row schemes 'SKIPPED +no mpirun here: one rank only' &&
    row 'train gpt2-124m' PASSED && row 'train llama-1b' PASSED
ok $? "cJSON alone: the program is built without MPI, says so, and trains on one rank"
table test_cuda_gemm PASSED
ok $? "the table has what other parts found before"

# ---- with the pack

if [[ $packed -eq 1 ]]; then
    cp -r "$work/pack" "$tree/build/gpu/pack"
    check "mpi cjson" build train
    [[ $code -eq 0 ]] && row build PASSED && ! grep -q SKIPPED.*missing "$work/out"
    ok $? "packed: everything is built, the program again"
    row schemes 'PASSED +[1-9][0-9]* ok, 0 not ok'
    ok $? "packed: two and four ranks train, as the referee" \
        "does:$(grep -m 1 -o 'schemes *PASSED.*' "$work/out" | cut -c 44-)"
fi

# ---- a part that fails

printf '#!/bin/sh\necho it hurts\nexit 3\n' >"$tree/build/gpu/test_cuda_gemm_cuda"
check "mpi" kernels sanitize
[[ $code -eq 1 ]] && row test_cuda_gemm 'FAILED +exit code 3; it hurts' && row test_cuda_ops PASSED &&
    row compute-sanitizer "SKIPPED +it says 'Device not supported'"
ok $? "a step that fails keeps no other from running, and makes the exit code 1"
python3 - "$work/results/results.json" >"$work/out" 2>&1 <<'PY'
import json, sys
r = json.load(open(sys.argv[1]))
states = {s["step"]: s["state"] for s in r["steps"]}
assert r["machine"]["gpu"] == "NVIDIA Imaginary" and r["machine"]["commit"] == "trial", r["machine"]
assert states["test_cuda_gemm"] == "FAILED" and states["build"] == "PASSED" and states["bench_cuda"] == "PASSED", states
PY
ok $? "results.json has the state of every step"
checks_done
