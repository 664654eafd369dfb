"""The exact nearest rows of rows: products tile by tile, of which few numbers are looked at twice."""

import torch
from torch import Tensor

from otter_losses.ops.memory import slices
from otter_losses.ops.products import product

LANE = 32
"""Columns of which only the greatest number is looked at first."""

LOOKED_AT = 1 << 20
"""Numbers that are looked at again at once."""

EMPTY = -(1 << 62)
"""The code of no row."""

LAST = (1 << 32) - 1


def nearest(queries: Tensor, keys: Tensor, k: int, width: int, first: int = 0, own: int | None = None) -> Tensor:
    """Codes (b, k) of the rows of `keys` with the largest products, the largest first; of equal ones the earlier row.

    A code is the product in its upper half and the row, counted back from `LAST`, in the lower.

    Args:
        queries, keys: (b, c) and (n, c) of `projection.whole`.
        width: of a tile (b, width) of products, the only memory this takes beside a little.
        first: number of the first key among all rows.
        own: the queries are the keys from here on, and none is to find itself.
    """
    best = torch.full((len(queries), k), EMPTY, dtype=torch.int64, device=queries.device)
    for part in slices(len(keys), width):
        _absorb(best, _tile(queries, keys[part], None if own is None else own - part.start), first + part.start)
    return best


def _tile(queries: Tensor, keys: Tensor, own: int | None) -> Tensor:
    """Products (b, n), n rounded up to whole lanes; -inf where nothing is to be found."""
    rows, size = len(queries), len(keys)
    missing = -size % LANE
    tile = torch.empty(rows, size + missing, dtype=torch.float32, device=queries.device)
    product(queries, (torch.nn.functional.pad(keys, (0, 0, 0, missing)) if missing else keys).T, out=tile)
    tile[:, size:] = -torch.inf
    if own is not None and -rows < own < size:
        tile.diagonal(own).fill_(-torch.inf)
    return tile


def _absorb(best: Tensor, tile: Tensor, first: int) -> None:
    """The codes, with those of a tile whose columns are the rows from `first` on; later than all before."""
    rows, k = best.shape
    lanes = tile.view(rows, -1, LANE)
    tops = lanes.amax(2)
    floor = ((best[:, -1] >> 32) + 1).float()
    if tops.shape[1] >= k:  # the k-th greatest number is at least the k-th greatest of some of them
        floor = torch.maximum(floor, tops.topk(k).values[:, -1])
    row, lane = (tops >= floor[:, None]).nonzero(as_tuple=True)
    if len(row) * LANE > LOOKED_AT and rows > 1:
        for half in slices(rows, -(-rows // 2)):
            _absorb(best[half], tile[half], first)
        return
    entry, spot = (lanes[row, lane] >= floor[row, None]).nonzero(as_tuple=True)
    if not len(entry):
        return
    row, column = row[entry], lane[entry] * LANE + spot
    codes = (tile[row, column].long() << 32) + (LAST - first - column)
    place = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    both = best.new_full((rows, k + int(place.max()) + 1), EMPTY)
    both[:, :k] = best
    both[row, k + place] = codes
    torch.topk(both, k, out=(best, torch.empty_like(best)))


def merge(codes: Tensor, others: Tensor) -> Tensor:
    """The best of two sets of codes (b, k)."""
    return torch.cat((codes, others), 1).topk(codes.shape[1]).values


def rows_of(codes: Tensor) -> Tensor:
    """Row numbers, int64; -1 where there is none."""
    return (LAST - (codes & LAST)).masked_fill(codes == EMPTY, -1)
