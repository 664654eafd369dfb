"""How far a loss's gradient is from float64's on the same features, so that speed is not bought unseen."""

import torch
from torch import Tensor

from benchmarks.batch import Batch, Value
from benchmarks.speed.contenders import gradients, released_otter
from otter_losses.losses.registry import LOSSES, Oracle
from otter_losses.ops import reference

ORACLES: dict[str, Oracle] = {
    **{row.name: row.oracle for row in LOSSES.values()},
    "otter, own teacher": lambda x, y, s, v, t: reference.otter_loss(x, y, s, x.detach(), y.detach()),
    "released": released_otter,
}
"""Every loss by its name in the registry, and what else the contenders compute."""


def exact(batch: Batch, family: str) -> tuple[Tensor, Tensor]:
    """Float64 gradients of both features, on the batch's device."""
    x, y, s, v, t = (
        tensor.detach().double().requires_grad_(tensor.requires_grad)
        for tensor in (batch.x, batch.y, batch.scale, batch.v, batch.t)
    )
    dx, dy = torch.autograd.grad(ORACLES[family](x, y, s, v, t), (x, y))
    return dx, dy


def distance(found: tuple[Tensor | None, ...], truth: tuple[Tensor, Tensor]) -> float:
    """The error of both gradients together, in norm, relative."""
    squares = [
        (truth_ if found_ is None else found_.double() - truth_).square().sum()
        for found_, truth_ in zip(found, truth, strict=False)
    ]
    return float((sum(squares) / sum(truth_.square().sum() for truth_ in truth)) ** 0.5)


def error(batch: Batch, value: Value, family: str) -> dict[str, float]:
    """Of the returned gradients; and of exact ones rounded to the features' dtype, which no loss that returns it goes below."""
    truth = exact(batch, family)
    rounded = tuple(gradient.to(batch.x.dtype) for gradient in truth)
    return {"gradient_error": distance(gradients(batch, value), truth), "rounding": distance(rounded, truth)}
