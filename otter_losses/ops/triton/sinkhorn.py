"""Both transport problems of a batch, as in `ops.eager.sinkhorn`, in sweeps of Triton kernels or in one launch of CUDA C++."""

from dataclasses import replace

import torch
from torch import Tensor

from otter_losses.ops.problem import Saved, Scalar
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.gibbs import GibbsKernel
from otter_losses.ops.triton.kernels import sinkhorn as kernels
from otter_losses.ops.triton.kernels.tiles import CODES, LOGARITHMIC
from otter_losses.ops.triton.launch import VECTOR, Tile, launch, tiles

PROGRAMS = 512
"""That a GPU should have to work on; a narrow matrix is cut into segments of rows until there are so many."""

Columns = tuple[Tensor, Tile]
"""Column sums (segments, 2, N), and the tile that all blocks add to them with."""


def solve(gibbs: GibbsKernel, iterations: int, saved: Saved, backend: str, reduce: Reduction) -> None:
    """Store the kernel, solve, and write all scalings but the image problem's rows, which the statistics write.

    In one launch where the backend is "cuda", or "auto" and it can be.
    """
    if backend != "triton":
        obstacle = _obstacle_to_one_launch(gibbs, reduce)
        if obstacle is None:
            _solve_on_chip(gibbs, iterations, saved)
            return
        if backend == "cuda":
            raise RuntimeError(
                f"backend='cuda' solves the transport on the chip, in one launch: {obstacle} Use backend='triton'."
            )
    nothing = 0.0 if gibbs.is_logarithmic else 1.0
    if iterations == 0:
        saved.row_scalings.fill_(nothing)
    saved.column_scalings[0, 0].fill_(nothing)
    _update_scalings(gibbs, _open(gibbs), saved.column_scalings[0, 1], reduce)
    for _ in range(iterations):
        sums: Columns | None = None
        for rows, block in gibbs.sweep():
            _match_rows(gibbs, block, rows, saved)
            sums = _column_sums(gibbs, block, rows, saved, sums)
        assert sums is not None
        _update_scalings(gibbs, sums[0], saved.column_scalings, reduce)


def _obstacle_to_one_launch(gibbs: GibbsKernel, reduce: Reduction) -> str | None:
    """Why CUDA C++ cannot solve it in one launch."""
    from otter_losses.ops.cuda import sinkhorn as cuda

    if reduce.is_distributed:
        return "it is for one process."
    if gibbs.is_logarithmic:
        return "it takes plain numbers, which this epsilon is too small for."
    if gibbs.kind == CODES.value or gibbs.stored is None:
        return f"it takes a matrix stored in float32, which {gibbs.columns} pairs and max_memory do not leave."
    obstacle: str | None = cuda.obstacle(gibbs.columns, gibbs.params.device)
    return obstacle


def _solve_on_chip(gibbs: GibbsKernel, iterations: int, saved: Saved) -> None:
    from otter_losses.ops.cuda import sinkhorn as cuda

    assert gibbs.stored is not None
    _open(replace(gibbs, kind=int(LOGARITHMIC.value)))
    image_columns, text_rows, text_columns = cuda.solve(gibbs.stored, gibbs.params[Scalar.GIBBS_SHIFT], iterations)
    saved.column_scalings[0, 0].copy_(image_columns)
    saved.row_scalings[0, 1].copy_(text_rows)
    saved.column_scalings[0, 1].copy_(text_columns)


def _segments(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    """Into how many segments the rows are cut, and the height of each."""
    wanted = max(1, min(tiles(rows, tile["BM"]), PROGRAMS // tiles(columns, tile["BN"])))
    height = tiles(tiles(rows, wanted), tile["BM"]) * tile["BM"]
    return tiles(rows, height), height


def _open(gibbs: GibbsKernel) -> Tensor:
    """Store the kernel where it is to be stored; its column sums, (segments, N), read while it is made."""
    assert gibbs.source is not None
    n, blocks, source = gibbs.columns, gibbs.row_blocks(), gibbs.source
    tile = source.choices(kernels.ENCODE)[0]
    segments, height = _segments(blocks[0].stop, n, tile)
    totals = gibbs.params.new_empty(segments, n)
    product_in_place = gibbs.stored is not None and gibbs.stored.dtype == torch.float32
    space = gibbs.space if gibbs.stored is None else source.space(0 if product_in_place else blocks[0].stop)
    for rows in blocks:
        out = None if gibbs.stored is None else gibbs.stored[rows]
        block = source.block(rows, out if out is not None and product_in_place else space)
        launch(
            kernels.ENCODE,
            (tiles(n, tile["BN"]), segments),
            tile,
            **block.arguments(tile),
            out=totals if out is None else out,
            params=gibbs.params,
            totals=totals,
            row_offset=gibbs.row_offset(rows),
            m=rows.stop - rows.start,
            n=n,
            segment=height,
            KIND=gibbs.kind,
            WRITE=out is not None,
            FIRST=rows.start == 0,
        )
    return totals


def _match_rows(gibbs: GibbsKernel, block: Tensor, rows: slice, saved: Saved) -> None:
    """Both problems' row scalings of a block."""
    m, n = block.shape

    def run(tile: Tile) -> None:
        launch(
            kernels.ROW_SCALINGS,
            (tiles(m, tile["BM"]),),
            tile,
            gibbs=block,
            params=gibbs.params,
            columns_1=saved.column_scalings[0, 0],
            columns_2=saved.column_scalings[0, 1],
            rows_1=saved.row_scalings[0, 0, rows],
            rows_2=saved.row_scalings[0, 1, rows],
            row_offset=gibbs.row_offset(rows),
            m=m,
            n=n,
            **gibbs.switches,
        )

    run(fastest(f"row_scalings {gibbs.switches}", block, (m, n), kernels.ROW_SCALINGS.tiles, run))


def _column_sums(gibbs: GibbsKernel, block: Tensor, rows: slice, saved: Saved, before: Columns | None) -> Columns:
    """A block's column sums with those of the blocks before."""
    m, n = block.shape

    def run(tile: Tile) -> Tensor:
        segments, height = _segments(m if before is None else gibbs.row_blocks()[0].stop, n, tile)
        totals = gibbs.params.new_empty(segments, 2, n) if before is None else before[0]
        launch(
            kernels.COLUMN_SUMS,
            (tiles(n, tile["BN"]), segments),
            tile,
            gibbs=block,
            params=gibbs.params,
            rows_1=saved.row_scalings[0, 0, rows],
            rows_2=saved.row_scalings[0, 1, rows],
            totals=totals,
            row_offset=gibbs.row_offset(rows),
            m=m,
            n=n,
            segment=height,
            **gibbs.switches,
            FIRST=before is None,
        )
        return totals

    choices = kernels.COLUMN_SUMS.tiles
    tile = fastest(f"column_sums {gibbs.switches}", block, (m, n), choices, run) if before is None else before[1]
    return run(tile), tile


def _update_scalings(gibbs: GibbsKernel, totals: Tensor, out: Tensor, reduce: Reduction) -> None:
    """What turns the column sums of all rows into 1, from their segments."""
    size = out.numel()
    if reduce.is_distributed:
        totals = totals.reshape(len(totals), size)
        if gibbs.is_logarithmic:
            totals = reduce.all_reduce_logsumexp_(totals.logsumexp(0))[None]
        else:
            totals = reduce.all_reduce_sum_(totals.sum(0))[None]
    launch(
        kernels.UPDATE_SCALINGS,
        (tiles(size, VECTOR["BN"]),),
        VECTOR,
        totals=totals,
        out=out,
        segments=len(totals),
        size=size,
        KIND=gibbs.kind,
    )
