#!/usr/bin/env bash
# aarch64.sh - the product and its tests on aarch64: cross-compiled here, run under qemu-user in a
# Debian of that processor. TAP.
#
#   packages   qemu-user-static, debootstrap and the cross compilers, installed where they are missing;
#              build/aarch64/root: this Debian's packages for arm64, unpacked (300 MB); binfmt_misc learns to start its
#              programs, which needs a kernel that has it
#   programs   train_gpt_cpu, train_gpt_fp64, train_gpt_emu and tests in build/aarch64
#   run        in that root, in a mount namespace of its own: nothing stays mounted
# Needs root, an hour at most, and Debian. On aarch64 itself scripts/test.sh is the test.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
[[ $(id -u) -eq 0 ]] || die "needs root: chroot and binfmt_misc"
[[ $(uname -m) != aarch64 ]] || die "this machine is aarch64: scripts/test.sh tests it"
# shellcheck source=/dev/null
suite=$(. /etc/os-release && say "${VERSION_CODENAME-}")
build=build/aarch64 root=$PWD/build/aarch64/root libs=usr/lib/aarch64-linux-gnu

require_packages build mpi cjson python
have aarch64-linux-gnu-gcc && have aarch64-linux-gnu-g++ && have debootstrap &&
    [[ -e /usr/bin/qemu-aarch64-static ]] || {
    say "# installing gcc-aarch64-linux-gnu g++-aarch64-linux-gnu debootstrap qemu-user-static"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q gcc-aarch64-linux-gnu \
        g++-aarch64-linux-gnu debootstrap qemu-user-static; } >"$work/out" 2>&1 </dev/null ||
        die "could not install them: $(tail -n 1 "$work/out")"
}
[[ -e /proc/sys/fs/binfmt_misc/register ]] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc ||
    die "this kernel has no binfmt_misc"
[[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]] ||
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register || die "binfmt_misc refuses qemu-aarch64"

if [[ ! -e $root/done ]]; then # unpacked by this machine's dpkg-deb: installing them under qemu takes ten times as long
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=libopenmpi-dev,openmpi-bin,libcjson-dev,libgomp1 \
        "$suite" "$root" >"$work/out" 2>&1 </dev/null ||
        die "debootstrap: $(tail -n 1 "$work/out")"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root" || die "cannot unpack $package"
    done
    ln -sf mpirun.openmpi "$root/usr/bin/mpirun"
    echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
    mkdir -p "$root/tree" "$root/sys" && touch "$root/done"
fi

for language in cc:gcc cxx:g++; do
    cat >"$build/mpi${language%:*}" <<END
#!/bin/sh
exec aarch64-linux-gnu-${language#*:} --sysroot="$root" -I"$root/$libs/openmpi/include" "\$@" \\
    -L"$root/$libs/openmpi/lib" -Wl,-rpath-link,"$root/$libs/openmpi/lib:$root/$libs" -lmpi
END
    chmod +x "$build/mpi${language%:*}"
done
tests=(test_positions_fp32 test_kernels_fp32 test_kernels_fp64 test_log_fp32 test_checkpoint_fp64 test_comm_fp64
    test_fixtures_fp64 test_emulator_emu test_cuda_ops_emu)
make -k -s -j "$(nproc)" BUILD=$build MPICC=$build/mpicc MPICXX=$build/mpicxx OPT="-O3 -march=armv8-a" \
    "${tests[@]/#/$build/}" $build/train_gpt_cpu $build/train_gpt_fp64 $build/train_gpt_emu $build/train_gpt_sim \
    >"$work/out" 2>&1
ok $? "the programs and tests compile for aarch64"

# there RANKS COMMAND...: in the root, where /tree is this repository
there() {
    # shellcheck disable=SC2016
    unshare --mount --propagation private bash -c '
        mount -t proc proc "$1/proc" && mount -t sysfs sys "$1/sys" && mount --rbind /dev "$1/dev" &&
            mount --bind "$PWD" "$1/tree" && mount --bind "$2" "$1/tmp" || exit 1
        ulimit -v $((1 << 24)) # the arena reserves 32 TiB where it may, and qemu keeps a record of every page
        exec chroot "$1" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/root OMP_WAIT_POLICY=passive \
            OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_pml=ob1 bash -c '\''cd /tree && . scripts/common.sh &&
                run_ranks "$@"'\'' _ "${@:3}"' _ "$root" "$work" "$@" </dev/null
}

passes() { # TEST RANKS
    there "$2" "$build/$1" >"$work/out" 2>&1 && grep -q '^1\.\.[1-9]' "$work/out" && ! grep -q '^not ok' "$work/out"
    ok $? "$1 on $2 ranks: $(grep -c '^ok' "$work/out") checks"
}
there 1 uname -m >"$work/out" 2>&1 && grep -qx aarch64 "$work/out"
ok $? "programs run as on $(tail -n 1 "$work/out")"
for test in test_positions_fp32 test_kernels_fp32 test_kernels_fp64 test_log_fp32 test_checkpoint_fp64 \
    test_emulator_emu test_cuda_ops_emu; do
    passes $test 1
done
for test in test_comm_fp64 test_fixtures_fp64; do passes $test 2; done

# ---- two ranks train as here
python3 dev/data/text_to_shards.py --out "$work/data" train_gpt.cu >/dev/null
flags=(--seq-len 64 --batch 4 --micro-batch 2 --steps 3 --layers 2 --dim 64 --heads 4 --ffn 96)
losses() { sed -E 's/.*"loss": ([^,]*),.*/\1/' "$work/$1/metrics.jsonl"; }
make -s train_gpt_fp64 &&
    run_ranks 1 ./train_gpt_fp64 "${flags[@]}" --train "$work/data/train_*.bin" --out "$work/here" >"$work/out" 2>&1
ok $? "the referee's losses on this processor: $(losses here | tr '\n' ' ')"
trains() { # PROGRAM DISTANCE FLAGS...
    there 2 "$build/$1" "${flags[@]}" --train '/tmp/data/train_*.bin' --selfcheck on --out "/tmp/$1" "${@:3}" \
        >"$work/out" 2>&1 &&
        paste <(losses here) <(losses "$1") |
        awk -v most="$2" '{ d = ($1 - $2) / $1; if (d * d > most * most) exit 1 } END { exit NR != 3 }'
    ok $? "$1, two ranks on aarch64: losses within $2 of those;$(grep -o ' peak .*' "$work/out")"
}
trains train_gpt_fp64 1e-12 --sp odysseus
trains train_gpt_cpu 1e-5 --sp ring
trains train_gpt_emu 1e-2 --sp ulysses

checks_done
