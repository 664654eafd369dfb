#!/usr/bin/env bash
# On a machine with a CUDA GPU, torch, triton, pytest and hypothesis: the kernels' tests on the GPU, then the benchmark; under 8
# minutes on an H200. Other projects' losses take part where they are installed (benchmarks/rivals.py).
# Writes gpu.{json,md} and kernels.{json,md} to the folder given (default: benchmarks/results). Its status is that of the tests,
# or of what failed after them.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results}
python -c 'import torch; assert torch.cuda.is_available(), "this needs a CUDA GPU; torch sees none"'
status=0
python -m pytest -q -p no:cacheprovider tests/ops/test_triton.py tests/ops/test_half_precision.py tests/ops/test_tuning.py \
    tests/ops/test_cuda_transport.py tests/ops/test_gpu.py -k "not compiles_for_every_gpu" || status=$?
python -m benchmarks.gpu --budget-seconds 270 --output "$output" || status=$?
python -m benchmarks.kernels --output "$output/kernels" || status=$?
exit "$status"
