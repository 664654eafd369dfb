"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient in eager torch; ``-l z`` is what is kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops.memory import computing_dtype, row_blocks, wanted
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem
from otter_losses.ops.reduction import Reduction


class _NegatedLogits:
    """``-l z`` block by block: large where the answer to "are i and j a pair?" is wrong."""

    def __init__(self, problem: SigmoidProblem) -> None:
        student, dtype = problem.student, computing_dtype(problem.student.image_features)
        self.x, self.y = student.image_features.to(dtype), student.all_text_features.to(dtype)
        self.scale, self.bias, self.row_offset = student.logit_scale, problem.logit_bias, problem.rows.start

    def row_blocks(self) -> list[slice]:
        return row_blocks(len(self.x), len(self.y), self.x.device)

    def block(self, rows: slice) -> Tensor:
        z = (self.x[rows] @ self.y.T).mul_(self.scale).add_(self.bias)
        self.negate_diagonal(z, rows)
        return z

    def negate_diagonal(self, block: Tensor, rows: slice) -> None:
        block.diagonal(self.row_offset + rows.start).neg_()


def forward(problem: SigmoidProblem) -> tuple[Tensor, Tensor]:
    """Losses of the local rows, (b,), and what the backward needs, (b, N), empty if it is recomputed."""
    logits = _NegatedLogits(problem)
    losses = logits.x.new_empty(len(logits.x))
    kept = logits.block(slice(0, len(logits.x))) if problem.keeps_logits else logits.x.new_empty(0)
    for rows in logits.row_blocks():
        block = kept[rows] if problem.keeps_logits else logits.block(rows)
        losses[rows] = -F.logsigmoid(-block).sum(1)
    return losses, kept


def backward(
    problem: SigmoidProblem, gradient: Tensor, kept: Tensor, wants_image: bool, wants_text: bool, reduce: Reduction
) -> SigmoidGradients:
    """Gradients for that of the row losses, (b,)."""
    logits = _NegatedLogits(problem)
    x, y = logits.x, logits.y
    dx, dy, dbias = wanted(x, wants_image, x.dtype), wanted(y, wants_text, y.dtype), x.new_zeros(())
    for rows in logits.row_blocks():
        block = kept[rows] if problem.keeps_logits else logits.block(rows)
        g = block.sigmoid().mul_(gradient[rows, None])
        logits.negate_diagonal(g, rows)
        dbias += g.sum()
        if wants_image:
            torch.mm(g, y, out=dx[rows])
        if wants_text:
            dy.addmm_(g.T, x[rows], beta=min(rows.start, 1))  # the first block overwrites
    dscale = ((x * dx) if wants_image else (y * dy)).sum()
    dy = reduce.reduce_scatter(dy.mul_(logits.scale)) if wants_text else dy
    dtype = problem.student.gradient_dtype
    return SigmoidGradients(dx.mul_(logits.scale).to(dtype), dy.to(dtype), dscale, dbias)
