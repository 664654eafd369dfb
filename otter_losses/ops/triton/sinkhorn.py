"""Both transport problems of a batch, as in `otter_losses.ops.transport`, in sweeps of Triton kernels or in one of CUDA C++."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from otter_losses.ops.domains import safe_range
from otter_losses.ops.similarity import Similarity, row_chunks
from otter_losses.ops.triton.features import HALVES, product
from otter_losses.ops.triton.features import TILE as FEATURES
from otter_losses.ops.triton.kernels import transport as kernels
from otter_losses.ops.triton.kernels.held import CODES, LOGARITHMIC, PLAIN
from otter_losses.ops.triton.launch import Tile, launch, tiles, tuned
from otter_losses.ops.world import World

ROWS: tuple[Tile, ...] = (
    {"BM": 4, "BN": 256, "num_warps": 4},
    {"BM": 1, "BN": 2048, "num_warps": 4},
    {"BM": 8, "BN": 512, "num_warps": 8},
)
"""Of programs that own rows."""

COLUMNS: tuple[Tile, ...] = (
    {"BM": 32, "BN": 64, "num_warps": 4},
    {"BM": 16, "BN": 128, "num_warps": 4},
    {"BM": 32, "BN": 128, "num_warps": 8},
)
"""Of programs that own columns of a segment of the rows."""

VECTOR: Tile = {"BN": 256, "num_warps": 4}

PROGRAMS = 512
"""That a GPU should have to work on; a narrow matrix is cut into segments until there are so many."""


Totals = tuple[Tensor, Tile]


@dataclass(frozen=True)
class Held:
    """The transport kernel of a batch: stored, or made anew from its product, block by block. See `kernels.held`."""

    factors: tuple[Tensor, Tensor] | None
    numbers: Tensor
    kind: int
    stored: Tensor | None
    rows: int
    columns: int
    world: World

    @classmethod
    def build(cls, similarity: Similarity, spread: float | None, stored: Tensor | None, world: World) -> "Held":
        """`stored` is where it is to be kept, in float32 or, for codes, int16; `solve` fills it."""
        kind = _kind(spread, stored)
        factors, peaks = _factors(similarity, kind)
        return cls(factors, _numbers(similarity, peaks), kind, stored, *_shape(similarity), world)

    @classmethod
    def again(cls, similarity: Similarity, spread: float | None, stored: Tensor | None, numbers: Tensor, world: World) -> "Held":
        """The one that was built with those numbers."""
        kind = _kind(spread, stored)
        factors = _factors(similarity, kind)[0] if stored is None else None
        return cls(factors, numbers, kind, stored, *_shape(similarity), world)

    @property
    def switches(self) -> dict[str, object]:
        return {"KIND": self.kind, "RAW": self.stored is None}

    def chunks(self) -> list[slice]:
        return row_chunks(self.rows, self.columns, self.numbers.device)

    def space(self) -> Tensor:
        """Room for a block's product."""
        return self.numbers.new_empty(self.chunks()[0].stop, self.columns)

    def product(self, rows: slice, out: Tensor) -> Tensor:
        assert self.factors is not None
        a, b = self.factors
        return product(a[rows], b.T, out)

    def block(self, rows: slice, space: Tensor) -> Tensor:
        """The rows asked for: stored, or their product in the space."""
        return self.product(rows, space[: rows.stop - rows.start]) if self.stored is None else self.stored[rows]

    def sweep(self, space: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """All rows, in one block where they are stored."""
        for rows in self.chunks() if self.stored is None else [slice(0, self.rows)]:
            yield rows, self.block(rows, space)


def _shape(similarity: Similarity) -> tuple[int, int]:
    return similarity.own.stop - similarity.own.start, len(similarity.v)


def _kind(spread: float | None, stored: Tensor | None) -> int:
    """Decided before any feature is looked at."""
    if stored is not None and stored.dtype == torch.int16:
        return int(CODES.value)
    plain = spread is not None and spread <= safe_range(torch.float32)
    return int(PLAIN.value if plain else LOGARITHMIC.value)


def _factors(similarity: Similarity, kind: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The factors of the kernel's product, and the peaks of the features' norms.

    Half-precision features stay that, sums of them go to float16: an error of L of about ``1e-5 / epsilon``. Where epsilon is too
    small for plain numbers, it is too small for that.
    """
    v, t = similarity.v, similarity.t
    n, e = v.shape
    image, text = similarity.gamma_image > 0, similarity.gamma_text > 0
    half = v.dtype in HALVES and kind != LOGARITHMIC.value
    a, b = v, t
    if image or text:
        width = 2 * e if image and text else e
        a, b = v.new_empty(2, n, width, dtype=torch.float16 if half else torch.float32).unbind()
    programs = tiles(n, FEATURES["BM"])
    peaks = similarity.sharpness.new_empty(programs, 2)
    gammas = similarity.gamma_image, similarity.gamma_text
    arguments = (v, t, a, b, peaks, n, e, *v.stride(), *t.stride(), *gammas)
    launch(kernels.factors, (programs,), *arguments, IMAGE=image, TEXT=text, tile=FEATURES)
    return (a[similarity.own], b), peaks


def _numbers(similarity: Similarity, peaks: Tensor) -> Tensor:
    found = peaks.new_empty(4)
    weights = similarity.diagonal_penalty, similarity.gamma_image, similarity.gamma_text
    launch(kernels.numbers, (1,), peaks, similarity.sharpness, found, len(peaks), *weights, tile={"BM": 1024, "num_warps": 4})
    return found


def _segments(rows: int, columns: int, tile: Tile) -> tuple[int, int]:
    """Into how many segments the rows are cut, and the height of each."""
    wanted = max(1, min(tiles(rows, tile["BM"]), PROGRAMS // tiles(columns, tile["BN"])))
    height = tiles(tiles(rows, wanted), tile["BM"]) * tile["BM"]
    return tiles(rows, height), height


def solve(held: Held, iterations: int, scalings: Tensor, backend: str) -> None:
    """Store the kernel, solve, and write all `scalings` (4, N) but the first, the image problem's row scalings.

    In one launch where the backend is "cuda", or "auto" and it can be.
    """
    image_rows, text_rows, image_columns, text_columns = scalings
    if backend != "triton":
        obstacle = _no_launch(held)
        if obstacle is None:
            _solve_on_chip(held, iterations, scalings)
            return
        if backend == "cuda":
            raise RuntimeError(
                f"backend='cuda' solves the transport on the chip, in one launch: {obstacle} Use backend='triton'."
            )
    scalings.fill_(0.0 if held.kind == LOGARITHMIC.value else 1.0)
    needs_space = held.stored is None or held.stored.dtype != torch.float32
    space = held.space() if needs_space else held.numbers.new_empty(0)
    _match(held, _opened(held, space), text_columns)
    for _ in range(iterations):
        totals: Totals | None = None
        for rows, block in held.sweep(space):
            here = held.world.here(rows)
            row_scalings = image_rows[here], text_rows[here]
            _row_scalings(held, block, rows, (image_columns, text_columns), row_scalings)
            totals = _column_totals(held, block, rows, row_scalings, totals)
        assert totals is not None
        _match(held, totals[0], scalings[2:])


def _no_launch(held: Held) -> str | None:
    """Why CUDA C++ cannot solve it in one launch."""
    from otter_losses.ops.cuda import transport as cuda

    if held.world:
        return "it is for one process."
    if held.kind == LOGARITHMIC.value:
        return "it takes plain numbers, which this epsilon is too small for."
    if held.kind == CODES.value or held.stored is None:
        return f"it takes a matrix stored in float32, which {held.columns} pairs and max_memory do not leave."
    found: str | None = cuda.obstacle(held.columns, held.numbers.device)
    return found


def _solve_on_chip(held: Held, iterations: int, scalings: Tensor) -> None:
    from otter_losses.ops.cuda import transport as cuda

    assert held.stored is not None
    _opened(replace(held, kind=int(LOGARITHMIC.value)), held.stored)
    for out, found in zip(
        (scalings[2], scalings[1], scalings[3]), cuda.solve(held.stored, held.numbers[1], iterations), strict=True
    ):
        out.copy_(found)


def _opened(held: Held, space: Tensor) -> Tensor:
    """Store the kernel where it is to be stored; its column sums, (segments, N), read while it is made."""
    n, tile, chunks = held.columns, COLUMNS[0], held.chunks()
    segments, height = _segments(chunks[0].stop, n, tile)
    totals = held.numbers.new_empty(segments, n)
    for rows in chunks:
        m = rows.stop - rows.start
        into = None if held.stored is None else held.stored[rows]
        in_place = into is not None and into.dtype == torch.float32
        products = held.product(rows, into if into is not None and in_place else space[:m])
        arguments = (
            products,
            products if into is None else into,
            held.numbers,
            totals,
            held.world.here(rows).start,
            m,
            n,
            height,
        )
        switches = {"KIND": held.kind, "WRITE": into is not None, "FIRST": rows.start == 0}
        launch(kernels.encode, (tiles(n, tile["BN"]), segments), *arguments, **switches, tile=tile)
    return totals


def _row_scalings(held: Held, block: Tensor, rows: slice, columns: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor]) -> None:
    m, n = block.shape

    def run(tile: Tile) -> None:
        arguments = (block, held.numbers, *columns, *out, held.world.here(rows).start, m, n)
        launch(kernels.row_scalings, (tiles(m, tile["BM"]),), *arguments, **held.switches, tile=tile)

    run(tuned(f"row_scalings {held.switches}", block, ROWS, run))


def _column_totals(held: Held, block: Tensor, rows: slice, scalings: tuple[Tensor, Tensor], before: Totals | None) -> Totals:
    """Column sums (segments, 2, N) with those of the blocks before, and the tile that all of them were found with."""
    m, n = block.shape

    def run(tile: Tile) -> Tensor:
        segments, height = _segments(m if before is None else held.chunks()[0].stop, n, tile)
        found = held.numbers.new_empty(segments, 2, n) if before is None else before[0]
        arguments = (block, held.numbers, *scalings, found, held.world.here(rows).start, m, n, height)
        grid = tiles(n, tile["BN"]), segments
        launch(kernels.column_totals, grid, *arguments, **held.switches, FIRST=before is None, tile=tile)
        return found

    tile = tuned(f"column_totals {held.switches}", block, COLUMNS, run) if before is None else before[1]
    return run(tile), tile


def _match(held: Held, totals: Tensor, out: Tensor) -> None:
    size = out.numel()
    if held.world:
        totals = totals.reshape(len(totals), size)
        if held.kind == LOGARITHMIC.value:
            totals = held.world.add_logarithms(totals.logsumexp(0))[None]
        else:
            totals = held.world.add(totals.sum(0))[None]
    launch(kernels.match, (tiles(size, VECTOR["BN"]),), totals, out, len(totals), size, KIND=held.kind, tile=VECTOR)
