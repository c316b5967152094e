#!/usr/bin/env bash
# Every check, from a fresh clone on: virtual environment, lint, types, rooms, documentation, tests.
# Arguments go to pytest: `bash launch/test.sh tests/nn -k attention`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
trap parts EXIT  # also after a failure: which part it was, and how long it took

part "virtual environment"
setup_env test
export PATH="$VENV/bin:$PATH"

part "ruff"
ruff check .
ruff format --check .

part "basedpyright"
basedpyright

part "import-linter"
lint-imports

part "documentation"  # without --quiet, which would hide warnings from --strict
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --config-file docs/site/mkdocs.yml

part "pytest"
pytest -n "${PYTEST_WORKERS:-2}" --dist worksteal "$@"
