#!/usr/bin/env bash
# On a machine with a CUDA GPU, torch, triton, pytest and hypothesis: the kernels' tests on the GPU, then the benchmark.
# Writes speed-cuda.{json,md} and kernels.{json,md} to the folder given (default: benchmarks/results).
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results}
python -c 'import torch; assert torch.cuda.is_available(), "this needs a CUDA GPU; torch sees none"'
python -m pytest -q tests/test_fused.py
python -m benchmarks.speed --device cuda --pairs 512 1024 4096 16384 32768 --output "$output/speed-cuda"
python -m benchmarks.kernels --output "$output/kernels"
