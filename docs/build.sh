#!/usr/bin/env bash
# The documentation as a site in .site/, in an environment of its own. A warning is an error, and no network is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/venv.sh
make_venv docs
python -m sphinx -W --keep-going -c docs/site . .site "$@"
echo "Open .site/index.html"
