"""A loss that treats rows, columns, given and soft targets each in its own way, as no loss of the package does yet."""

import math
from typing import Any

import torch
from torch import Tensor

from otter_losses.losses.base import PairLoss
from otter_losses.losses.batch import PairBatch, Parts
from otter_losses.ops import reference
from otter_losses.ops.cross_entropy import cross_entropy
from otter_losses.ops.targets import HardTargets, SoftTargets

ON_DIAGONAL, SHARED, Q = 0.7, 0.3, 0.4
EPSILON, ROUNDS = 0.15, 3


def combine(given: Tensor, soft: Tensor) -> Tensor:
    """Cross entropies of rows and columns, (2, b) each, to the loss of every pair, (b,); no two weigh alike."""
    robust = -torch.expm1(-Q * given[0]) / Q
    return robust * (1 + 0.5 * given[1]) + 0.2 * soft[0].square() + 0.1 * soft[1]


def directions_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    dist_image_features: Tensor | None = None,
    dist_text_features: Tensor | None = None,
    output_dict: bool = False,
    **execution: Any,
) -> Tensor | Parts:
    for ignored in ("dist_logit_scale", "dist_logit_bias"):
        execution.pop(ignored, None)
    batch = PairBatch.prepare(image_features, text_features, logit_scale, logit_bias, **execution)
    v, t = batch.teacher(dist_image_features, dist_text_features, batch.shard)
    soft = SoftTargets(v, t, batch.constant(1 / EPSILON), 1.0, 1.0, math.inf, logit_range=6 / EPSILON, iterations=ROUNDS)
    targets = HardTargets(ON_DIAGONAL, SHARED / batch.size)
    losses = cross_entropy(batch.student, targets, soft, batch.execution)
    return batch.result(output_dict, contrastive_loss=combine(losses.given, losses.soft))


class DirectionsLoss(PairLoss):
    function = staticmethod(directions_loss)


def oracle(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The same from whole matrices, differentiated by autograd."""
    n, logits = len(x), s * x @ y.T
    hard = ON_DIAGONAL * torch.eye(n, dtype=x.dtype) + SHARED / n
    plans = reference.otter_targets(v, t, EPSILON, ROUNDS)
    losses = [
        torch.stack([each.logsumexp(1) - (each * targets).sum(1) for each, targets in pairs])
        for pairs in (((logits, hard), (logits.T, hard)), ((logits, plans[0]), (logits.T, plans[1])))
    ]
    return combine(losses[0], losses[1]).mean()
