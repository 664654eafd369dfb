"""Both transport problems of a batch, as in `ops.eager.sinkhorn`, in sweeps of Triton kernels or in one launch of CUDA C++."""

from dataclasses import replace

import torch
from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops.problem import Saved, Scalar
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.gemm import TileSource
from otter_losses.ops.triton.gibbs import GibbsKernel
from otter_losses.ops.triton.kernels import sinkhorn as kernels
from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC
from otter_losses.ops.triton.launch import Tile, launch, tiles

ONE_LAUNCH_A_ROUND = 1024
"""Pairs up to which a round is one launch, in which every program adds up the columns' parts of all others. Derived: beyond, that
costs more than two more launches."""

PROGRAMS = 1024
"""That a GPU should have to work on; a narrow matrix is cut into segments of rows until there are so many."""


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
    opened = _opened(gibbs, saved, reduce)
    if iterations > 0 and gibbs.columns <= ONE_LAUNCH_A_ROUND and _is_whole(gibbs, opened, reduce):
        _solve_small(gibbs, iterations, opened, saved, reduce)
        return
    opened.update()
    saved.column_scalings[0, 0].fill_(nothing)
    if iterations == 0:
        saved.row_scalings.fill_(nothing)
    for _ in range(iterations):
        columns = ColumnSums(gibbs, saved.column_scalings, reduce)
        for rows, block in gibbs.sweep():
            _match_rows(gibbs, block, rows, saved)
            columns.add(_column_sums(gibbs, block, rows, saved))
        columns.update()


def _is_whole(gibbs: GibbsKernel, opened: "ColumnSums", reduce: Reduction) -> bool:
    """Whether the matrix is stored here, and was opened in one block."""
    return gibbs.stored is not None and not reduce.is_distributed and opened.sums is None


def _solve_small(gibbs: GibbsKernel, iterations: int, opened: "ColumnSums", saved: Saved, reduce: Reduction) -> None:
    """In one launch a round."""
    assert gibbs.stored is not None
    assert opened.pending is not None
    kernel, n, parts = kernels.MATCHING_ROUND, gibbs.columns, opened.pending
    tile = kernel.tiles[0]
    for count in range(iterations):
        new_parts = parts.new_empty(tiles(n, tile["BM"]), 2, n)
        launch(
            kernel,
            (len(new_parts),),
            tile,
            gibbs=gibbs.stored,
            params=gibbs.params,
            column_parts=parts,
            rows_1=saved.row_scalings[0, 0],
            rows_2=saved.row_scalings[0, 1],
            new_parts=new_parts,
            parts=len(parts),
            n=n,
            KIND=gibbs.kind,
            FIRST=count == 0,
        )
        parts = new_parts
    columns = ColumnSums(gibbs, saved.column_scalings, reduce)
    columns.add(parts)
    columns.update()


def _obstacle_to_one_launch(gibbs: GibbsKernel, reduce: Reduction) -> str | None:
    """Why CUDA C++ cannot solve it in one launch."""
    from otter_losses.ops.cuda import sinkhorn as cuda

    if reduce.is_distributed:
        return "it is for one process."
    if gibbs.is_logarithmic:
        return "it takes plain numbers, which this epsilon is too small for."
    if gibbs.is_codes or gibbs.stored is None:
        return f"it takes a matrix stored in float32, which {gibbs.columns} pairs and max_memory do not leave."
    obstacle: str | None = cuda.obstacle(gibbs.columns, gibbs.params.device)
    return obstacle


def _solve_on_chip(gibbs: GibbsKernel, iterations: int, saved: Saved) -> None:
    from otter_losses.ops.cuda import sinkhorn as cuda

    assert gibbs.stored is not None
    _opened(replace(gibbs, kind=int(LOGARITHMIC.value)), saved, WHOLE_BATCH)
    out = saved.column_scalings[0, 0], saved.row_scalings[0, 1], saved.column_scalings[0, 1]
    cuda.solve(gibbs.stored, gibbs.params[Scalar.GIBBS_SHIFT], iterations, out)


def _opened(gibbs: GibbsKernel, saved: Saved, reduce: Reduction) -> "ColumnSums":
    """Store the kernel where it is to be stored; sums of its columns, read while it is made, for the text problem's."""
    assert gibbs.source is not None
    # What is recomputed is the vendor's product: its last bits are read here too.
    source = gibbs.source if gibbs.stored is not None else replace(gibbs.source, computed=False)
    in_place = gibbs.stored is not None and gibbs.stored.dtype == torch.float32
    blocks = source.row_blocks()
    space = gibbs.space if gibbs.stored is None else source.space(0 if in_place else blocks[0].stop)
    columns = ColumnSums(gibbs, saved.column_scalings[0, 1], reduce)
    for rows in blocks:
        out = None if gibbs.stored is None else gibbs.stored[rows]
        block = source.block(rows, out if out is not None and in_place else space)

        def run(tile: Tile, rows: slice = rows, block: TileSource = block, out: Tensor | None = out) -> Tensor:
            m, n = block.shape
            grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
            parts = gibbs.params.new_empty(grid[0], n)
            launch(
                kernels.ENCODE,
                (grid[0] * grid[1],),
                tile,
                **block.arguments(tile),
                out=parts if out is None else out,
                params=gibbs.params,
                column_parts=parts,
                **gibbs.kept_apart(rows, encodes=True),
                diagonal=gibbs.row_offset(rows),
                stride=n,
                KIND=gibbs.kind,
                WRITE=out is not None,
                APART=gibbs.groups is not None,
            )
            return parts

        trial = None if block.left is out else run
        name = f"encode {gibbs.kind} {out is not None} {gibbs.groups is not None} {block.key}"
        columns.add(run(fastest(name, block.left, block.shape, block.choices(kernels.ENCODE), trial)))
    return columns


class ColumnSums:
    """Sums of columns over row blocks and ranks, and the scalings that make them 1."""

    def __init__(self, gibbs: GibbsKernel, scalings: Tensor, reduce: Reduction) -> None:
        self.gibbs, self.scalings, self.reduce = gibbs, scalings, reduce
        self.pending: Tensor | None = None
        self.sums: Tensor | None = None

    def add(self, parts: Tensor) -> None:
        """Of a block, (parts, ...)."""
        if self.pending is not None:
            self._merge(self.pending, last=False)
        self.pending = parts

    def update(self) -> None:
        """With all blocks, the scalings."""
        assert self.pending is not None
        if self.reduce.is_distributed:
            sums = self._merge(self.pending, last=False)
            reduced = self.reduce.all_reduce_logsumexp_ if self.gibbs.is_logarithmic else self.reduce.all_reduce_sum_
            self.pending, self.sums = reduced(sums)[None], None
        self._merge(self.pending, last=True)

    def _merge(self, parts: Tensor, last: bool) -> Tensor:
        size = self.scalings.numel()
        first, tile = self.sums is None, kernels.UPDATE_SCALINGS.tiles[0]
        if self.sums is None:
            self.sums = self.scalings if last else parts.new_empty(size)
        launch(
            kernels.UPDATE_SCALINGS,
            (tiles(size, tile["BN"]),),
            tile,
            column_parts=parts,
            sums=self.sums,
            scalings=self.scalings,
            parts=len(parts),
            size=size,
            KIND=self.gibbs.kind,
            FIRST=first,
            LAST=last,
        )
        return self.sums


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
            **gibbs.kept_apart(rows),
            diagonal=gibbs.row_offset(rows),
            m=m,
            n=n,
            **gibbs.switches,
        )

    run(fastest(f"row_scalings {gibbs.switches}", block, (m, n), kernels.ROW_SCALINGS.tiles, run))


def _column_sums(gibbs: GibbsKernel, block: Tensor, rows: slice, saved: Saved) -> Tensor:
    """A block's column sums, (segments, 2, N)."""
    m, n = block.shape

    def run(tile: Tile) -> Tensor:
        segments, height = _segments(m, n, tile)
        parts = gibbs.params.new_empty(segments, 2, n)
        launch(
            kernels.COLUMN_SUMS,
            (tiles(n, tile["BN"]), segments),
            tile,
            gibbs=block,
            params=gibbs.params,
            rows_1=saved.row_scalings[0, 0, rows],
            rows_2=saved.row_scalings[0, 1, rows],
            column_parts=parts,
            **gibbs.kept_apart(rows),
            diagonal=gibbs.row_offset(rows),
            m=m,
            n=n,
            segment=height,
            **gibbs.switches,
        )
        return parts

    return run(fastest(f"column_sums {gibbs.switches}", block, (m, n), kernels.COLUMN_SUMS.tiles, run))


def _segments(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    """Into how many segments the rows are cut, and the height of each."""
    wanted = max(1, min(tiles(rows, tile["BM"]), PROGRAMS // tiles(columns, tile["BN"])))
    height = tiles(tiles(rows, wanted), tile["BM"]) * tile["BM"]
    return tiles(rows, height), height
