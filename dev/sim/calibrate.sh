#!/usr/bin/env bash
# calibrate.sh RANKS PRECISION FILE - measure this machine with RANKS ranks (each with its share of the cores), in fp32
# or fp64, and write the cluster file. train_gpt_sim --calibrate runs it for kernels/sim/clusters/this-machine.cluster.
# Some ten seconds; a machine that is busy with something else is measured as a slow one.

set -euo pipefail
source "$(dirname "$0")/../../scripts/common.sh"
[[ $# -eq 3 ]] || die "three arguments: RANKS PRECISION FILE"
ranks=$1 precision=$2 file=$(absolute "$3")
whole ranks
[[ $precision == fp32 || $precision == fp64 ]] || die "PRECISION=$precision: fp32 or fp64, those of the CPU programs"
require_packages
build "build/calibrate_$precision" || die "cannot build: $build_why"
trap 'rm -f "$file.new"' EXIT
run_ranks "$ranks" "build/calibrate_$precision" >"$file.new"
mv "$file.new" "$file"
