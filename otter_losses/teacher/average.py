"""The average of a tensor: in which precision, of which part, and where infinities are."""

import math
from typing import Any

import torch
from torch import Tensor

from otter_losses.checks import may_read
from otter_losses.distributed.dtensor import is_sharded


def is_averaged(tensor: Tensor) -> bool:
    """Whether it has numbers to average; integers, masks, sparse and quantized tensors are copied."""
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout == torch.strided


def is_half(tensor: Tensor) -> bool:
    """Whether small steps would be rounded away, as in float16 and bfloat16."""
    return is_averaged(tensor) and tensor.dtype.itemsize < (8 if tensor.is_complex() else 4)


def in_single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; another tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def beside(average: Tensor, current: Any) -> Tensor:
    """The part of the current tensor that this rank has of the average."""
    if not is_sharded(current):
        return current  # type: ignore[no-any-return]
    if not is_sharded(average):
        return current.full_tensor()  # type: ignore[no-any-return]
    place: Any = average
    return local(current.redistribute(place.device_mesh, place.placements))


def precise(average: Tensor, exact: Tensor | None) -> Tensor:
    """This rank's numbers, in float32 at least: the exact ones where they round to the average, which may have been set since."""
    ours = local(average)
    if not is_half(ours):
        return ours
    rounded = in_single(ours)
    return rounded if exact is None else torch.where(in_single(exact.to(ours.dtype)) == rounded, exact, rounded)


def mix(average: Tensor, current: Tensor, weight: Tensor) -> Tensor:
    """``(1 - weight) average + weight current``; the current number where the average or itself is not finite."""
    if average.is_complex():
        ours, theirs = (torch.view_as_real(each.resolve_conj()) for each in (average, current))
        return torch.view_as_complex(mix(ours, theirs, weight))
    mixed = torch.lerp(average, current, weight)
    if may_read(mixed) and mixed.numel() and all(math.isfinite(bound) for bound in torch.aminmax(mixed)):
        return mixed
    distant = (1 - weight) * average + weight * current  # numbers whose difference overflows
    return torch.where(mixed.isfinite(), mixed, torch.where(average.isfinite(), distant, current))
