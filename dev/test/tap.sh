# shellcheck shell=bash
# tap.sh - sourced by dev/test/test_*.sh: go to the repository's root, a folder $work that is gone at the end, and TAP.
#
#   ok STATUS TEXT      one check: passed where STATUS is 0; else the end of $work/out, where the command checked has
#                       written, says why
#   schemes_of PROGRAM  the array `schemes`: those of its --help
#   all_schemes FILE    does this output of quickstart.sh hold the table, a row for one rank and for each scheme?
#   checks_done         the plan, at the end; its status is that of the script
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"
work=$(mktemp -d) && [[ -d $work ]] || exit 1 # files of tests are written below it, never beside it
trap 'rm -rf "$work"' EXIT
n=0 failed=0

ok() {
    n=$((n + 1))
    if [[ $1 -eq 0 ]]; then say "ok $n - ${*:2}"; else
        say "not ok $n - ${*:2}"
        failed=$((failed + 1))
        sed 's/^/# /' "$work/out" 2>/dev/null | tail -n 14
    fi
}

schemes_of() {
    local names
    names=$(list_schemes "$1") || exit 1
    mapfile -t schemes <<<"$names"
    names=$(list_contexts "$1") || exit 1
    # shellcheck disable=SC2034
    mapfile -t contexts <<<"$names"
}

all_schemes() {
    local n
    n=$(sed -n 's/.* then under \([0-9]*\) schemes .*/\1/p' "$1")
    [[ -n $n && $(grep -cE '^(single rank|[a-z]+) +[0-9]+ +[0-9]+\.[0-9]{4} ' "$1") -eq $((1 + n)) ]]
}

checks_done() {
    say "1..$n"
    [[ $failed -eq 0 ]]
}
