#!/usr/bin/env bash
# Runs all checks from a fresh clone: virtual environment, lint, types, imports between packages,
# documentation, tests. Arguments are passed to pytest: `bash launch/test.sh tests/nn -k attention`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
trap parts EXIT  # also after a failure, to print the failed part and the times

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
