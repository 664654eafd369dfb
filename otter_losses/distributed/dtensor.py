"""Parameters that `fully_shard` leaves as DTensors, where a loss needs their numbers."""

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, as the parameters of a model under `fully_shard` are outside its forward."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


class _FullTensor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        full: Tensor = tensor.full_tensor()
        return full

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from torch.distributed.tensor import DTensor, Partial

        shares = DTensor.from_local(gradient / ctx.mesh.size(), ctx.mesh, [Partial()] * ctx.mesh.ndim)
        return shares.redistribute(placements=ctx.placements)


def full_tensor(value: Any) -> Any:
    """A DTensor's numbers on every rank, anything else as it is; the gradient is the mean over the ranks, as FSDP's is."""
    return _FullTensor.apply(value) if is_sharded(value) else value  # type: ignore[no-untyped-call]
