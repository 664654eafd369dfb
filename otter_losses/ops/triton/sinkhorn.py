"""Both transport problems of a batch, as in `otter_losses.ops.eager.sinkhorn`, in sweeps of Triton kernels or in one of CUDA
C++."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otter_losses.ops.domains import safe_range
from otter_losses.ops.memory import row_blocks
from otter_losses.ops.problem import Problem, Saved, Scalar
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.targets import SoftTargets
from otter_losses.ops.triton.autotune import fastest
from otter_losses.ops.triton.gemm import HALVES, TileSource
from otter_losses.ops.triton.kernels import similarity as similarity_kernels
from otter_losses.ops.triton.kernels import sinkhorn as kernels
from otter_losses.ops.triton.kernels.tiles import CODES, LOGARITHMIC, PLAIN
from otter_losses.ops.triton.launch import FEATURES, VECTOR, Tile, launch, tiles

PROGRAMS = 512
"""That a GPU should have to work on; a narrow matrix is cut into segments of rows until there are so many."""

NO_KERNEL: dict[str, object] = {"KIND": PLAIN.value, "RAW": False}
"""How a kernel reads a Gibbs kernel that is not there."""

Columns = tuple[Tensor, Tile]
"""Column sums (segments, 2, N), and the tile that all blocks add to them with."""


@dataclass(frozen=True, eq=False)
class GibbsKernel:
    """The local rows of a batch's Gibbs kernel: stored, or made anew from their product, block by block. See `kernels.tiles`.

    Attributes:
        source: the factors whose product it is of; None where it is stored already.
        params: `Saved.scalars`.
        kind: how it is held.
        stored: (b, N) in float32 or, for codes, int16; None where it is recomputed.
        rows: the local rows, of all N.
        columns: N.
        space: memory for the product of a row block that is not stored.
    """

    source: TileSource | None
    params: Tensor
    kind: int
    stored: Tensor | None
    rows: slice
    columns: int
    space: Tensor

    @classmethod
    def build(cls, problem: Problem, saved: Saved) -> "GibbsKernel":
        """Kept in ``saved.gibbs`` where it is to be stored; `solve` fills that. Its numbers go to ``saved.scalars``."""
        similarity, stored, kind = _decided(problem, saved)
        source, peaks = _factors(similarity, kind)
        _write_params(similarity, peaks, saved.scalars)
        return cls._of(similarity, source, saved.scalars, kind, stored)

    @classmethod
    def again(cls, problem: Problem, saved: Saved) -> "GibbsKernel":
        """The one that was built and saved."""
        similarity, stored, kind = _decided(problem, saved)
        source = _factors(similarity, kind)[0] if stored is None else None
        return cls._of(similarity, source, saved.scalars, kind, stored)

    @classmethod
    def _of(
        cls, similarity: Similarity, source: TileSource | None, params: Tensor, kind: int, stored: Tensor | None
    ) -> "GibbsKernel":
        b, n = similarity.shape
        height = row_blocks(b, n, params.device)[0].stop if stored is None else 0
        return cls(source, params, kind, stored, similarity.rows, n, params.new_empty(height, n))

    @property
    def switches(self) -> dict[str, object]:
        """How a kernel reads it."""
        return {"KIND": self.kind, "RAW": self.stored is None}

    @property
    def is_logarithmic(self) -> bool:
        return self.kind == int(LOGARITHMIC.value)

    def row_blocks(self) -> list[slice]:
        return row_blocks(self.rows.stop - self.rows.start, self.columns, self.params.device)

    def row_offset(self, rows: slice) -> int:
        """Row of a block's first in the whole matrix."""
        return int(self.rows.start + rows.start)

    def block(self, rows: slice) -> Tensor:
        """The local rows asked for: stored, or their product."""
        if self.stored is not None:
            return self.stored[rows]
        assert self.source is not None
        return self.source.product(rows, self.space)

    def sweep(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, in one block where they are stored."""
        for rows in self.row_blocks() if self.stored is None else [slice(0, self.rows.stop - self.rows.start)]:
            yield rows, self.block(rows)


def _decided(problem: Problem, saved: Saved) -> tuple[Similarity, Tensor | None, int]:
    """The similarity, where its kernel is stored, and how: before any feature is looked at."""
    similarity = problem.similarity
    assert similarity is not None
    assert problem.soft is not None
    stored = None if problem.storage.gibbs is None else saved.gibbs
    return similarity, stored, _kind(problem.soft, problem.storage.gibbs)


def _kind(soft: SoftTargets, stored: torch.dtype | None) -> int:
    if stored == torch.int16:
        return int(CODES.value)
    plain = soft.logit_range is not None and soft.logit_range <= safe_range(torch.float32)
    return int(PLAIN.value if plain else LOGARITHMIC.value)


def _factors(similarity: Similarity, kind: int) -> tuple[TileSource, Tensor]:
    """The factors of the kernel's product, of the local rows, and the peaks of the features' norms.

    Half-precision features stay that, sums of them go to float16: an error of L of about ``1e-5 / epsilon``. Where epsilon is too
    small for plain numbers, it is too small for that.
    """
    v, t = similarity.image_features, similarity.text_features
    n, e = v.shape
    image, text = similarity.gamma_image > 0, similarity.gamma_text > 0
    half = v.dtype in HALVES and kind != LOGARITHMIC.value
    a, b = v, t
    if image or text:
        width = 2 * e if image and text else e
        a, b = v.new_empty(2, n, width, dtype=torch.float16 if half else torch.float32).unbind()
    programs = tiles(n, FEATURES["BM"])
    peaks = similarity.inv_epsilon.new_empty(programs, 2)
    launch(
        similarity_kernels.SIMILARITY_FACTORS,
        (programs,),
        FEATURES,
        v=v,
        t=t,
        a=a,
        b=b,
        peaks=peaks,
        n=n,
        e=e,
        v_row_stride=v.stride(0),
        v_column_stride=v.stride(1),
        t_row_stride=t.stride(0),
        t_column_stride=t.stride(1),
        gamma_image=similarity.gamma_image,
        gamma_text=similarity.gamma_text,
        IMAGE=image,
        TEXT=text,
    )
    return TileSource.of(a[similarity.rows], b), peaks


def _write_params(similarity: Similarity, peaks: Tensor, out: Tensor) -> None:
    kernel = similarity_kernels.GIBBS_PARAMS
    launch(
        kernel,
        (1,),
        kernel.tiles[0],
        peaks=peaks,
        inv_epsilon=similarity.inv_epsilon,
        out=out,
        programs=len(peaks),
        penalty=similarity.diagonal_penalty,
        gamma_image=similarity.gamma_image,
        gamma_text=similarity.gamma_text,
    )


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
    saved.row_scalings.fill_(nothing)
    saved.column_scalings[0].fill_(nothing)
    _update_scalings(gibbs, _open(gibbs), saved.column_scalings[1], reduce)
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
    saved.column_scalings[0].copy_(image_columns)
    saved.row_scalings[1].copy_(text_rows)
    saved.column_scalings[1].copy_(text_columns)


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
            columns_1=saved.column_scalings[0],
            columns_2=saved.column_scalings[1],
            rows_1=saved.row_scalings[0, rows],
            rows_2=saved.row_scalings[1, rows],
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
            rows_1=saved.row_scalings[0, rows],
            rows_2=saved.row_scalings[1, rows],
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
