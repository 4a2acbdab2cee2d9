#!/bin/bash
# Style, types and import contracts: what needs no test to be run. `check.sh lint` or `check.sh types` does a part.
set -euo pipefail
cd "$(dirname "$0")/.."
step() {
    echo "+ $*"
    ".venv/bin/$1" "${@:2}"
}
if [ "${1:-all}" != types ]; then
    step ruff check --quiet
    step ruff format --quiet --check
    step lint-imports
fi
if [ "${1:-all}" != lint ]; then
    step mypy --strict
    step mypy --strict demo benchmarks vm
fi
