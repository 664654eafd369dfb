"""Gathering the batch of all ranks, with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses import checks


def check_world(rank: int, world_size: int) -> None:
    """The rank and world size a loss was built with are those of the default process group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"world_size is {world_size} but torch.distributed is not initialised; call torch.distributed.init_process_group "
            "first, or build the loss with world_size=1."
        )
    if (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
        raise ValueError(
            f"rank={rank}, world_size={world_size} were given, but this process is rank {dist.get_rank()} of "
            f"{dist.get_world_size()}; pass rank=torch.distributed.get_rank(), world_size=torch.distributed.get_world_size()."
        )


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_alike(tensors: dict[str, Tensor | None]) -> None:
    """Every rank brings the same tensors, shapes and dtypes; gathering others would end the process or mix up rows.

    Comparing them costs one small collective and a look at its result. On a GPU, which the look would stop, it is made in debug
    mode only (`set_debug`, on all ranks).
    """
    present = [tensor for tensor in tensors.values() if tensor is not None]
    if not checks.may_read(present[0]):
        return
    # One row a tensor: dimensions, rows, width, dtype; zeros for one that is not there.
    mine = torch.zeros(len(tensors), 4, dtype=torch.int64)
    for row, tensor in zip(mine, tensors.values(), strict=True):
        if tensor is not None:
            shape = (*tensor.shape, 0, 0)[:2]
            row.copy_(torch.tensor([tensor.dim(), *shape, DTYPES.index(tensor.dtype)]))
    mine = mine.to(present[0].device)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    for rank, theirs in enumerate(everyone):
        for name, first, other in zip(tensors, everyone[0].tolist(), theirs.tolist(), strict=True):
            if first != other:
                raise ValueError(
                    f"{name} is {_describe(first)} on rank 0 and {_describe(other)} on rank {rank}; need the same on every rank. "
                    "Use drop_last=True in the data loader, and the same model and precision everywhere."
                )


def _describe(row: list[int]) -> str:
    dimensions, rows, width, dtype = row
    return f"{DTYPES[dtype]} of shape {(rows, width)[:dimensions]}" if dimensions else "None"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(tensor: Tensor) -> Tensor:
    """Rows (b, ...) of this rank -> rows (W b, ...) of all ranks in rank order; every rank must bring b rows.

    The gradient is summed over ranks. When every rank then computes the loss of the whole batch, DDP's mean over ranks is exactly
    the gradient that one process with the whole batch would have.
    """
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered
