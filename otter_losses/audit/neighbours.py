"""The k nearest rows of every row, among all ranks' rows or in shards of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.audit.features import BLOCK_ROWS
from otter_losses.audit.kept import Kept
from otter_losses.audit.projection import Told
from otter_losses.audit.search import EMPTY, merge, nearest, rows_of
from otter_losses.distributed.shard import BatchShard
from otter_losses.ops.memory import slices


@dataclass(frozen=True)
class Search:
    """How neighbours are sought.

    Attributes:
        k: how many.
        width: columns of a tile of products.
        shard: the ranks' rows.
        parts: rows (n,) in ascending order within which each is sought; none of them: among all rows.
        kept: where finished blocks are.
    """

    k: int
    width: int
    shard: BatchShard
    parts: tuple[Tensor, ...]
    kept: Kept

    def __call__(self, stage: str, projected: Tensor, told: Told) -> Tensor:
        """Row numbers (n, k) among all ranks' rows, int32, the nearest first, none its own; -1 where there are fewer."""
        return self._in_parts(stage, projected, told) if self.parts else self._in_all(stage, projected, told)

    def _in_all(self, stage: str, projected: Tensor, told: Told) -> Tensor:
        rows, offset = len(projected), self.shard.row_offset
        best = torch.full((rows, self.k), EMPTY, dtype=torch.int64, device=projected.device)
        compared = 0
        for first, keys in self.shard.stream(projected):
            for block in slices(rows, BLOCK_ROWS):

                def search(block: slice = block, first: int = first, keys: Tensor = keys) -> Tensor:
                    own = block.start if first == offset else None
                    return nearest(projected[block], keys, self.k, self.width, first, own)

                codes = self.kept(f"{stage}-{first}-{block.start}", search).to(projected.device)
                best[block] = merge(best[block], codes)
                compared += (block.stop - block.start) * len(keys)
                told(compared // self.shard.batch_size(rows))
        return rows_of(best).int()

    def _in_parts(self, stage: str, projected: Tensor, told: Told) -> Tensor:
        found = torch.empty(len(projected), self.k, dtype=torch.int32, device=projected.device)
        done = 0
        for number, part in enumerate(self.parts):
            rows = part.to(projected.device)
            keys = projected[rows]
            for block in slices(len(rows), BLOCK_ROWS):

                def search(block: slice = block, keys: Tensor = keys) -> Tensor:
                    return nearest(keys[block], keys, self.k, self.width, 0, block.start)

                codes = self.kept(f"{stage}-{number}-{block.start}", search).to(projected.device)
                found[rows[block]] = rows[rows_of(codes)].int()
                done += block.stop - block.start
                told(done)
        return found


def random_parts(rows: int, parts: int, seed: int) -> tuple[Tensor, ...]:
    """The rows in so many parts at random, each in ascending order; none for one part."""
    if parts == 1:
        return ()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return tuple(order[part::parts].sort().values for part in range(parts))
