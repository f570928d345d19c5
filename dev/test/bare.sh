#!/usr/bin/env bash
# bare.sh [--quick] SUITE - the README's two commands from a bare Debian (bookworm, trixie, ...): nothing but its
# minimal packages, then git, a fresh clone of this commit, scripts/quickstart.sh and scripts/test.sh, which install
# what they need themselves. TAP.
#
# --quick: ten steps and the kernels' tests instead of everything. The system is made anew in build/bare and stays
# there for a look. Root, debootstrap (installed if missing) and Debian's mirror are needed; mounts are in a
# namespace of its own and end with it.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
[[ $(id -u) -eq 0 ]] || die "needs root: debootstrap and chroot"
quick=
[[ ${1-} != --quick ]] || { quick=1 && shift; }
[[ $# -eq 1 && $1 =~ ^[a-z]+$ ]] || die "one Debian, by name: bookworm or trixie"
root=$PWD/build/bare/$1
have debootstrap || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q debootstrap; } \
    >"$work/out" 2>&1 </dev/null || die "cannot install debootstrap"
rm -rf --one-file-system "$root"
mkdir -p "$root"
debootstrap --variant=minbase "$1" "$root" http://deb.debian.org/debian >"$work/out" 2>&1 </dev/null
ok $? "$1: a minimal system"
cp /etc/resolv.conf "$root/etc/resolv.conf"

inside() { # COMMAND: in that system, in the clone if there is one
    # shellcheck disable=SC2016
    unshare --mount --propagation private bash -c '
        mount -t proc proc "$1/proc" && mount -t sysfs sys "$1/sys" && mount --rbind /dev "$1/dev" || exit 1
        exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root ${3:+"OPT=$3"} \
            bash -c "cd /root/odysseus.c 2>/dev/null || cd /root; $2"' \
        _ "$root" "$1" "${OPT-}" </dev/null
}
inside 'export DEBIAN_FRONTEND=noninteractive; apt-get update -q &&
    apt-get install -y -q --no-install-recommends git ca-certificates' >"$work/out" 2>&1
ok $? "$1: git"
git -c safe.directory='*' clone -q --no-hardlinks . "$root/root/odysseus.c" >"$work/out" 2>&1
ok $? "$1: a clone of $(git -c safe.directory='*' rev-parse --short HEAD 2>/dev/null)"

inside "bash scripts/quickstart.sh ${quick:+--steps 10}" >"$work/out" 2>&1
code=$?
cp "$work/out" "$root/root/quickstart.txt"
[[ $code -eq 0 ]] && all_schemes "$work/out"
ok $? "$1: quickstart.sh: $(grep -o 'differ by at most [0-9.e+-]*' "$work/out")"
inside "bash scripts/test.sh ${quick:+kernels comm}" >"$work/out" 2>&1
code=$?
cp "$work/out" "$root/root/test.txt"
[[ $code -eq 0 ]] && tail -n 1 "$work/out" | grep -qE '^[1-9][0-9]* passed, 0 failed$'
ok $? "$1: test.sh: $(tail -n 1 "$work/out")," \
    "$(inside "gcc -dumpfullversion; python3 --version; mpirun --version" 2>&1 | head -n 3 | tr '\n' ' ')"
checks_done
