"""What the losses are compared with: the loss people run today, the released arithmetic, and a transport library."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_losses import InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
from otter_losses.functional import otter_targets
from otter_losses.ops import reference

Value = Callable[[], Tensor]
"""Computes a loss, ready to be differentiated."""


class Batch:
    """Student features with gradient, a teacher's without, and a learned scale: N unit vectors of width D that form clusters.

    The features are of the dtype asked for; the scale, as it is learned, in float32.
    """

    def __init__(self, pairs: int, width: int, device: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        centres = torch.randn(max(pairs // 16, 1), width, generator=generator, device=device)

        def features() -> Tensor:
            noise = torch.randn(pairs, width, generator=generator, device=device)
            return F.normalize(centres[torch.arange(pairs, device=device) % len(centres)] + noise, dim=-1).to(dtype)

        self.x, self.y = features().requires_grad_(), features().requires_grad_()
        self.v, self.t = features(), features()
        self.scale = torch.tensor(14.3, device=device, requires_grad=True)

    def autocast(self) -> AbstractContextManager[None]:
        """How eager losses are run on half-precision features: products in that dtype, exponentials and sums in float32."""
        return torch.autocast(self.x.device.type, self.x.dtype, enabled=self.x.dtype != torch.float32)


def eager_info_nce(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE as open_clip's ClipLoss computes it on one device: two logit matrices, two cross entropies."""
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(scale * x @ y.T, labels) + F.cross_entropy(scale * y @ x.T, labels)) / 2


def eager_siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """SigLIP as open_clip's SigLipLoss computes it on one device."""
    labels = 2 * torch.eye(len(x), dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(labels * (scale * x @ y.T)).sum() / len(x)


def released_otter(x: Tensor, y: Tensor, scale: Tensor, v: Tensor, t: Tensor) -> Tensor:
    contrastive, distill = reference.released_loss(x, y, scale, v, t)
    return contrastive + distill


def pot_targets(v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both targets by POT's `ot.sinkhorn`, five iterations of each problem on the torch backend."""
    import ot

    n = len(v)
    weights = torch.full((n,), 1 / n, dtype=v.dtype, device=v.device)
    scores = reference.similarity(v, t).fill_diagonal_(-math.inf)
    plans = (
        ot.sinkhorn(weights, weights, -cost, 0.15, numItermax=5, stopThr=0, warn=False, method="sinkhorn")
        for cost in (scores.T, scores)
    )
    # POT matches columns first and rows last; transposing both the problem and the plan gives rows first.
    image_to_text, text_to_image = (plan.T for plan in plans)
    return image_to_text / image_to_text.sum(1, keepdim=True), text_to_image / text_to_image.sum(1, keepdim=True)


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

    return value


def gradients(batch: Batch, value: Value) -> tuple[Tensor | None, ...]:
    """One training step's loss, forward and backward: the gradients of both features and of the scale."""
    return torch.autograd.grad(value(), (batch.x, batch.y, batch.scale), allow_unused=True)


def losses(batch: Batch) -> dict[str, Callable[[], object]]:
    """One training step's loss, forward and backward, for each contender of `benchmarks.speed`."""
    values: dict[str, Value] = {
        "eager InfoNCE": of_eager(batch, eager_info_nce),
        "InfoNCELoss": of_library(batch, InfoNCELoss()),
        "LabelSmoothingLoss": of_library(batch, LabelSmoothingLoss()),
        "released OTTER": of_eager(batch, released_otter, teacher=True),
        "OTTERLoss": of_library(batch, OTTERLoss(), teacher=True),
        "OTTERLoss, own teacher": of_library(batch, OTTERLoss()),
        "eager SigLIP": of_eager(batch, eager_siglip),
        "SigLIPLoss": of_library(batch, SigLIPLoss()),
    }

    def step(value: Value) -> Callable[[], object]:
        return lambda: gradients(batch, value)

    return {name: step(value) for name, value in values.items()}


def targets(batch: Batch, with_pot: bool) -> dict[str, Callable[[], object]]:
    """Both targets from features, N x N matrices written out, and the one matrix product that is the floor of it."""
    v, t = batch.v, batch.t
    found: dict[str, Callable[[], object]] = {
        "released targets": lambda: reference.released_targets(v, t),
        "otter_targets": lambda: otter_targets(v, t),
        "one N x N x 2D product": lambda: torch.cat((v, t), 1) @ torch.cat((v + t, t), 1).T,
    }
    if with_pot:
        found["POT targets"] = lambda: pot_targets(v, t)
    return found
