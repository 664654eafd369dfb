"""What the losses are compared with: the loss people run today, the released arithmetic, and a transport library."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.batch import Batch, Value
from benchmarks.speed import rivals
from otter_losses import OTTERLoss
from otter_losses.functional import otter_targets
from otter_losses.losses.registry import LOSSES
from otter_losses.ops import reference

_INFO_NCE, _SIGLIP = LOSSES["info_nce"].oracle, LOSSES["siglip"].oracle


def eager_info_nce(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE as open_clip's ClipLoss computes it on one device: two logit matrices, two cross entropies."""
    return _INFO_NCE(x, y, scale, x, y)


def eager_siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """SigLIP as open_clip's SigLipLoss computes it on one device."""
    return _SIGLIP(x, y, scale, x, y)


def released_otter(x: Tensor, y: Tensor, scale: Tensor, v: Tensor, t: Tensor) -> Tensor:
    contrastive, distill = reference.released_loss(x, y, scale, v, t)
    return contrastive + distill


def _product(v: Tensor, t: Tensor) -> Tensor:
    return torch.cat((v, t), 1) @ torch.cat((v + t, t), 1).T


TARGETS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "released targets": reference.released_targets,
    "otter_targets": otter_targets,
    "one N x N x 2D product": _product,
    "POT targets": rivals.pot_targets,
}
"""Both targets of a teacher's features, N x N matrices written out; and the one matrix product that is the floor of it."""


def sinkhorn_loop(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """What `sinkhorn_knopp` computes for uniform marginals, as one writes it down."""
    logits = scores / epsilon
    rows, columns = logits.new_zeros(scores.shape[:-1]), logits.new_zeros(*scores.shape[:-2], scores.shape[-1])
    for _ in range(iterations):
        rows = -math.log(scores.shape[-2]) - (logits + columns.unsqueeze(-2)).logsumexp(-1)
        columns = -math.log(scores.shape[-1]) - (logits + rows.unsqueeze(-1)).logsumexp(-2)
    return (logits + rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp()


def of_eager(batch: Batch, loss: Callable[..., Tensor], teacher: bool = False) -> Value:
    """A plain function of the features, the scale and, where it has one, the teacher's features."""
    arguments = (batch.x, batch.y, batch.scale, *((batch.v, batch.t) if teacher else ()))

    def value() -> Tensor:
        with batch.autocast():
            return loss(*arguments)

    return value


def of_library(batch: Batch, loss: nn.Module, teacher: bool = False) -> Value:
    given = {"dist_image_features": batch.v, "dist_text_features": batch.t} if teacher else {}

    def value() -> Tensor:
        found = loss(batch.x, batch.y, batch.scale, **given)
        assert isinstance(found, Tensor)
        return found

    return batch.inside(value)


def gradients(batch: Batch, value: Value) -> tuple[Tensor | None, ...]:
    """One training step's loss, forward and backward: the gradients of both features and of the scale."""
    return torch.autograd.grad(value(), (batch.x, batch.y, batch.scale), allow_unused=True)


def losses(batch: Batch) -> dict[str, Callable[[], object]]:
    """One training step's loss, forward and backward, for each contender of `benchmarks.speed`."""
    values: dict[str, Value] = {
        "eager InfoNCE": of_eager(batch, eager_info_nce),
        "eager SigLIP": of_eager(batch, eager_siglip),
        "released OTTER": of_eager(batch, released_otter, teacher=True),
        **{row.module.__name__: of_library(batch, row.module(), row.uses_teacher) for row in LOSSES.values()},
        "OTTERLoss, own teacher": of_library(batch, OTTERLoss()),
    }

    def step(value: Value) -> Callable[[], object]:
        return lambda: gradients(batch, value)

    return {name: step(value) for name, value in values.items()}


def targets(batch: Batch, with_pot: bool) -> dict[str, Callable[[], object]]:
    """`TARGETS` of a batch."""
    chosen = {name: function for name, function in TARGETS.items() if with_pot or not name.startswith("POT")}
    return {name: partial(function, batch.v, batch.t) for name, function in chosen.items()}
