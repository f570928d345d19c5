#!/usr/bin/env bash
# compare.sh DIR... - one table from run directories (train_gpt --out DIR): losses, curves against the first DIR's,
# speed, memory, bytes against their closed form. Exit code 1 if curves or bytes differ; --help says more.
set -euo pipefail
here=$PWD
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
require_packages python
script=$PWD/scripts/compare.py
cd "$here"
exec python3 "$script" "$@"
