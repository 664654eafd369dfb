"""The plain training loop that others are measured by."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from otter_losses import EMATeacher

Batch = tuple[Tensor, Tensor]


def train(
    model: nn.Module, loss: Callable[..., Tensor], steps: Sequence[Sequence[Batch]]
) -> tuple[dict[str, Tensor], list[float]]:
    """The model's and its teacher's numbers after steps on the mean loss of a few batches each; and every batch's loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    teacher = EMATeacher(model)
    teacher.follow(model, optimizer)
    losses = []
    for batches in steps:
        optimizer.zero_grad()
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
                x, y, scale, bias = model(*batch)
                v, t, *_ = teacher(*batch)
                value = loss(x, y, scale, bias, v, t)
                torch.autograd.backward(value / len(batches))
            losses.append(value.item())
        optimizer.step()
    return numbers(model, teacher), losses


def numbers(model: nn.Module, teacher: EMATeacher) -> dict[str, Tensor]:
    """Everything that a model and its teacher save, under names that do not depend on wrappers."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {
        f"{owner} {name}": tensor.detach().clone()
        for owner, module in (("model", inner), ("teacher", teacher))
        for name, tensor in module.state_dict().items()
    }
