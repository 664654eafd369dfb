"""The memory rule: how much N x N matrices may take, which of them are stored, and the row blocks in which the others pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops import products
from otter_losses.ops.tracing import constant_when_traced

DEFAULT_BYTES = 2 << 30
"""Of N x N matrices by default; on a GPU an eighth of its memory where that is more."""


@dataclass(frozen=True)
class Limits:
    """Sizes that the rule is made of.

    Attributes:
        cpu_block_elements: of a row block worked on at once: what a CPU's caches hold.
        cpu_block_rows: the fewest rows of a block.
        device_block_elements: the same elsewhere: what fills the device.
        device_eager_elements: the same of eager torch, which launches a kernel for every operation.
        device_pass_elements: the same of a block of which nothing is stored but sums over tiles.
        device_gradient_elements: of a block of the logits' gradient in float16.
        device_gradient_rows: the rows of such a block, which then has so few columns that it stays that small: products sum over
            both, and adding a share to the rest must cost little beside it.
        device_block_rows: below so many, adding a block's share of dy to the rest costs more than its product; blocks are
            whole tiles of 128 rows, which products and kernels work on.
        codes_from: pairs beyond which 16-bit codes of the Gibbs kernel save time: up to there its float32 matrix (16 MiB) stays
            in a GPU's cache. Derived, not measured.
    """

    cpu_block_elements: int = 1 << 19
    cpu_block_rows: int = 256
    device_block_elements: int = 1 << 25
    device_eager_elements: int = 1 << 26
    device_pass_elements: int = 1 << 28
    device_gradient_elements: int = 1 << 25
    device_gradient_rows: int = 4096
    device_block_rows: int = 512
    codes_from: int = 2048


_limits = Limits()


@contextmanager
def limits(**changed: int) -> Iterator[None]:
    """Other `Limits` for a while, so that small batches take the ways of large ones: for tests and the compile report."""
    global _limits
    before = _limits
    _limits = replace(before, **changed)
    try:
        yield
    finally:
        _limits = before


def row_blocks(rows: int, columns: int, device: torch.device) -> list[slice]:
    """Row blocks of a matrix (rows, columns), by the `Limits` of the device."""
    on_cpu = device.type == "cpu"
    elements = _limits.cpu_block_elements if on_cpu else _limits.device_block_elements
    height = max(elements // max(columns, 1), _limits.cpu_block_rows if on_cpu else _limits.device_block_rows)
    return slices(rows, height if on_cpu else max(height // 128, 1) * 128)


def eager_blocks(rows: int, columns: int, device: torch.device) -> list[slice]:
    """Row blocks of a matrix (rows, columns) for eager torch."""
    if device.type == "cpu":
        return row_blocks(rows, columns, device)
    return slices(rows, max(_limits.device_eager_elements // max(columns, 1), _limits.device_block_rows))


def pass_blocks(rows: int, columns: int) -> list[slice]:
    """Row blocks of a matrix of which nothing is stored, elsewhere than on the CPU."""
    return slices(rows, max(_limits.device_pass_elements // max(columns, 1) // 128, 1) * 128)


def gradient_blocks(rows: int, columns: int, planes: int) -> list[tuple[slice, slice]]:
    """Blocks of a gradient of logits (rows, columns) in so many planes of float16, row by row."""
    elements = _limits.device_gradient_elements // planes
    height = min(rows, max(elements // max(columns, 1) // 128 * 128, _limits.device_gradient_rows))
    width = max(elements // max(height, 1) // 128, 1) * 128
    return [(block, part) for block in slices(rows, height) for part in slices(columns, width)]


def slices(rows: int, height: int) -> list[slice]:
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def budget(max_memory: int | None, device: torch.device) -> int:
    """Bytes that N x N matrices may take: those asked for, or the device's default.

    Where they fill an eighth of a GPU, the eager loss's matrices would fill more than all of it.
    """
    if max_memory is not None:
        return max_memory
    return _device_budget(device) if device.type == "cuda" else DEFAULT_BYTES


@constant_when_traced
def _device_budget(device: torch.device) -> int:
    return max(DEFAULT_BYTES, _memory_of(device) // 8 if torch.cuda.is_available() else 0)


@cache
def _memory_of(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


class Storage(NamedTuple):
    """The matrices (b, N) kept from forward to backward; what is not kept is recomputed in row blocks.

    Attributes:
        gibbs: dtype of the teacher's Gibbs kernel, int16 for codes; None where it is recomputed.
        cosines: whether the student's cosines are kept.
    """

    gibbs: torch.dtype | None
    cosines: bool


def storage(features: Tensor, columns: int, *, has_soft_targets: bool, may_encode: bool, max_memory: int, fused: bool) -> Storage:
    """What fits `max_memory` bytes, for local features (b, D) against so many columns.

    `may_encode`: whether 16 bits can hold the Gibbs kernel. `fused`: whether kernels compute.
    """
    dtype = computing_dtype(features)
    size = features.shape[0] * columns * dtype.itemsize
    both = (2 if has_soft_targets else 1) * size <= max_memory
    if not fused:
        return Storage(dtype if both and has_soft_targets else None, both)
    is_half = features.dtype in products.HALVES
    if not (is_half or products.computes_tiles(features.device, features.dtype)):
        return Storage(dtype if has_soft_targets and size <= max_memory else None, both)
    # A product on half-precision units costs less than writing it to memory and reading it back.
    if not has_soft_targets:
        return Storage(None, False)
    if is_half and may_encode and columns > _limits.codes_from and size <= 2 * max_memory:
        return Storage(torch.int16, False)
    return Storage(dtype if size <= max_memory else None, False)


def computing_dtype(features: Tensor) -> torch.dtype:
    """Dtype of all numbers derived from features: float64 of float64, float32 of all others."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def without_autocast(like: Tensor) -> torch.autocast:
    """Where dtypes are as they are said, on the tensor's device."""
    return torch.autocast("cpu" if like.device.type == "meta" else like.device.type, enabled=False)


def wanted(like: Tensor, wants: bool, dtype: torch.dtype) -> Tensor:
    """Memory for a gradient, or an empty stand-in for one that nobody asked for."""
    return like.new_empty(like.shape if wants else 0, dtype=dtype)


@contextmanager
def advice_when_exhausted(max_memory: int) -> Iterator[None]:
    """What to do about an allocation that fails."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{error}\notter_losses may keep {max_memory / 2**30:.3g} GiB of N x N matrices from forward to backward: with a "
            "smaller max_memory (0: none) it recomputes them in row blocks."
        ) from error
