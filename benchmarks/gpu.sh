#!/usr/bin/env bash
# On a machine with a CUDA GPU, torch, triton, pytest and hypothesis: the kernels' tests on the GPU, then the benchmark; under 8
# minutes on an H200. Other projects' losses take part where they are installed (benchmarks/speed/rivals.py).
# Writes gpu.{json,md} and kernels.{json,md} to the folder given (default: benchmarks/results). Its status is that of the tests,
# or of what failed after them.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results}
python -c 'import torch; assert torch.cuda.is_available(), "this needs a CUDA GPU; torch sees none"'
status=0
# Inductor, imported, and a graph's capture make torch warn; pytest-benchmark, where it is installed, refuses to run beside xdist.
tests=(-q -p no:cacheprovider -p no:benchmark -o filterwarnings=default -m gpu tests/ops)
if python -c 'import xdist' 2>/dev/null; then
    tests+=(-n 8)
fi
python -m pytest "${tests[@]}" || status=$?
python -m benchmarks.gpu --budget-seconds 270 --output "$output" || status=$?
python -m benchmarks.kernels --output "$output/kernels" || status=$?
exit "$status"
