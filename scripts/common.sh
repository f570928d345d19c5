# shellcheck shell=bash
# common.sh - sourced by the other scripts: go to the repository's root, install what is missing, start MPI programs.
#
#   require_packages [WORD...]   compiler, Open MPI, cJSON, python3; apt-get installs those that are not here. WORD:
#                                only these (fuzz: clang's libFuzzer, only if asked for)
#   run_ranks [-t S] N CMD...    CMD under mpirun on N ranks of this host; -t: at most S seconds, then exit code 124
#       HOSTFILE=FILE            ... on the hosts of FILE instead, each filled before the next (hostfile.example)
#       LAUNCHER=srun            ... by srun, inside a Slurm job (slurm.sbatch); SRUN_FLAGS are its own [--mpi=pmix]
#   list_schemes PROGRAM         the names of its schemes; list_contexts PROGRAM: of its contexts
#   own_text                     text that is always here
#   whole, require_shards, require_program, plan, print_plan     what the runs that people copy share; see there
#
# What run_ranks adds to a plain mpirun on one host, and why (Open MPI; another MPI gets none of it):
#   root           containers run as root, where mpirun refuses to start
#   oversubscribe  mpirun counts physical cores, and refuses more ranks than those
#   bind-to none   mpirun ties a rank of one or two to a single core, with all its threads
#   yield          with more ranks than cores, a rank that waits lets the others work; OpenMP threads sleep instead
#                  of spinning, and otherwise spin for some 20 us only: as fast on idle cores, up to 20 times as fast
#                  on busy ones
#   no rsh agent   on one host nobody is called, yet mpirun stops where ssh is not installed
#   no networks    on one host nothing uses them, yet Open MPI complains about some (tcp) and sleeps for a second when
#                  it closes others (ofi)
#   no CMA         ranks copy through shared memory; reading each other's memory is forbidden in many containers, and
#                  crashes there
#   shm elsewhere  ranks copy through files of some 4 MB each in /dev/shm; where it holds less (64 MB in a container),
#                  ranks would end without a word
#   kill at once   mpirun sleeps two seconds between the signals that end the other ranks of a failed one, which have
#                  nothing to save
#   quiet          a failing program has said why in one line; mpirun would add fifteen

# a container's user may have neither HOME nor an entry in /etc/passwd, and mpirun then crashes
export HOME=${HOME:-${TMPDIR:-/tmp}}
export LC_ALL=C # where a locale writes 0,5, awk takes 0.5 for 0; and messages are then those that the scripts look for
here=$PWD # where the user stands: what file names of theirs are relative to
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

absolute() { if [[ $1 == /* ]]; then say "$1"; else say "$here/$1"; fi; }

# ---- packages --------------------------------------------------------------------------------------------------------

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
        build)
            if ! have_compilers; then say build-essential
            elif ! have_header omp.h; then say libomp-dev; fi # mpicc is clang, which has no OpenMP of its own
            ;;
        mpi)
            { have mpicc && have_header mpi.h; } || say libopenmpi-dev
            have mpirun || say openmpi-bin
            ;;
        cjson) have_header cjson/cJSON.h || say libcjson-dev ;;
        python) have python3 || say python3 ;;
        fuzz)
            have clang || say clang
            echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
                clang -x c -fsanitize=fuzzer - -o /dev/null 2>/dev/null || say libclang-rt-dev
            ;;
        *) die "require_packages: unknown word $word" ;;
        esac
    done
}

require_packages() {
    [[ $# -gt 0 ]] || set -- build mpi cjson python
    local missing=() root=() line log
    mapfile -t missing < <(missing_packages "$@")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if ! have apt-get; then
        die "missing: ${missing[*]} (Debian's names), and there is no apt-get here. Install with your package" \
            "manager: C and C++ compilers and make, Open MPI with its headers, cJSON, python3"
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
    [[ ${#missing[@]} -eq 0 ]] ||
        die "still missing after their installation: ${missing[*]}; another compiler or mpicc may come first in PATH" \
            "($(command -v mpicc))"
}

# ---- MPI -------------------------------------------------------------------------------------------------------------

is_open_mpi() {
    [[ -n ${MPI_VERSION-} ]] || MPI_VERSION=$(mpirun --version 2>&1 || true)
    [[ $MPI_VERSION == *"Open MPI"* || $MPI_VERSION == *OpenRTE* ]]
}

run_ranks() {
    local limit=() options=() settings=() launcher=${LAUNCHER:-mpirun} code=0 ranks room
    if [[ $1 == -t ]]; then
        limit=(timeout --foreground --kill-after=10 "$2")
        shift 2
    fi
    ranks=$1
    shift
    if [[ $launcher == srun ]]; then
        read -ra options <<<"--kill-on-bad-exit=1 ${SRUN_FLAGS---mpi=pmix}"
    elif is_open_mpi; then
        options=(--bind-to none)
        [[ $(id -u) -ne 0 ]] || options+=(--allow-run-as-root)
        # the second name of a setting is that of Open MPI 5
        settings=(OMPI_MCA_orte_execute_quiet=1 OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_smsc=^cma)
        if [[ -n ${HOSTFILE-} ]]; then options+=(--hostfile "$HOSTFILE" --map-by slot)
        else
            options+=(--oversubscribe)
            settings+=(OMPI_MCA_plm_rsh_agent= PRTE_MCA_plm_ssh_agent= OMPI_MCA_pml=ob1 OMPI_MCA_btl=^tcp,ofi,openib,uct
                OMPI_MCA_odls_base_sigkill_timeout=0)
            room=$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)
            [[ ${room:-0} -ge $((8192 * ranks)) ]] ||
                settings+=("OMPI_MCA_btl_vader_backing_directory=${TMPDIR:-/tmp}"
                "OMPI_MCA_btl_sm_backing_directory=${TMPDIR:-/tmp}")
        fi
    fi
    if [[ $launcher == srun || -n ${HOSTFILE-} ]]; then : # how many cores the ranks of a host share is not known here
    elif [[ $ranks -gt $(nproc) ]]; then settings+=(OMPI_MCA_mpi_yield_when_idle=1 OMP_WAIT_POLICY=passive)
    elif [[ -z ${OMP_WAIT_POLICY-} ]]; then settings+=("GOMP_SPINCOUNT=${GOMP_SPINCOUNT-20000}"); fi
    env "${settings[@]}" "${limit[@]}" "$launcher" "${options[@]}" -n "$ranks" "$@" </dev/null || code=$?
    case $code in
    0 | 1) ;; # the program has said why
    124) say "$1 on $ranks ranks: stopped after its time limit" >&2 ;;
    137) say "$1 on $ranks ranks: killed (exit code 137); out of memory?" >&2 ;;
    *) say "$1 on $ranks ranks: ended with exit code $code" >&2 ;;
    esac
    return "$code"
}

# ---- the program -----------------------------------------------------------------------------------------------------

list_of() { # PROGRAM HEADING WHAT: the first words of the list under this heading of --help
    local names
    names=$( (unset "${!SLURM_@}" && exec "$1" --help) |
        awk -v heading="^$2" '!NF { listed = 0 } listed { print $1 } $0 ~ heading { listed = 1 }')
    [[ -n $names ]] || die "$1 --help lists no $3"
    say "$names"
}
list_schemes() { list_of "$1" "Schemes of --sp" schemes; } # PROGRAM: what it knows, one a line, in its own order
list_contexts() { list_of "$1" "Contexts of --context" contexts; }

own_text() { # this repository's sources and documents, one a line; in a copy without git, those of the directory
    local file files
    mapfile -t files < <(git -c safe.directory="$PWD" ls-files -- '*.c' '*.h' '*.cu' '*.md' '*.sh' '*.py' Makefile \
        2>/dev/null || true)
    [[ ${#files[@]} -gt 0 ]] ||
        mapfile -t files < <(find . \( -name build -o -name runs -o -name '.?*' \) -prune -o \
            \( -type f -o -type l \) \( -name '*.[ch]' -o -name '*.cu' -o -name '*.md' -o -name '*.sh' \
            -o -name '*.py' -o -name Makefile \) -print | LC_ALL=C sort)
    for file in "${files[@]}"; do [[ ! -f $file ]] || say "$file"; done
}

# ---- the runs that people copy ---------------------------------------------------------------------------------------
#
# Their settings are variables (NP=16 STEPS=20 bash scripts/gpt2_124m.sh), so that the same
# line serves mpirun and Slurm:
# NP, STEPS, PROGRAM, FLAGS (more flags of the program), DRY_RUN=1 (print the arithmetic and
# stop), and the script's own.

whole() { # NAME...: these variables must be whole numbers from 1
    local name
    for name in "$@"; do
        [[ ${!name} =~ ^[1-9][0-9]{0,14}$ ]] || die "$name=${!name}: must be a whole number from 1"
    done
}

tokens() { # NAME: this variable as a number: 128K is 131072
    if [[ ${!1} =~ ^([1-9][0-9]{0,8})K$ ]]; then say $((BASH_REMATCH[1] * 1024)); else say "${!1}"; fi
}

require_shards() { # NAME: this variable is a token shard or a glob of them; makes it absolute
    local -n glob=$1
    glob=$(absolute "$glob")
    [[ -e $glob ]] || compgen -G "$glob" >/dev/null ||
        die "$1=$glob: no such file; token shards in llm.c's format, dev/data/prepare.py makes them from text"
}

gpus() { # how many this machine has
    if have nvidia-smi; then nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    else compgen -G '/dev/nvidia[0-9]*' | grep -c . || true; fi
}

default_ranks() { # one for each GPU; 8 where there is none, to see the arithmetic
    local n
    n=$(gpus)
    say $((n > 0 ? n : 8))
}

# The program in one process, for --help and --dry-run: without Slurm's variables, under which Open
# MPI would expect srun's help.
alone() { (unset "${!SLURM_@}" && exec "$PROGRAM" "$@"); }

build() { # TARGET: make it; else 1, and why in build_why
    build_why=$(make --no-print-directory -s "$1" 2>&1) && return
    build_why=$(grep -m 1 -E '\*\*\*|error' <<<"$build_why" |
        sed -E 's/^Makefile:[0-9]+: //; s/^\*\*\* //; s/\.? +Stop\.$//' || true)
    return 1
}

require_hosts() { # HOSTFILE, where it is set, is a file; makes it absolute
    [[ -n ${HOSTFILE-} ]] || return 0
    HOSTFILE=$(absolute "$HOSTFILE")
    [[ -f $HOSTFILE ]] || die "HOSTFILE=$HOSTFILE: no such file; scripts/hostfile.example shows one"
}

require_program() { # PROGRAM is here, or one of ours that can be built
    [[ ! -x $PROGRAM || -d $PROGRAM ]] || return 0
    case $PROGRAM in
    ./train_gpt | ./train_gpt_*)
        say "building ${PROGRAM#./}"
        build "${PROGRAM#./}" ||
            die "cannot build ${PROGRAM#./}: $build_why; another program: PROGRAM=./train_gpt_cpu trains on the CPU"
        ;;
    *) die "PROGRAM=$PROGRAM: no such program" ;;
    esac
}

# plan FLAGS...: what a run of NP ranks costs, from the program's own --dry-run: plan_mb (memory of a rank), plan_flop
# (of a step), plan_seconds (of a step, at MFU= of PEAK_TFLOPS= a rank). If it cannot run: 1, and why in plan_why.
plan() {
    local text
    if ! text=$(alone --dry-run --world "$NP" "$@" 2>&1); then
        plan_why=$(grep -m 1 '^train_gpt: error: ' <<<"$text" || tail -n 1 <<<"$text")
        plan_why=${plan_why#train_gpt: error: }
        return 1
    fi
    plan_mb=$(awk '$1 == "total" && NF == 2 { printf "%.0f", $2 }' <<<"$text")
    plan_flop=$(awk '$1 == "work" { print $6 }' <<<"$text")
    [[ -n $plan_mb && -n $plan_flop ]] ||
        die "$PROGRAM --dry-run does not print memory and work as this script expects; build it again"
    plan_seconds=$(awk -v f="$plan_flop" -v n="$NP" -v mfu="$MFU" -v peak="$PEAK_TFLOPS" \
        'BEGIN { print f / (mfu * peak * 1e12 * n) }')
}

print_plan() { # SEQUENCES LENGTH FLAGS...: the arithmetic of STEPS steps of so many sequences of so many tokens
    local sequences=$1 length=$2
    shift 2
    plan "$@" || die "$plan_why"
    awk -v b="$sequences" -v l="$length" -v s="$STEPS" -v f="$plan_flop" -v mb="$plan_mb" -v t="$plan_seconds" \
        -v n="$NP" -v mfu="$MFU" -v peak="$PEAK_TFLOPS" -v program="$PROGRAM" 'BEGIN {
        printf "tokens   %d sequences x %d = %d a step, x %d steps = %.4g\n", b, l, b * l, s, b * l * s
        printf "FLOP     %.3g a token (6 a parameter + 6 layers d L of causal attention), ", f / (b * l)
        printf "%.3g a step, %.3g in all\n", f, f * s
        printf "memory   %.2f GB a rank (%s --dry-run --world %d), ", mb / 1e3, program, n
        printf "and what the device keeps for itself\n"
        printf "time     %.3g s a step if %d ranks reach %g%% of ", t, n, 100 * mfu
        printf "%g TFLOP/s (MFU=, PEAK_TFLOPS=), %.3g hours in all\n", peak, t * s / 3600
    }'
}
