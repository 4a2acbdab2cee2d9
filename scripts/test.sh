#!/bin/bash
# Everything that proves the project here: set-up, style, types, import contracts, then the tests.
# Usage: test.sh [PYTEST ARGUMENTS]      Needs root for the tests that mount and deploy; others skip those, aloud.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
scripts/check.sh
# The system tests compare with the demonstration's image; it is built once and then cached.
[ "$(id -u)" != 0 ] || python3 demo/build_images.py .cache/demo >/dev/null
# One process a core, file by file: half of a test is waiting for programs that it started.
cores=$(nproc)
set -- -n "$((cores < 4 ? cores : 4))" --dist loadfile "$@"
echo "+ pytest $*"
# A test that hangs must not hold everything else: the whole takes a fifth of this.
exec timeout --kill-after=30 3000 .venv/bin/python -m pytest "$@" </dev/null
