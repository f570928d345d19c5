#!/usr/bin/env bash
# test_docs.sh - README.md, CONTRIBUTING.md and docs/: every command runs, every link, file and flag exists, what pages
# show is what programs print. The checks, and how a block is marked: check_docs.py. `make docs` brings up to date what
# can be written by itself. TAP.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
exec python3 dev/test/check_docs.py "$@"
