"""What Triton's compiler makes of the launches."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.kernels import amdgcn, cubin, declared
from benchmarks.kernels.launches import Launch
from otter_losses.ops.triton.launch import fits

Architecture = int | str
"""NVIDIA's compute capability times ten, or AMD's name of it."""

NVIDIA = (70, 80, 90, 100)
AMD = ("gfx90a", "gfx942")
ARCHITECTURES: tuple[Architecture, ...] = (*NVIDIA, *AMD)

PROOF = 90

FIRST_TO_COMPUTE = 80
"""NVIDIA's architecture from which on kernels compute their tiles of half-precision products; see `gemm.computes_tiles`."""

FIRST_TO_DESCRIBE = 90
"""NVIDIA's architecture from which on tiles are loaded by tensor descriptors."""


def _listed() -> list[Launch]:
    """`recorded`, in a process that interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.kernels", "--list"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return [Launch.of(row) for row in json.loads(done.stdout)]


def build(launch: Launch, architecture: Architecture) -> dict[str, Any]:
    """Compile and read the resources from what came out."""
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    constants = launch.constexprs(kernel.arg_names)
    positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(position,): [["tt.divisibility", 16]] for position in launch.aligned}
    source = ASTSource(fn=kernel, signature=launch.types, constexprs=positions, attrs=attributes)
    is_amd = isinstance(architecture, str)
    target = GPUTarget("hip", architecture, 64) if is_amd else GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=launch.options)
    binary = compiled.asm["hsaco" if is_amd else "cubin"]
    (used,) = [amdgcn.resources(compiled.asm["amdgcn"])] if is_amd else cubin.resources(binary).values()
    traffic = declared.traffic(launch.kernel, launch.soft, launch.computed)
    return cubin.row(launch.kernel, launch.switches, architecture, used, len(binary), compiled.metadata.shared, traffic)


def _build(job: tuple[Launch, Architecture]) -> dict[str, Any]:
    return build(*job)


def architectures(launch: Launch, is_representative: bool = True) -> tuple[Architecture, ...]:
    """Those that a launch is compiled for; one is proof enough of a variant of another launch, and of a tile but the first.

    The first is the first that the architecture has: descriptors are for some. Loaded tiles are cheap to compile, so of those all
    are, for NVIDIA; for AMD the first tile is proof enough. Of a kernel that walks over vectors alone, one launch is
    representative for the others.
    """
    loaded = [tile for tile in launch.tiles if not dict(tile).get("DESCRIPTORS")]
    is_first = launch.usual and launch.tile in (launch.tiles[0], loaded[0])
    walks_over_vectors = not any(declared.matrices(launch.kernel))
    is_variant = launch.computed and (launch.divergence or launch.float16 or launch.uneven or not is_first)
    if not launch.usual or launch.grouped or is_variant or (walks_over_vectors and not is_representative):
        return (PROOF,)
    first = FIRST_TO_DESCRIBE if launch.described else FIRST_TO_COMPUTE if launch.computed else NVIDIA[0]
    amd = AMD if is_first and not launch.float16 and not launch.described else ()
    nvidia = (each for each in NVIDIA if each >= first)
    if launch.computed:
        tile = {name: int(value) for name, value in launch.tile}
        nvidia = (each for each in nvidia if fits(tile, each // 10))
    return (*nvidia, *amd)


def builds() -> list[dict[str, Any]]:
    """All launches for all architectures."""
    listed = [launch for launch in _listed() if not (launch.computed and launch.float16 and not launch.usual)]
    launches = dict.fromkeys(choice for launch in listed for choice in launch.choices())
    representatives = {launch.kernel: launch for launch in reversed(launches) if launch.usual}
    jobs = [
        (launch, architecture)
        for launch in launches
        for architecture in architectures(launch, launch is representatives.get(launch.kernel))
    ]
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_build, jobs, chunksize=4))
