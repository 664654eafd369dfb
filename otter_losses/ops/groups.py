"""Pairs that are each other's positives: of one product, one caption, one patient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.domains import reads_freely


@dataclass(frozen=True, eq=False)
class Groups:
    """Of all pairs of a batch.

    Attributes:
        ids: (N,), int32: the same number, from 0 to N - 1, for the pairs of one group and for no others.
        sizes: (N,), of the computing dtype: how many pairs a pair's group has, itself included.
    """

    ids: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, names: Tensor, dtype: torch.dtype) -> "Groups":
        """Of any integers, (N,)."""
        names = names.contiguous()
        ordered = names.sort().values
        first = torch.searchsorted(ordered, names)
        sizes = torch.searchsorted(ordered, names, right=True) - first
        return cls(first.int(), sizes.to(dtype))

    def kept_apart(self) -> Tensor:
        """Ids (N,) of the pairs that transport does not match with each other.

        Pairs of a group that takes more than half of the batch have none in common: too few others are left to match all of them
        with.
        """
        pairs = self.ids.shape[0]
        alone = -1 - torch.arange(pairs, device=self.ids.device, dtype=self.ids.dtype)
        return torch.where(2 * self.sizes > pairs, alone, self.ids)


# A block has all columns of some rows of the batch; own entries are those of pairs of one group. Few of them are written one by
# one, where a look is free.

FEW = 1 / 8
"""Of a block."""


def fill_own(block: Tensor, ids: Tensor, rows: slice, value: float) -> None:
    own, places = _own(block, ids, rows)
    if places is not None:
        block[places] = value
    else:
        block.masked_fill_(own, value)


def negate_own(block: Tensor, ids: Tensor, rows: slice) -> None:
    own, places = _own(block, ids, rows)
    if places is not None:
        block[places] = block[places].neg_()
    else:
        torch.where(own, -block, block, out=block)


def subtract_own(block: Tensor, ids: Tensor, rows: slice, row_values: Tensor, column_values: Tensor) -> None:
    """Of each own entry its row's value and its column's."""
    own, places = _own(block, ids, rows)
    if places is not None:
        i, j = places
        block[i, j] -= row_values[i] + column_values[j]
    else:
        block.sub_((row_values[:, None] + column_values).masked_fill_(~own, 0))


def _own(block: Tensor, ids: Tensor, rows: slice) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Which of a block's entries are own, and where they are, if they are few."""
    own = ids[rows, None] == ids
    few = reads_freely(block) and int(own.count_nonzero()) <= FEW * own.numel()
    return own, own.nonzero(as_tuple=True) if few else None


def sums(features: Tensor, ids: Tensor, groups: int) -> Tensor:
    """Rows (b, ...) added up by their ids, (groups, ...); the same to the bit from run to run."""
    if features.device.type != "cuda":
        return features.new_zeros(groups, *features.shape[1:]).index_add_(0, ids, features)
    # index_add adds in any order there.
    ordered, order = ids.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(groups + 1, device=ids.device))
    return torch.segment_reduce(features[order], "sum", offsets=starts, axis=0, initial=0, unsafe=True)
