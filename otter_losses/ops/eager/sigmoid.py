"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient in eager torch; ``-l z`` is what is kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops.eager.feature_gradients import FeatureGradients
from otter_losses.ops.groups import negate_own
from otter_losses.ops.memory import eager_blocks
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem
from otter_losses.ops.products import as_multiplied, product
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import over_magnitude

EXACT_FROM = 40.0
"""From there on log(1 + exp z) is z, to the last digit of float64."""


class _NegatedLogits:
    """``-l z`` block by block: large where the answer to "are i and j a pair?" is wrong."""

    def __init__(self, problem: SigmoidProblem) -> None:
        student = problem.student
        self.x, self.y = as_multiplied(student.image_features), as_multiplied(student.all_text_features)
        self.scale, self.bias = student.logit_scale, problem.logit_bias
        self.row_offset, self.groups = problem.rows.start, problem.groups

    def row_blocks(self) -> list[slice]:
        return eager_blocks(len(self.x), len(self.y), self.x.device)

    def block(self, rows: slice) -> Tensor:
        x = self.x[rows]
        z = product(x, self.y.T, out=self.scale.new_empty(len(x), len(self.y)))
        torch.addcmul(self.bias, z, self.scale, out=z)
        self.negate_positives(z, rows)
        return z

    def negate_positives(self, block: Tensor, rows: slice) -> None:
        first = self.row_offset + rows.start
        if self.groups is None:
            block.diagonal(first).neg_()
        else:
            for part in eager_blocks(block.shape[0], block.shape[1], block.device):
                negate_own(block[part], self.groups, slice(first + part.start, first + part.stop))


def forward(problem: SigmoidProblem) -> tuple[Tensor, Tensor]:
    """Losses of the local rows, (b,), and what the backward needs, (b, N), empty if it is recomputed."""
    logits = _NegatedLogits(problem)
    losses = logits.scale.new_empty(len(logits.x))
    kept = logits.block(slice(0, len(logits.x))) if problem.keeps_logits else logits.scale.new_empty(0)
    for rows in logits.row_blocks():
        block = kept[rows] if problem.keeps_logits else logits.block(rows)
        losses[rows] = F.softplus(block, threshold=EXACT_FROM).sum(1)
    return losses, kept


def backward(
    problem: SigmoidProblem, gradient: Tensor, kept: Tensor, wants_image: bool, wants_text: bool, reduce: Reduction
) -> SigmoidGradients:
    """Gradients for that of the row losses, (b,)."""
    logits = _NegatedLogits(problem)
    gradient, magnitude = over_magnitude(gradient)  # what a loss is scaled by could leave float16
    gradients = FeatureGradients(problem.student, wants_image, wants_text)
    dbias = logits.scale.new_zeros(())
    for rows in logits.row_blocks():
        block = kept[rows] if problem.keeps_logits else logits.block(rows)
        g = block.sigmoid().mul_(gradient[rows, None])
        logits.negate_positives(g, rows)
        dbias += g.sum()
        gradients.add(g, rows)
    dx, dy, inner = gradients.finish(logits.scale * magnitude, reduce)
    return SigmoidGradients(dx, dy, inner * magnitude, dbias * magnitude)
