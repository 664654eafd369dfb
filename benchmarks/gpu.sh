#!/usr/bin/env bash
# On a machine with a CUDA GPU, torch, triton, pytest and hypothesis: the kernels' tests on the GPU, the benchmark, the loss in a
# training step where open_clip is installed, and what the compiler makes of the kernels; under 8 minutes on an H100. Other projects'
# losses take part where they are installed (benchmarks/speed/rivals.py).
# Writes {gpu,training_step,kernels}.{json,md} to the folder given (default: benchmarks/results). A part that fails or takes too
# long does not stop the others; the status is that of the last that did.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-benchmarks/results}
python -c 'import torch; assert torch.cuda.is_available(), "this needs a CUDA GPU; torch sees none"'
status=0
part() { # seconds, and the command
    echo "== ${*:2}"
    timeout --kill-after 10 "$1" "${@:2}" || status=$?
}
# Inductor, imported, and a graph's capture make torch warn; pytest-benchmark, where it is installed, refuses to run beside xdist.
tests=(-q -p no:cacheprovider -p no:benchmark -o filterwarnings=default -m gpu tests/ops)
if python -c 'import xdist' 2>/dev/null; then
    tests+=(-n 8)
fi
part 100 python -m pytest "${tests[@]}"
part 230 python -m benchmarks.gpu --budget-seconds 200 --output "$output"
if python -c 'import open_clip' 2>/dev/null; then
    part 70 python -m benchmarks.training_step --budget-seconds 40 --output "$output"
else
    echo "== open_clip is not installed, so no training step is measured: pip install open_clip_torch"
fi
part 50 python -m benchmarks.kernels --output "$output/kernels"
exit "$status"
