#!/usr/bin/env bash
# Style, types, tests and doctests in an environment of their own. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/venv.sh
make_venv test
ruff format --check .
ruff check .
mypy
# A file's tests share what its fixtures make; the folders with the longest files come first.
python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
