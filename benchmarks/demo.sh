#!/usr/bin/env bash
# The losses trained and compared on real image-text pairs, in an environment of their own. Arguments go to `benchmarks.demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/venv.sh
make_venv demo
exec python -m benchmarks.demo "$@"
