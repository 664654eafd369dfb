"""How well captions suit images, by the company they keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from otter_losses.audit.features import BLOCK_ROWS, Rows
from otter_losses.audit.projection import Moments, whole
from otter_losses.distributed.shard import BatchShard
from otter_losses.ops.memory import slices

ENTRIES = 1 << 13
"""Vectors that are gathered at once."""

Side = Literal["image", "text"]


def products(rows: Tensor, others: Tensor, columns: Tensor, shard: BatchShard) -> Tensor:
    """Products (n, m) of whole rows (n, c) with those of all ranks' `others` that the columns (n, m) name; 0 where one is -1."""
    found = torch.zeros(columns.shape, dtype=torch.float32, device=rows.device)
    for first, block in shard.stream(others):
        for part in slices(len(rows), max(ENTRIES // columns.shape[1], 1)):
            at = columns[part].long() - first
            gathered = block[at.clamp(0, len(block) - 1)] if len(block) else block.new_zeros(*at.shape, block.shape[1])
            each = torch.bmm(gathered.float(), rows[part].float()[:, :, None]).squeeze(2)
            found[part] += each.masked_fill_((at < 0) | (at >= len(block)), 0.0)
    return found


def direction(others: Tensor, columns: Tensor, shard: BatchShard) -> Tensor:
    """Whole rows (n, c) towards the mean of those of all ranks' `others` that the columns (n, m) name, but for columns of -1."""
    sums = torch.zeros(len(columns), others.shape[1], dtype=torch.float32, device=others.device)
    for first, block in shard.stream(others):
        for part in slices(len(columns), max(ENTRIES // columns.shape[1], 1)):
            at = columns[part].long() - first
            row, entry = ((at >= 0) & (at < len(block))).nonzero(as_tuple=True)
            sums[part].index_add_(0, row, block[at[row, entry]].float())
    found = torch.empty_like(sums, dtype=torch.float16)
    for part in slices(len(sums), BLOCK_ROWS):
        found[part] = whole(sums[part].double())
    return found


@dataclass(frozen=True)
class Evidence:
    """One way to judge a pair: the product of a vector of its image and one of its caption.

    It is standardised among all that could stand across from the given side, captions for an image or images for a caption: a
    vector near to everything gives no pair an advantage.

    Attributes:
        image, text: whole rows (n, c) of this rank's pairs.
        given: the side whose row stays.
        scale, shift: (N,) of all ranks' rows of that side.
        shard: the ranks' rows.
    """

    image: Tensor
    text: Tensor
    given: Side
    scale: Tensor
    shift: Tensor
    shard: BatchShard

    @classmethod
    def of(cls, image: Tensor, text: Tensor, given: Side, shard: BatchShard) -> "Evidence":
        fixed, drawn = (image, text) if given == "image" else (text, image)
        moments = Moments.of(Rows(given, drawn, drawn.device), lambda _: None).of_all(shard)
        scale, shift = torch.empty(2, len(fixed), dtype=torch.float32, device=fixed.device)
        for rows, block in Rows(given, fixed, fixed.device).blocks():
            variance = ((block @ moments.covariance) * block).sum(1)
            inverse = torch.where(variance > 0, variance.rsqrt(), 0.0)
            scale[rows] = inverse.float()
            shift[rows] = (-(block @ moments.mean) * inverse).float()
        return cls(image, text, given, shard.all_gather(scale), shard.all_gather(shift), shard)

    def scores(self, side: Side, columns: Tensor) -> Tensor:
        """(n, m) in standard deviations, of this rank's images (or captions) with the captions (images) that the columns name."""
        own, others = (self.image, self.text) if side == "image" else (self.text, self.image)
        at = self.shard.rows(len(own), own.device)[:, None] if side == self.given else columns.long()
        return products(own, others, columns, self.shard).mul_(self.scale[at]).add_(self.shift[at])


def scores(evidence: Sequence[Evidence], side: Side, columns: Tensor) -> Tensor:
    """Sums (n, m) of all that is known of the pairs that the columns (n, m) name."""
    total = evidence[0].scores(side, columns)
    for each in evidence[1:]:
        total += each.scores(side, columns)
    return total
