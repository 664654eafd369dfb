"""The statistics of `otter_losses.ops.cross_entropy` and their gradient: what a tile gives is summed where it is computed."""

from torch import Tensor

from otter_losses.ops.problem import CrossEntropies, CrossEntropyGradients, Gradients, Problem, Saved
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import Statistics, reduce_columns
from otter_losses.ops.triton import sinkhorn
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.feature_gradients import FeatureGradients, GradientBlock
from otter_losses.ops.triton.features import GAIN
from otter_losses.ops.triton.gemm import TileSource, described
from otter_losses.ops.triton.gibbs import NO_KERNEL, GibbsKernel
from otter_losses.ops.triton.kernels import cross_entropy as kernels
from otter_losses.ops.triton.kernels.tiles import OCTAVES
from otter_losses.ops.triton.launch import Kernel, Tile, launch, tiles
from otter_losses.ops.triton.losses import PairWeights, cross_entropies
from otter_losses.ops.triton.student import Logits


def forward(problem: Problem, reduce: Reduction) -> tuple[CrossEntropies, Saved]:
    """The local pairs' cross entropies, or their means, and what the backward needs."""
    student, soft, storage = problem.student, problem.soft, problem.storage
    b, n = len(student.image_features), len(student.all_text_features)
    statistics = Statistics.unwritten(student.logit_scale, b, n)
    saved = Saved.unwritten(problem, statistics.row_lse, statistics.column_lse)
    gibbs = None
    if soft is not None:
        gibbs = GibbsKernel.build(problem, saved)
        sinkhorn.solve(gibbs, soft.iterations, saved, problem.backend, reduce)
    logits = Logits.of(student, reduce)
    blocks = gibbs.row_blocks() if gibbs is not None and gibbs.stored is None else logits.source.row_blocks()
    space = logits.source.space(0 if storage.cosines else blocks[0].stop)
    for rows in blocks:
        block = logits.source.block(rows, saved.cosines[rows] if storage.cosines else space)
        _add_statistics(problem, block, logits.scale, rows, gibbs=gibbs, saved=saved, statistics=statistics)
    if reduce.is_distributed:
        statistics.column_lse.div_(OCTAVES.value)
        reduce_columns(statistics, soft, reduce)
        statistics.column_lse.mul_(OCTAVES.value)
    return cross_entropies(statistics, problem, saved, reduce), saved


def _add_statistics(
    problem: Problem,
    source: TileSource,
    scale: Tensor,
    rows: slice,
    *,
    gibbs: GibbsKernel | None,
    saved: Saved,
    statistics: Statistics,
) -> None:
    """Statistics of a block's rows and the image problem's last scalings of them; its share of the columns'."""
    m, n = source.shape
    divergence = problem.soft is not None and problem.soft.divergence
    read = NO_KERNEL if gibbs is None else gibbs.switches
    switches = {"SOFT": gibbs is not None, "DIVERGENCE": divergence}
    gibbs_block = source.left if gibbs is None else gibbs.block(rows)
    is_codes = gibbs is not None and gibbs.is_codes
    kernel = _suited(gibbs, kernels.STATISTICS, kernels.STATISTICS_BESIDE_CODES, kernels.STATISTICS_BESIDE_ANOTHER)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        row_parts = statistics.row_lse.new_empty(1 if gibbs is None else 4, grid[1], m)
        column_parts = statistics.row_lse.new_empty(1 if gibbs is None else 3, grid[0], n)
        launch(
            kernel,
            (grid[0] * grid[1],),
            tile,
            **source.arguments(tile),
            scale=scale,
            gibbs=described(gibbs_block, tile["BM"], tile["BN"]) if is_codes and tile["DESCRIPTORS"] else gibbs_block,
            params=saved.scalars,
            image_columns=saved.column_scalings[0, 0],
            text_rows=saved.row_scalings[0, 1, rows],
            text_columns=saved.column_scalings[0, 1],
            **_kept_apart(gibbs, source, rows),
            row_parts=row_parts,
            column_parts=column_parts,
            own_logit=statistics.own_logit[rows],
            diagonal=problem.rows_of(rows).start,
            stride=n,
            **switches,
            **read,
        )
        return row_parts, column_parts

    name = f"statistics {switches} {read} {source.key}"
    choices = source.choices(kernel, gibbs_block if is_codes else None)
    row_parts, column_parts = run(fastest(name, source.left, (m, n), choices, run))
    tile = kernels.MERGE_STATISTICS.tiles[0]
    launch(
        kernels.MERGE_STATISTICS,
        (tiles(max(m, n), tile["BN"]), 2),
        tile,
        row_parts=row_parts,
        column_parts=column_parts,
        scaling=saved.row_scalings[0, 0, rows],
        row_lse=statistics.row_lse[rows],
        row_expected_logit=statistics.row_expected_logit[rows],
        row_entropy=statistics.row_entropy[rows],
        column_lse=statistics.column_lse,
        column_expected_logit=statistics.column_expected_logit,
        column_entropy=statistics.column_entropy,
        row_tiles=row_parts.shape[1],
        column_tiles=column_parts.shape[1],
        m=m,
        n=n,
        **switches,
        KIND=read["KIND"],
        FIRST=rows.start == 0,
    )


def _kept_apart(gibbs: GibbsKernel | None, source: TileSource, rows: slice, columns: slice = slice(None)) -> dict[str, Tensor]:
    if gibbs is None:
        return {"apart_rows": source.left, "apart_columns": source.left}
    return gibbs.kept_apart(rows, columns)


def _suited(gibbs: GibbsKernel | None, alone: Kernel, beside_codes: Kernel, beside_another: Kernel) -> Kernel:
    """The kernel whose tiles leave room for one of the Gibbs kernel."""
    if gibbs is None:
        return alone
    return beside_codes if gibbs.is_codes else beside_another


def backward(
    problem: Problem, gradient: CrossEntropyGradients, saved: Saved, wants_image: bool, wants_text: bool, reduce: Reduction
) -> Gradients:
    """Gradients for those of the cross entropies."""
    student, storage = problem.student, problem.storage
    weights = PairWeights.of(gradient, problem, saved, reduce)
    logits = Logits.of(student, reduce)
    split = logits.split(student, reduce)
    gradients = FeatureGradients(student, problem.rows, split, weights.magnitude, wants_image, wants_text, reduce)
    rows, columns = gradients.blocks[0]
    gibbs = None if problem.soft is None else GibbsKernel.again(problem, saved, rows.stop * columns.stop)
    for block, rows, columns, space in gradients.walk(logits.source, saved.cosines if storage.cosines else None):
        written = _logits_gradient(
            problem, block, logits.scale, rows, columns, space, gibbs=gibbs, saved=saved, weights=weights, gradients=gradients
        )
        gradients.add(written, rows, columns)
    dx, dy, dscale, _ = gradients.finish()
    return Gradients(dx, dy, dscale)


def _logits_gradient(
    problem: Problem,
    source: TileSource,
    scale: Tensor,
    rows: slice,
    columns: slice,
    space: Tensor,
    *,
    gibbs: GibbsKernel | None,
    saved: Saved,
    weights: PairWeights,
    gradients: FeatureGradients,
) -> GradientBlock:
    """The gradient of a block of logits, into the space, which may be that of the stored block itself."""
    m, n = source.shape
    read = NO_KERNEL if gibbs is None else gibbs.switches
    gibbs_block = source.left if gibbs is None else gibbs.block(rows, columns)
    is_codes = gibbs is not None and gibbs.is_codes
    hard, whole_rows = problem.hard, problem.rows_of(rows)
    switches = {"SOFT": gibbs is not None, **read, "UNIFORM": hard.uniform is not None, "GROUPS": hard.groups is not None}
    switches["PLANES"] = gradients.planes
    on_pair, uniform_rows, uniform_columns = weights.of_hard(whole_rows, columns)
    row_groups, column_groups = (on_pair, on_pair) if hard.groups is None else (hard.groups[whole_rows], hard.groups[columns])
    kernel = _suited(gibbs, kernels.GRADIENT, kernels.GRADIENT_BESIDE_CODES, kernels.GRADIENT_BESIDE_ANOTHER)

    def run(tile: Tile) -> GradientBlock:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        out = gradients.block(rows, columns, space, grid)
        launch(
            kernel,
            (grid[0] * grid[1],),
            tile,
            **source.arguments(tile),
            scale=scale,
            gibbs=described(gibbs_block, tile["BM"], tile["BN"]) if is_codes and tile["DESCRIPTORS"] else gibbs_block,
            params=saved.scalars,
            image_rows=saved.row_scalings[0, 0, rows],
            text_rows=saved.row_scalings[0, 1, rows],
            image_columns=saved.column_scalings[0, 0, columns],
            text_columns=saved.column_scalings[0, 1, columns],
            row_lse=saved.row_lse[rows],
            column_lse=saved.column_lse[columns],
            given_rows=weights.given[0, whole_rows],
            soft_rows=weights.soft[0, whole_rows],
            given_columns=weights.given[1, columns],
            soft_columns=weights.soft[1, columns],
            on_pair=on_pair,
            uniform_rows=uniform_rows,
            uniform_columns=uniform_columns,
            row_groups=row_groups,
            column_groups=column_groups,
            **_kept_apart(gibbs, source, rows, columns),
            g=out.g,
            on_diagonal=out.on_diagonal,
            row_residual=out.row_parts,
            column_residual=out.column_residual,
            diagonal=whole_rows.start - columns.start,
            stride=n if gibbs is None else gibbs_block.stride(0),
            plane=m * n,
            gain=GAIN,
            **switches,
        )
        return out

    in_place = space.data_ptr() == source.left.data_ptr()
    name = f"logits_gradient {switches} {source.key} {in_place}"
    choices = source.choices(kernel, gibbs_block if is_codes else None)
    return run(fastest(name, source.left, (m, n), choices, None if in_place else run))
