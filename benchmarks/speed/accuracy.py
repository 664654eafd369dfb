"""How far a loss's gradient is from float64's on the same features, so that speed is not bought unseen."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.speed.contenders import Batch, Value, eager_info_nce, eager_siglip, gradients, released_otter
from otter_losses.ops import reference

Oracle = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _label_smoothing(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    share = 0.1 / (len(x) - 1)
    targets = torch.full((len(x), len(x)), share, dtype=x.dtype, device=x.device).fill_diagonal_(0.9)
    return reference.soft_target_loss(x, y, s, targets, targets)


def _distillation(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    given = torch.eye(len(x), dtype=x.dtype, device=x.device)
    p, q = ((given + plan) / 2 for plan in reference.distillation_targets(v, t, float(s.detach())))
    return reference.soft_target_loss(x, y, s, p, q)


ORACLES: dict[str, Oracle] = {
    "InfoNCE": lambda x, y, s, v, t: eager_info_nce(x, y, s),
    "SigLIP": lambda x, y, s, v, t: eager_siglip(x, y, s),
    "OTTER": reference.otter_loss,
    "OTTER, own teacher": lambda x, y, s, v, t: reference.otter_loss(x, y, s, x.detach(), y.detach()),
    "released": released_otter,
    "label smoothing": _label_smoothing,
    "distillation": _distillation,
}
"""Losses by family, with the options that the contenders have."""


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
