"""What Triton's compiler makes of the launches."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.kernels import declared
from benchmarks.kernels.cubin import resources, row
from benchmarks.kernels.launches import Launch

ARCHITECTURES = (70, 80, 90, 100)

PROOF = 90

FIRST_TO_COMPUTE = 80
"""Architecture from which on kernels compute their tiles of half-precision products; see `gemm.computes_tiles`."""


def _listed() -> list[Launch]:
    """`recorded`, in a process that interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [Launch.of(row) for row in json.loads(done.stdout)]


def build(launch: Launch, architecture: int) -> dict[str, Any]:
    """Compile and read the resources from the cubin."""
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    constants = launch.constexprs(kernel.arg_names)
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(position,): [["tt.divisibility", 16]] for position in launch.aligned}
    source = ASTSource(fn=kernel, signature=dict(launch.signature), constexprs=positions, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    (used,) = resources(compiled.asm["cubin"]).values()
    switches, size = launch.switches, len(compiled.asm["cubin"])
    traffic = declared.traffic(launch.kernel, launch.soft, launch.computed)
    return row(launch.kernel, switches, architecture, used, size, compiled.metadata.shared, traffic)


def _build(job: tuple[Launch, int]) -> dict[str, Any]:
    return build(*job)


def architectures(launch: Launch) -> tuple[int, ...]:
    """Those that a launch is compiled for; one is proof enough of a variant of another launch, and of a tile but the first.

    Loaded tiles are cheap to compile, so of those all are.
    """
    if not launch.computed:
        return ARCHITECTURES if launch.usual else (PROOF,)
    is_variant = launch.divergence or launch.float16 or not launch.usual or launch.tile != launch.tiles[0]
    return (PROOF,) if is_variant else tuple(each for each in ARCHITECTURES if each >= FIRST_TO_COMPUTE)


def builds() -> list[dict[str, Any]]:
    """All launches for all architectures."""
    listed = [launch for launch in _listed() if not (launch.computed and launch.float16 and not launch.usual)]
    launches = dict.fromkeys(choice for launch in listed for choice in launch.choices())
    jobs = [(launch, architecture) for launch in launches for architecture in architectures(launch)]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_build, jobs, chunksize=4))
