"""The statistics of `otter_losses.ops.cross_entropy` and their gradient, each row block read by one kernel."""

from torch import Tensor

from otter_losses.ops.memory import row_blocks
from otter_losses.ops.problem import Gradients, Problem, Saved
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import Statistics, Weights
from otter_losses.ops.triton import sinkhorn
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.feature_gradients import FeatureGradients, GradientBlock
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.gibbs import NO_KERNEL, GibbsKernel
from otter_losses.ops.triton.half import GAIN
from otter_losses.ops.triton.kernels import cross_entropy as kernels
from otter_losses.ops.triton.launch import VECTOR, Tile, launch, tiles


def forward(problem: Problem, reduce: Reduction) -> tuple[Statistics, Saved]:
    """Statistics of the local rows, columns not yet reduced, and what the backward needs."""
    student, soft, storage = problem.student, problem.soft, problem.storage
    b, n = len(student.image_features), len(student.all_text_features)
    statistics = Statistics.unwritten(student.logit_scale, b, n)
    saved = Saved.unwritten(problem, statistics.row_lse, statistics.column_lse)
    gibbs = None
    if soft is not None:
        gibbs = GibbsKernel.build(problem, saved)
        sinkhorn.solve(gibbs, soft.iterations, saved, problem.backend, reduce)
    blocks = row_blocks(b, n, student.image_features.device)
    source = TileSource.of(student.image_features, student.all_text_features)
    space = source.space(0 if storage.cosines else blocks[0].stop)
    for rows in blocks:
        block = source.block(rows, saved.cosines[rows] if storage.cosines else space)
        _add_statistics(problem, block, rows, gibbs=gibbs, saved=saved, statistics=statistics)
    return statistics, saved


def _add_statistics(
    problem: Problem,
    source: TileSource,
    rows: slice,
    *,
    gibbs: GibbsKernel | None,
    saved: Saved,
    statistics: Statistics,
) -> None:
    """Statistics of a block's rows and the image problem's last scalings of them; its share of the columns'."""
    m, n = rows.stop - rows.start, len(problem.student.all_text_features)
    divergence = problem.soft is not None and problem.soft.divergence
    read = NO_KERNEL if gibbs is None else gibbs.switches
    gibbs_block = source.left if gibbs is None else gibbs.block(rows)
    switches = {"SOFT": gibbs is not None, "DIVERGENCE": divergence}

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        row_parts = statistics.row_lse.new_empty(1 if gibbs is None else 4, grid[1], m)
        column_parts = statistics.row_lse.new_empty(1 if gibbs is None else 3, grid[0], n)
        launch(
            kernels.STATISTICS,
            grid,
            tile,
            **source.arguments(tile),
            scale=problem.student.logit_scale,
            gibbs=gibbs_block,
            params=saved.scalars,
            image_columns=saved.column_scalings[0, 0],
            text_rows=saved.row_scalings[0, 1, rows],
            text_columns=saved.column_scalings[0, 1],
            row_parts=row_parts,
            column_parts=column_parts,
            own_logit=statistics.own_logit[rows],
            row_offset=problem.rows_of(rows).start,
            m=m,
            n=n,
            **switches,
            **read,
        )
        return row_parts, column_parts

    name = f"statistics {switches} {read} {source.key}"
    row_parts, column_parts = run(fastest(name, source.left, (m, n), source.choices(kernels.STATISTICS), run))
    row_tile = kernels.MERGE_ROWS.tiles[0]
    launch(
        kernels.MERGE_ROWS,
        (tiles(m, row_tile["BM"]),),
        row_tile,
        parts=row_parts,
        scaling=saved.row_scalings[0, 0, rows],
        lse=statistics.row_lse[rows],
        expected_logit=statistics.row_expected_logit[rows],
        entropy=statistics.row_entropy[rows],
        tiles=row_parts.shape[1],
        m=m,
        **switches,
        KIND=read["KIND"],
    )
    launch(
        kernels.MERGE_COLUMNS,
        (tiles(n, VECTOR["BN"]),),
        VECTOR,
        parts=column_parts,
        lse=statistics.column_lse,
        expected_logit=statistics.column_expected_logit,
        entropy=statistics.column_entropy,
        tiles=column_parts.shape[1],
        n=n,
        **switches,
        FIRST=rows.start == 0,
    )


def backward(
    problem: Problem, weights: Weights, saved: Saved, wants_image: bool, wants_text: bool, reduce: Reduction
) -> Gradients:
    """Gradients for those of the logits' terms."""
    student, storage = problem.student, problem.storage
    factor = student.logit_scale * weights.magnitude
    gradients = FeatureGradients(student, problem.rows, factor, wants_image, wants_text, reduce)
    gibbs = None if problem.soft is None else GibbsKernel.again(problem, saved)
    blocks = row_blocks(len(student.image_features), len(student.all_text_features), student.image_features.device)
    source = TileSource.of(student.image_features, student.all_text_features)
    product_space = source.space(0 if storage.cosines else blocks[0].stop)
    in_place = not (source.computed or storage.cosines or gradients.is_half)
    space = product_space if in_place else gradients.space(blocks[0].stop)
    for rows in blocks:
        block = TileSource.stored(saved.cosines[rows]) if storage.cosines else source.block(rows, product_space)
        g = space[: rows.stop - rows.start]
        written = _logits_gradient(problem, block, rows, g, gibbs=gibbs, saved=saved, weights=weights, gradients=gradients)
        gradients.add(written, rows)
    dx, dy, inner = gradients.finish()
    return Gradients(dx, dy, inner * weights.magnitude)


def _logits_gradient(
    problem: Problem,
    source: TileSource,
    rows: slice,
    g: Tensor,
    *,
    gibbs: GibbsKernel | None,
    saved: Saved,
    weights: Weights,
    gradients: FeatureGradients,
) -> GradientBlock:
    """The gradient of a block of logits, into `g`, which may be the stored block itself."""
    m, n = g.shape
    read = NO_KERNEL if gibbs is None else gibbs.switches
    gibbs_block = source.left if gibbs is None else gibbs.block(rows)
    uniform = weights.row_uniform is not None
    switches = {"SOFT": gibbs is not None, **read, "UNIFORM": uniform, "HALF": gradients.is_half}

    def run(tile: Tile) -> GradientBlock:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        out = gradients.block(rows, g, grid)
        launch(
            kernels.GRADIENT,
            grid,
            tile,
            **source.arguments(tile),
            scale=problem.student.logit_scale,
            gibbs=gibbs_block,
            params=saved.scalars,
            image_rows=saved.row_scalings[0, 0, rows],
            text_rows=saved.row_scalings[0, 1, rows],
            image_columns=saved.column_scalings[0, 0],
            text_columns=saved.column_scalings[0, 1],
            row_lse=saved.row_lse[rows],
            column_lse=saved.column_lse,
            row_lse_weight=weights.row_lse[rows],
            column_lse_weight=weights.column_lse,
            diagonal_weight=weights.diagonal[rows],
            row_plan_weight=weights.row_plan[rows],
            column_plan_weight=weights.column_plan,
            row_uniform=weights.row_lse[rows] if weights.row_uniform is None else weights.row_uniform[rows],
            column_uniform=weights.column_lse if weights.column_uniform is None else weights.column_uniform,
            **out._asdict(),
            row_offset=problem.rows_of(rows).start,
            m=m,
            n=n,
            gain=GAIN,
            **switches,
        )
        return out

    in_place = g.data_ptr() == source.left.data_ptr()
    name = f"logits_gradient {switches} {source.key} {in_place}"
    return run(fastest(name, source.left, (m, n), source.choices(kernels.GRADIENT), None if in_place else run))
