"""The kernels as functions of tensors. Blocks (m, n) are contiguous float32 row blocks; vectors are float32 and contiguous."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from otter_losses.ops.fused import kernels

ROW_TILE: dict[str, int] = {"BM": 4, "BN": 256}
"""Of kernels whose programs own rows; derived from what a warp reads at once, not measured on a GPU."""
COLUMN_TILE: dict[str, int] = {"BM": 64, "BN": 32}
"""Of kernels whose programs own columns: narrow, so that there are enough of them."""


def _device(block: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(block.device) if block.is_cuda else nullcontext()


def _row_grid(block: Tensor) -> tuple[int]:
    return (-(-block.shape[0] // ROW_TILE["BM"]),)


def _column_grid(block: Tensor) -> tuple[int]:
    return (-(-block.shape[1] // COLUMN_TILE["BN"]),)


def sweep(
    block: Tensor, columns: tuple[Tensor, Tensor], totals: tuple[Tensor, Tensor], logarithmic: bool
) -> tuple[Tensor, Tensor]:
    """A Sinkhorn-Knopp round of both problems on a kernel block: its row scalings; adds its column sums to the totals."""
    m, n = block.shape
    rows = block.new_empty(m), block.new_empty(m)
    with _device(block):
        kernels.row_scalings[_row_grid(block)](block, *columns, *rows, m, n, LOGARITHMIC=logarithmic, **ROW_TILE)
        kernels.column_totals[_column_grid(block)](block, *rows, *totals, m, n, LOGARITHMIC=logarithmic, **COLUMN_TILE)
    return rows


def statistics(
    cosines: Tensor,
    scale: Tensor,
    block: Tensor | None,
    scalings: Tensor,
    found: Tensor,
    rows: slice,
    entropy: bool,
    logarithmic: bool,
) -> None:
    """Write the row statistics of a block of cosines, and add its share of the column statistics, in `found` (7, N).

    `scalings` (4, N) as in `soft_target`: image rows and columns, text rows and columns.
    """
    m, n = cosines.shape
    image_rows, image_columns, text_rows, text_columns = scalings
    row_lse, column_lse, pair, row_dot, column_dot, row_entropy, column_entropy = found
    teacher = cosines if block is None else block
    options = {"TEACHER": block is not None, "ENTROPY": entropy, "LOGARITHMIC": logarithmic}
    with _device(cosines):
        kernels.row_statistics[_row_grid(cosines)](
            cosines,
            scale,
            teacher,
            image_rows[rows],
            image_columns,
            row_lse[rows],
            pair[rows],
            row_dot[rows],
            row_entropy[rows],
            rows.start,
            m,
            n,
            **options,
            **ROW_TILE,
        )
        kernels.column_statistics[_column_grid(cosines)](
            cosines,
            scale,
            teacher,
            text_rows[rows],
            text_columns,
            column_lse,
            column_dot,
            column_entropy,
            m,
            n,
            **options,
            **COLUMN_TILE,
        )


def logits_gradient(
    cosines: Tensor,
    scale: Tensor,
    block: Tensor | None,
    scalings: Tensor,
    found: Tensor,
    gradient: Tensor,
    rows: slice,
    logarithmic: bool,
    out: Tensor,
) -> Tensor:
    """The gradient of a block of logits for the gradient (7, N) of the statistics `found`; `out` may be `cosines`."""
    m, n = cosines.shape
    image_rows, image_columns, text_rows, text_columns = scalings
    a, b, c, d, e = gradient[:5]
    grid = (_row_grid(cosines)[0], -(-n // ROW_TILE["BN"]))
    with _device(cosines):
        kernels.logits_gradient[grid](
            cosines,
            scale,
            cosines if block is None else block,
            image_rows[rows],
            image_columns,
            text_rows[rows],
            text_columns,
            found[0, rows],
            found[1],
            a[rows],
            b,
            c[rows],
            d[rows],
            e,
            out,
            rows.start,
            m,
            n,
            TEACHER=block is not None,
            LOGARITHMIC=logarithmic,
            **ROW_TILE,
        )
    return out


def sigmoid_losses(cosines: Tensor, scale: Tensor, bias: Tensor, rows: slice, out: Tensor) -> None:
    """The summed loss of every row of questions of a block."""
    m, n = cosines.shape
    with _device(cosines):
        kernels.sigmoid_losses[_row_grid(cosines)](cosines, scale, bias, out, rows.start, m, n, **ROW_TILE)


def sigmoid_gradient(cosines: Tensor, scale: Tensor, bias: Tensor, gradient: Tensor, rows: slice, out: Tensor) -> Tensor:
    """Write the gradient of a block of logits to `out`, which may be `cosines`; its sum."""
    m, n = cosines.shape
    row_total = cosines.new_empty(m)
    with _device(cosines):
        kernels.sigmoid_gradient[_row_grid(cosines)](
            cosines, scale, bias, gradient[rows], out, row_total, rows.start, m, n, **ROW_TILE
        )
    return row_total.sum()
