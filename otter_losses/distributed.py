"""Gathering the batch of all ranks, with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
