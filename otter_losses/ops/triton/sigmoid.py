"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient, each row block read by one kernel; cosines are kept."""

import torch
from torch import Tensor

from otter_losses.ops.memory import row_blocks
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import over_magnitude
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.feature_gradients import FeatureGradients, GradientBlock
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.half import GAIN
from otter_losses.ops.triton.kernels import sigmoid as kernels
from otter_losses.ops.triton.launch import Tile, launch, tiles


def forward(problem: SigmoidProblem) -> tuple[Tensor, Tensor]:
    """Losses of the local rows, (b,), and what the backward needs, (b, N), empty if it is recomputed."""
    student = problem.student
    b, n = len(student.image_features), len(student.all_text_features)
    blocks = row_blocks(b, n, student.image_features.device)
    losses = student.logit_scale.new_empty(b)
    kept = student.logit_scale.new_empty((b, n) if problem.keeps_logits else 0)
    source = TileSource.of(student.image_features, student.all_text_features)
    space = source.space(0 if problem.keeps_logits else blocks[0].stop)
    for rows in blocks:
        block = source.block(rows, kept[rows] if problem.keeps_logits else space)
        torch.sum(_row_parts(problem, block, rows), 0, out=losses[rows])
    return losses, kept


def _row_parts(problem: SigmoidProblem, source: TileSource, rows: slice) -> Tensor:
    """Sums of the losses over every tile's rows, (tiles, m)."""
    m, n = rows.stop - rows.start, len(problem.student.all_text_features)

    def run(tile: Tile) -> Tensor:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        row_parts = problem.logit_bias.new_empty(grid[1], m)
        launch(
            kernels.LOSSES,
            grid,
            tile,
            **source.arguments(tile),
            scale=problem.student.logit_scale,
            bias=problem.logit_bias,
            row_parts=row_parts,
            row_offset=problem.rows.start + rows.start,
            m=m,
            n=n,
        )
        return row_parts

    name = f"sigmoid_losses {source.key}"
    return run(fastest(name, source.left, (m, n), source.choices(kernels.LOSSES), run))


def backward(
    problem: SigmoidProblem, gradient: Tensor, kept: Tensor, wants_image: bool, wants_text: bool, reduce: Reduction
) -> SigmoidGradients:
    """Gradients for that of the row losses, (b,)."""
    student = problem.student
    gradient, magnitude = over_magnitude(gradient, reduce)
    gradients = FeatureGradients(student, problem.rows, student.logit_scale * magnitude, wants_image, wants_text, reduce)
    blocks = row_blocks(len(student.image_features), len(student.all_text_features), student.image_features.device)
    source = TileSource.of(student.image_features, student.all_text_features)
    product_space = source.space(0 if problem.keeps_logits else blocks[0].stop)
    in_place = not (source.computed or problem.keeps_logits or gradients.is_half)
    space = product_space if in_place else gradients.space(blocks[0].stop)
    dbias = gradient.new_zeros(())
    for rows in blocks:
        block = TileSource.stored(kept[rows]) if problem.keeps_logits else source.block(rows, product_space)
        g = space[: rows.stop - rows.start]
        out, row_parts = _logits_gradient(problem, block, rows, gradient[rows], gradients, g)
        dbias = dbias + row_parts.sum()
        gradients.add(out, rows)
    dx, dy, inner = gradients.finish()
    return SigmoidGradients(dx, dy, inner * magnitude, dbias * magnitude)


def _logits_gradient(
    problem: SigmoidProblem, source: TileSource, rows: slice, weight: Tensor, gradients: FeatureGradients, g: Tensor
) -> tuple[GradientBlock, Tensor]:
    """The gradient of a block of logits, into `g`, which may be the stored block; its sums over tiles' rows, (tiles, m)."""
    m, n = g.shape

    def run(tile: Tile) -> tuple[GradientBlock, Tensor]:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        out, row_parts = gradients.block(rows, g, grid), weight.new_empty(grid[1], m)
        launch(
            kernels.GRADIENT,
            grid,
            tile,
            **source.arguments(tile),
            scale=problem.student.logit_scale,
            bias=problem.logit_bias,
            weight=weight,
            **out._asdict(),
            row_parts=row_parts,
            row_offset=problem.rows.start + rows.start,
            m=m,
            n=n,
            gain=GAIN,
            HALF=gradients.is_half,
        )
        return out, row_parts

    in_place = g.data_ptr() == source.left.data_ptr()
    name = f"sigmoid_gradient {gradients.is_half} {source.key} {in_place}"
    return run(fastest(name, source.left, (m, n), source.choices(kernels.GRADIENT), None if in_place else run))
