# shellcheck shell=bash
# common.sh - sourced by the other scripts: go to the repository's root, install what is missing, start MPI programs.
#
#   require_packages [WORD...]   compiler, Open MPI, oneDNN, cJSON, python3; apt-get installs those that are not here. WORD: only these
#                                (fuzz: clang's libFuzzer, only if asked for)
#   run_ranks [-t S] N CMD...    CMD under mpirun on N ranks of this host; -t: at most S seconds, then exit code 124
#
# What run_ranks adds to a plain mpirun, and why (Open MPI; another MPI gets none of it):
#   root           containers run as root, where mpirun refuses to start
#   oversubscribe  mpirun counts physical cores, and refuses more ranks than those
#   bind-to none   mpirun ties a rank of one or two to a single core, with all its threads
#   yield          with more ranks than cores, a rank that waits lets the others work; OpenMP threads sleep instead of spinning,
#                  and otherwise spin for some 20 us only: as fast on idle cores, up to 20 times as fast on busy ones
#   no rsh agent   on one host nobody is called, yet mpirun stops where ssh is not installed
#   no tcp         on one host nothing uses it, yet it complains about networks
#   no CMA         ranks copy through shared memory; reading each other's memory is forbidden in many containers, and crashes there
#   quiet          a failing program has said why in one line; mpirun would add fifteen

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# ---- packages -----------------------------------------------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

have_header() { # as the compiler would find it
    local cc
    for cc in mpicc gcc cc; do
        if have "$cc"; then
            printf '#include <%s>\n' "$1" | "$cc" -E -x c - >/dev/null 2>&1
            return
        fi
    done
    return 1
}

have_compilers() { have make && have gcc && have g++ && have_header stdlib.h; }

missing_packages() { # of the words given, as Debian's package names, one a line
    local word
    for word in "$@"; do
        case $word in
        build) have_compilers || say build-essential ;;
        mpi)
            { have mpicc && have_header mpi.h; } || say libopenmpi-dev
            have mpirun || say openmpi-bin
            ;;
        dnnl) have_header oneapi/dnnl/dnnl.h || say libdnnl-dev ;;
        cjson) have_header cjson/cJSON.h || say libcjson-dev ;;
        python) have python3 || say python3 ;;
        fuzz)
            have clang || say clang
            echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | clang -x c -fsanitize=fuzzer - -o /dev/null 2>/dev/null || say libclang-rt-dev
            ;;
        *) die "require_packages: unknown word $word" ;;
        esac
    done
}

require_packages() {
    [[ $# -gt 0 ]] || set -- build mpi dnnl cjson python
    local missing=() root=() line log
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if ! have apt-get; then
        die "missing: ${missing[*]} (Debian's names), and there is no apt-get here. Install with your package manager: C and C++ compilers" \
            "and make, Open MPI with its headers, oneDNN (dnnl), cJSON, python3"
    fi
    line="apt-get install -y ${missing[*]}"
    if [[ $(id -u) -ne 0 ]]; then
        have sudo || die "missing: ${missing[*]}; neither root nor sudo here, so let somebody who may run: $line"
        root=(sudo)
        [[ -t 0 ]] || root=(sudo -n) # nobody is there to type a password
    fi
    say "installing what is missing: ${missing[*]}"
    say "+ ${root[*]}${root:+ }apt-get update && ${root[*]}${root:+ }$line"
    root+=(env DEBIAN_FRONTEND=noninteractive)
    log=$(mktemp)
    if ! "${root[@]}" apt-get update -q </dev/null >"$log" 2>&1; then
        say "apt-get update failed, trying with the lists at hand: $(grep -m 1 '^[EW]:' "$log" || tail -n 1 "$log")"
    fi
    if ! "${root[@]}" apt-get install -y -q "${missing[@]}" </dev/null >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        die "could not install ${missing[*]}; by hand, as root: $line"
    fi
    rm -f "$log"
    hash -r
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -eq 0 ]] || die "still missing after their installation: ${missing[*]}; another compiler or mpicc may come first in PATH ($(command -v mpicc))"
}

# ---- MPI ----------------------------------------------------------------------------------------------------------------------

is_open_mpi() {
    [[ -n ${MPI_VERSION-} ]] || MPI_VERSION=$(mpirun --version 2>&1 || true)
    [[ $MPI_VERSION == *"Open MPI"* || $MPI_VERSION == *OpenRTE* ]]
}

run_ranks() {
    local limit=() options=() settings=() code=0 ranks
    if [[ $1 == -t ]]; then
        limit=(timeout --foreground --kill-after=10 "$2")
        shift 2
    fi
    ranks=$1
    shift
    if is_open_mpi; then
        options=(--oversubscribe --bind-to none)
        [[ $(id -u) -ne 0 ]] || options+=(--allow-run-as-root)
        # the second name of a setting is that of Open MPI 5
        settings=(OMPI_MCA_plm_rsh_agent= PRTE_MCA_plm_ssh_agent= OMPI_MCA_btl=^tcp OMPI_MCA_orte_execute_quiet=1
            OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_smsc=^cma)
    fi
    if [[ $ranks -gt $(nproc) ]]; then settings+=(OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive)
    elif [[ -z ${OMP_WAIT_POLICY-} ]]; then settings+=("GOMP_SPINCOUNT=${GOMP_SPINCOUNT-20000}"); fi
    env "${settings[@]}" "${limit[@]}" mpirun "${options[@]}" -np "$ranks" "$@" </dev/null || code=$?
    case $code in
    0 | 1) ;; # the program has said why
    124) say "$1 on $ranks ranks: stopped after its time limit" >&2 ;;
    137) say "$1 on $ranks ranks: killed (exit code 137); out of memory?" >&2 ;;
    *) say "$1 on $ranks ranks: ended with exit code $code" >&2 ;;
    esac
    return "$code"
}
