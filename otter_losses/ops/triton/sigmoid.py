"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient: what a tile gives is summed where it is computed.

Every row of a mean has the same weight, which is known before the loss is: its gradient is made with the value, from the same
tiles, and the backward multiplies.
"""

import torch
from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import over_magnitude
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.feature_gradients import FeatureGradients, GradientBlock
from otter_losses.ops.triton.features import GAIN
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.kernels import sigmoid as kernels
from otter_losses.ops.triton.launch import Tile, launch, tiles
from otter_losses.ops.triton.student import Logits


def forward(problem: SigmoidProblem) -> tuple[Tensor, Tensor]:
    """Losses of the local rows, (b,), and what the backward needs, (b, N), empty if it is recomputed."""
    student = problem.student
    b, n = len(student.image_features), len(student.all_text_features)
    losses = student.logit_scale.new_empty(b)
    kept = student.logit_scale.new_empty((b, n) if problem.keeps_logits else 0)
    logits = Logits.of(student, WHOLE_BATCH)
    blocks = logits.source.row_blocks()
    space = logits.source.space(0 if problem.keeps_logits else blocks[0].stop)
    for rows in blocks:
        block = logits.source.block(rows, kept[rows] if problem.keeps_logits else space)
        torch.sum(_row_parts(problem, block, logits.scale, rows), 0, out=losses[rows])
    return losses, kept


def _row_parts(problem: SigmoidProblem, source: TileSource, scale: Tensor, rows: slice) -> Tensor:
    """Sums of the losses over every tile's rows, (tiles, m)."""
    m, n = source.shape

    def run(tile: Tile) -> Tensor:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        row_parts = problem.logit_bias.new_empty(grid[1], m)
        launch(
            kernels.LOSSES,
            (grid[0] * grid[1],),
            tile,
            **source.arguments(tile),
            scale=scale,
            bias=problem.logit_bias,
            **_groups(problem, rows, slice(None)),
            row_parts=row_parts,
            diagonal=problem.rows.start + rows.start,
            stride=n,
        )
        return row_parts

    name = f"sigmoid_losses {problem.groups is not None} {source.key}"
    return run(fastest(name, source.left, (m, n), source.choices(kernels.LOSSES), run))


def _groups(problem: SigmoidProblem, rows: slice, columns: slice) -> dict[str, object]:
    """What a kernel tells positives by, of a block of the local rows and of columns."""
    ids, offset = problem.groups, problem.rows.start
    if ids is None:
        return {"row_groups": problem.logit_bias, "column_groups": problem.logit_bias, "GROUPS": False}
    return {"row_groups": ids[offset + rows.start : offset + rows.stop], "column_groups": ids[columns], "GROUPS": True}


def backward(
    problem: SigmoidProblem, gradient: Tensor, kept: Tensor, wants_image: bool, wants_text: bool, reduce: Reduction
) -> SigmoidGradients:
    """Gradients for that of the row losses, (b,)."""
    weight, magnitude = over_magnitude(gradient, reduce)
    gradients, _ = _Gradients(problem, weight, magnitude, wants_image, wants_text, reduce).run(kept)
    return gradients


def mean_with_gradients(problem: SigmoidProblem, wants_image: bool, wants_text: bool) -> tuple[Tensor, SigmoidGradients]:
    """The mean of the row losses, 0-D, and its gradients, in float32; of one process."""
    share = torch.full_like(problem.student.logit_scale, 1 / len(problem.student.image_features))
    gradients, losses = _Gradients(problem, None, share, wants_image, wants_text, WHOLE_BATCH).run(None)
    (mean,) = losses
    return mean, gradients


class _Gradients:
    """Of weighted row losses; or of their plain sum, and then with the losses."""

    def __init__(
        self,
        problem: SigmoidProblem,
        weight: Tensor | None,
        magnitude: Tensor,
        wants_image: bool,
        wants_text: bool,
        reduce: Reduction,
    ) -> None:
        self.problem, self.weight, self.magnitude = problem, weight, magnitude
        student = problem.student
        self.logits = Logits.of(student, reduce)
        self.features = FeatureGradients(
            student,
            problem.rows,
            self.logits.split(student, reduce),
            magnitude,
            wants_image,
            wants_text,
            reduce,
            sums=1 if weight is not None else 2,
            dtype=None if weight is not None else torch.float32,
        )

    def run(self, kept: Tensor | None) -> tuple[SigmoidGradients, list[Tensor]]:
        """The gradients, and the sum of the losses, if they were made, times the magnitude."""
        features = self.features
        for block, rows, columns, space in features.walk(self.logits.source, kept if self.problem.keeps_logits else None):
            features.add(self._block(block, rows, columns, space), rows, columns)
        dx, dy, dscale, (dbias, *losses) = features.finish()
        return SigmoidGradients(dx, dy, dscale, dbias), losses

    def _block(self, source: TileSource, rows: slice, columns: slice, space: Tensor) -> GradientBlock:
        """The gradient of a block of logits, into the space, which may be that of the stored block itself."""
        m, n = source.shape
        switches = {"WEIGHTED": self.weight is not None, "LOSSES": self.weight is None, "PLANES": self.features.planes}

        def run(tile: Tile) -> GradientBlock:
            grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
            out = self.features.block(rows, columns, space, grid)
            launch(
                kernels.GRADIENT,
                (grid[0] * grid[1],),
                tile,
                **source.arguments(tile),
                scale=self.logits.scale,
                bias=self.problem.logit_bias,
                **_groups(self.problem, rows, columns),
                weight=self.magnitude if self.weight is None else self.weight[rows],
                g=out.g,
                on_diagonal=out.on_diagonal,
                row_parts=out.row_parts,
                column_residual=out.column_residual,
                diagonal=self.problem.rows.start + rows.start - columns.start,
                stride=n,
                plane=m * n,
                gain=GAIN,
                **switches,
            )
            return out

        in_place = space.data_ptr() == source.left.data_ptr()
        name = f"sigmoid_gradient {switches} {self.problem.groups is not None} {source.key} {in_place}"
        return run(fastest(name, source.left, (m, n), source.choices(kernels.GRADIENT), None if in_place else run))
