"""Pairs that are each other's positives: of one product, one caption, one patient."""

from dataclasses import dataclass

import torch
from torch import Tensor


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


def positives(ids: Tensor, rows: slice) -> Tensor:
    """Whether row i and column j are of one group, of those rows and all columns."""
    return ids[rows, None] == ids


def sums(features: Tensor, ids: Tensor, groups: int) -> Tensor:
    """Rows (b, ...) added up by their ids, (groups, ...); the same to the bit from run to run."""
    if features.device.type != "cuda":
        return features.new_zeros(groups, *features.shape[1:]).index_add_(0, ids, features)
    # index_add adds in any order there.
    ordered, order = ids.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(groups + 1, device=ids.device))
    return torch.segment_reduce(features[order], "sum", offsets=starts, axis=0, initial=0, unsafe=True)
