"""`ops.eager.sinkhorn.solve` in plain numbers as one kernel launch, for matrices that fit on the chip; see ``sinkhorn.cu``."""

import ctypes
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_losses.ops.cuda import nvrtc

SOURCE = Path(__file__).with_name("sinkhorn.cu")
THREADS = 512
"""In a block; derived from the registers (at most 128 a thread) and from what 8 blocks of 64 rows keep busy, not measured."""
CLUSTER = 8
"""Blocks in a cluster: as many as every GPU with clusters can hold."""


@dataclass(frozen=True)
class Layout:
    """Who holds which rows: block ``b`` those from ``b * rows`` on."""

    n: int
    cluster: bool
    blocks: int
    rows: int

    @property
    def kernel(self) -> str:
        return "sinkhorn_cluster" if self.cluster else "sinkhorn_grid"

    def shared_bytes(self, threads: int = THREADS) -> int:
        """Of each block: its rows of K, padded to whole float4; both columns' scalings; two factors a row; the grid's scratch."""
        pitch = -(-self.n // 4) * 4
        return 4 * (self.rows * pitch + 2 * pitch + -(-self.rows // 2) * 4 + (0 if self.cluster else threads))

    @property
    def share_floats(self) -> int:
        """Of the blocks' column sums in global memory."""
        return (2 if self.cluster else 1) * self.blocks * 2 * self.n


def layout(n: int, multiprocessors: int, shared_bytes: int, clusters: bool) -> Layout | None:
    """A cluster where the matrix fits into one, else a grid over all multiprocessors, else None.

    `shared_bytes`: what one block may have.
    """
    rows = -(-n // multiprocessors)
    choices = [Layout(n, False, -(-n // rows), rows)]
    if clusters and multiprocessors >= CLUSTER:
        choices.insert(0, Layout(n, True, CLUSTER, -(-n // CLUSTER)))
    return next((choice for choice in choices if choice.shared_bytes() <= shared_bytes), None)


def missing(device: torch.device) -> str | None:
    """Why the kernel cannot run there, and what to install; None where it can."""
    if device.type != "cuda":
        return f"the CUDA kernels need a CUDA device, but the tensors are on {device}."
    if torch.version.cuda is None:
        return "the CUDA kernels need NVIDIA's CUDA, but this PyTorch is built without it."
    if not torch.cuda.is_available():
        return "the CUDA kernels need a CUDA device, but PyTorch finds none."
    return _missing(_index(device))


def obstacle(n: int, device: torch.device) -> str | None:
    """Why a matrix (n, n) cannot be solved there in one launch; None where it can: then it was run once.

    A kernel that does not run, where all it needs is there, is warned of.
    """
    reason = missing(device)
    if reason is not None:
        return reason
    index = _index(device)
    plan = _layout(n, index)
    if plan is None:
        return f"{n} pairs do not fit on the chip of {device}."
    if (plan, index) not in _tried:
        if torch.cuda.is_current_stream_capturing():
            return "it was not tried before a CUDA graph was captured."
        _tried[plan, index] = _failure(plan, device)
    return _tried[plan, index]


_tried: dict[tuple[Layout, int], str | None] = {}


def _failure(plan: Layout, device: torch.device) -> str | None:
    """What goes wrong when it is built and run on a matrix of ones, whose scalings are known."""
    try:
        matrix, shift = torch.zeros(plan.n, plan.n, device=device), torch.zeros((), device=device)
        expected = (1.0, 1.0, 1.0 / plan.n)
        if all(
            torch.allclose(each, torch.full_like(each, one)) for each, one in zip(solve(matrix, shift, 1), expected, strict=True)
        ):
            return None
        reason = "its kernel gives wrong numbers."
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = f"its kernel does not run: {error}"
    warnings.warn(f"otter_losses solves the transport without CUDA C++ on {device}: {reason}", RuntimeWarning, stacklevel=2)
    return reason


def solve(
    matrix: Tensor, shift: Tensor, iterations: int, out: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The scalings v of the image problem's columns, u' and v' of the text problem's rows and columns, (n,) each.

    In `out`, if that is given. Of contiguous float32 logits (n, n) and a float32 number on one device, for which there is no
    `obstacle`.
    The logits are overwritten by ``exp(logits - shift)``. Runs on PyTorch's current stream, without waiting; the first call on a
    device builds or loads the kernel, which must not happen while a CUDA graph is captured.
    """
    index = _index(matrix.device)
    plan = _layout(len(matrix), index)
    if plan is None:
        raise RuntimeError(f"a matrix {tuple(matrix.shape)} does not fit on the chip of {matrix.device}. Use backend='auto'.")
    with torch.cuda.device(index):
        image_columns, text_rows, text_columns = matrix.new_empty(3, plan.n).unbind() if out is None else out
        shares = matrix.new_empty(plan.share_floats)
        arrived = shares if plan.cluster else torch.zeros((), dtype=torch.int32, device=matrix.device)
        tensors = matrix, shift, image_columns, text_rows, text_columns, shares, arrived
        stream = torch.cuda.current_stream(index).cuda_stream
        launch(plan, iterations, [tensor.data_ptr() for tensor in tensors], index, stream)
    return image_columns, text_rows, text_columns


def launch(plan: Layout, iterations: int, addresses: list[int], device: int, stream: int) -> None:
    """Start the kernel on tensors at these addresses; PyTorch's names for device and stream."""
    from cuda import core

    core.Device(device).set_current()
    sizes = (ctypes.c_int(plan.n), ctypes.c_int(plan.rows), ctypes.c_int(iterations))
    core.launch(_stream(stream, device), _configuration(plan, device), _kernel(plan.kernel, device), *addresses, *sizes)


@cache
def _stream(handle: int, device: int) -> Any:
    from cuda.core import Stream

    return Stream.from_handle(handle)


@cache
def _configuration(plan: Layout, device: int) -> Any:
    from cuda.core import LaunchConfig

    if plan.cluster:
        return LaunchConfig(grid=1, cluster=plan.blocks, block=THREADS, shmem_size=plan.shared_bytes())
    cooperative = {"is_cooperative" if hasattr(LaunchConfig, "is_cooperative") else "cooperative_launch": True}
    return LaunchConfig(grid=plan.blocks, block=THREADS, shmem_size=plan.shared_bytes(), **cooperative)


@cache
def _kernel(name: str, device: int) -> Any:
    """Loaded onto the device, which is current, with as much shared memory as a block may have."""
    from cuda import core
    from cuda.bindings import driver

    architecture, _, shared_bytes, _ = _chip(device)
    core.Device(device).set_current()
    try:
        kernel = _code(architecture).get_kernel(name)
    except Exception as error:
        version = ".".join(str(number) for number in nvrtc.version())
        raise RuntimeError(
            f"the driver does not load what NVRTC {version} built ({error}). Update the driver, or install NVRTC of the CUDA "
            f"version that PyTorch has: {nvrtc.INSTALL}."
        ) from error
    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (status,) = driver.cuKernelSetAttribute(attribute, shared_bytes, kernel.handle, driver.CUdevice(device))
    if int(status) != 0:
        raise RuntimeError(f"the CUDA kernel is refused {shared_bytes} bytes of shared memory a block: error {int(status)}.")
    return kernel


@cache
def _code(architecture: int) -> Any:
    from cuda.core import ObjectCode

    cubin = nvrtc.compile(SOURCE, architecture, [("THREADS", str(THREADS))])
    return ObjectCode.from_cubin(cubin, name=SOURCE.name)


# ---- what a device is ----


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _chip(device: int) -> tuple[int, int, int, bool]:
    """Architecture, multiprocessors, shared bytes a block may have, and whether there are clusters."""
    chip = torch.cuda.get_device_properties(device)
    # Without PyTorch's own answer: a multiprocessor keeps 1 KiB of each block's for itself from Ampere on.
    derived = chip.shared_memory_per_multiprocessor - (1024 if chip.major >= 8 else 0)
    shared_bytes = getattr(chip, "shared_memory_per_block_optin", derived)
    return 10 * chip.major + chip.minor, chip.multi_processor_count, shared_bytes, chip.major >= 9


@cache
def _layout(n: int, device: int) -> Layout | None:
    _, multiprocessors, shared_bytes, clusters = _chip(device)
    return layout(n, multiprocessors, shared_bytes, clusters)


@cache
def _missing(device: int) -> str | None:
    architecture = _chip(device)[0]
    if architecture < 70:
        return f"the CUDA kernels need compute capability 7.0 (Volta) or newer, but cuda:{device} has {architecture / 10}."
    reason = nvrtc.missing()
    if reason is not None:
        return reason
    major, minor = nvrtc.version()
    if architecture not in nvrtc.architectures():
        advice = 'NVRTC 12 does: pip install "otter_losses[cuda12]"' if architecture < 75 else f"Update it: {nvrtc.INSTALL}"
        return f"the CUDA kernels cannot be built: NVRTC {major}.{minor} does not know sm_{architecture}. {advice}."
    from cuda.bindings import driver

    status, supported = driver.cuDriverGetVersion()
    if int(status) == 0 and supported // 1000 < major:
        return (
            f"the CUDA kernels cannot be run: NVRTC is of CUDA {major}, the driver of CUDA {supported // 1000}. "
            f"Update the driver, or install NVRTC of its version: {nvrtc.INSTALL}."
        )
    return None
