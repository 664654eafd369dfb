"""The statistics of `otter_losses.ops.soft_target` and their gradient, each row block read by one kernel."""

from torch import Tensor

from otter_losses.ops.contract import (
    COLUMN_DOT,
    COLUMN_ENTROPY,
    COLUMN_LSE,
    PAIR,
    ROW_DOT,
    ROW_ENTROPY,
    ROW_LSE,
    Backward,
    Saved,
    Storage,
    Teacher,
    Weights,
    share_columns,
)
from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.triton import transport
from otter_losses.ops.triton.features import GAIN, FeatureGradients, product
from otter_losses.ops.triton.kernels import soft_target as kernels
from otter_losses.ops.triton.kernels.held import PLAIN
from otter_losses.ops.triton.launch import Tile, launch, tiles, tuned
from otter_losses.ops.triton.transport import VECTOR, Held
from otter_losses.ops.world import World

TILES: tuple[Tile, ...] = (
    {"BM": 32, "BN": 128, "num_warps": 8},
    {"BM": 64, "BN": 64, "num_warps": 8},
    {"BM": 16, "BN": 256, "num_warps": 8},
)
"""Of programs that own one tile: sixteen elements a thread, so that their sums stay in registers."""


def forward(x: Tensor, y: Tensor, scale: Tensor, teacher: Teacher | None, storage: Storage, backend: str, world: World) -> Saved:
    b, n = len(x), len(y)
    statistics, nothing = scale.new_zeros(7, n), scale.new_empty(0)
    scalings = scale.new_zeros(4, n) if teacher is None else scale.new_empty(4, n)
    held = None
    if teacher is not None:
        stored = None if storage.kernel is None else x.new_empty(b, n, dtype=storage.kernel)
        held = Held.build(teacher.similarity, teacher.spread, stored, world)
        transport.solve(held, teacher.iterations, scalings, backend)
    cosines = scale.new_empty(b, n) if storage.cosines else nothing
    chunks = row_chunks(b, n, x.device)
    space = nothing if storage.cosines else scale.new_empty(chunks[0].stop, n)
    kernel_space = held.space() if held is not None and held.stored is None else nothing
    for rows in chunks:
        block = product(x[rows], y.T, cosines[rows] if storage.cosines else space[: rows.stop - rows.start])
        kernel = None if held is None else held.block(rows, kernel_space)
        _statistics(block, scale, held, kernel, scalings, statistics, rows, world, teacher is not None and teacher.entropy)
    share_columns(statistics, teacher, world)
    state = scale.new_zeros(4) if held is None else held.numbers
    return statistics, scalings, scale.new_empty(0) if held is None or held.stored is None else held.stored, cosines, state


def _switches(held: Held | None) -> dict[str, object]:
    """How the transport kernel is read; of no account without one."""
    return {"KIND": PLAIN.value, "RAW": False} if held is None else held.switches


def _statistics(
    block: Tensor,
    scale: Tensor,
    held: Held | None,
    kernel: Tensor | None,
    scalings: Tensor,
    found: Tensor,
    rows: slice,
    world: World,
    entropy: bool,
) -> None:
    """Write the row statistics of a block of cosines, and add its share of the column statistics, in `found` (7, N)."""
    m, n = block.shape
    image_rows, text_rows, image_columns, text_columns = scalings
    here = world.here(rows)
    teacher = {"TEACHER": held is not None, "ENTROPY": entropy}
    switches = _switches(held)

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        row_parts = block.new_empty(4 if held is not None else 1, grid[1], m)
        column_parts = block.new_empty(3 if held is not None else 1, grid[0], n)
        arguments = (
            block,
            scale,
            block if kernel is None else kernel,
            scale if held is None else held.numbers,
            image_columns,
            text_rows[here],
            text_columns,
            row_parts,
            column_parts,
            found[PAIR, here],
            here.start,
            m,
            n,
        )
        launch(kernels.statistics, grid, *arguments, **teacher, **switches, tile=tile)
        return row_parts, column_parts

    row_parts, column_parts = run(tuned(f"statistics {teacher} {switches}", block, TILES, run))
    vector: Tile = {"BM": VECTOR["BN"], "num_warps": VECTOR["num_warps"]}
    out = found[ROW_LSE, here], found[ROW_DOT, here], found[ROW_ENTROPY, here]
    launch(
        kernels.merge_rows,
        (tiles(m, vector["BM"]),),
        row_parts,
        image_rows[here],
        *out,
        row_parts.shape[1],
        m,
        **teacher,
        KIND=switches["KIND"],
        tile=vector,
    )
    out = found[COLUMN_LSE], found[COLUMN_DOT], found[COLUMN_ENTROPY]
    grid = (tiles(n, VECTOR["BN"]),)
    first = rows.start == 0
    launch(kernels.merge_columns, grid, column_parts, *out, column_parts.shape[1], n, **teacher, FIRST=first, tile=VECTOR)


def backward(
    weights: Weights,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher: Teacher | None,
    saved: Saved,
    wants_dx: bool,
    wants_dy: bool,
    world: World,
) -> Backward:
    gradients = FeatureGradients(x, y, scale * weights.magnitude, wants_dx, wants_dy, world)
    _add_blocks(gradients, weights, scale, teacher, saved)
    dx, dy, inner = gradients.finish()
    return dx, dy, inner * weights.magnitude


def _add_blocks(gradients: FeatureGradients, weights: Weights, scale: Tensor, teacher: Teacher | None, saved: Saved) -> None:
    statistics, scalings, stored, cosines, state = saved
    x, y, n = gradients.x, gradients.y, len(gradients.y)
    held = None
    if teacher is not None:
        held = Held.again(teacher.similarity, teacher.spread, stored if stored.numel() else None, state, gradients.world)
    chunks = row_chunks(len(x), n, x.device)
    space = scale.new_empty(chunks[0].stop, n)
    g_space = gradients.space(space)
    kernel_space = held.space() if held is not None and held.stored is None else space
    for rows in chunks:
        m = rows.stop - rows.start
        block = cosines[rows] if cosines.numel() else product(x[rows], y.T, space[:m])
        kernel = None if held is None else held.block(rows, kernel_space)
        g = g_space[:m]
        lost = _logits_gradient(gradients, block, scale, held, kernel, scalings, statistics, weights, rows, g)
        gradients.add(g, lost, rows)


def _logits_gradient(
    gradients: FeatureGradients,
    block: Tensor,
    scale: Tensor,
    held: Held | None,
    kernel: Tensor | None,
    scalings: Tensor,
    found: Tensor,
    weights: Weights,
    rows: slice,
    g: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of a block of logits, whose statistics are `found`, into `g`, which may be the block; what it lost."""
    m, n = block.shape
    image_rows, text_rows, image_columns, text_columns = scalings
    here = gradients.world.here(rows)
    switches = {"TEACHER": held is not None, **_switches(held), "SUM": weights.sum is not None, "APART": gradients.half}

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        grid = tiles(m, tile["BM"]), tiles(n, tile["BN"])
        lost = gradients.lost(block, grid)
        arguments = (
            block,
            scale,
            block if kernel is None else kernel,
            scale if held is None else held.numbers,
            image_rows[here],
            text_rows[here],
            image_columns,
            text_columns,
            found[ROW_LSE, here],
            found[COLUMN_LSE],
            weights.lse[here],
            weights.lse,
            weights.pair[here],
            weights.dot[here],
            weights.dot,
            weights.lse[here] if weights.sum is None else weights.sum[here],
            g,
            gradients.diagonal[rows],
            *lost,
            here.start,
            m,
            n,
            GAIN,
        )
        launch(kernels.logits_gradient, grid, *arguments, **switches, tile=tile)
        return lost

    in_place = g.data_ptr() == block.data_ptr()
    return run(tuned(f"logits_gradient {switches} {in_place}", block, TILES, None if in_place else run))
