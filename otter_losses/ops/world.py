"""What crosses between the ranks that share a batch: sums over pairs, O(N) a sweep."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses.distributed import reduce


@dataclass(frozen=True)
class World:
    """A process group, by its name, and the first of this rank's rows in the whole batch. Without a name the rank is alone."""

    group: str = ""
    start: int = 0

    def here(self, rows: slice) -> slice:
        """The place of this rank's rows in the whole batch."""
        return slice(self.start + rows.start, self.start + rows.stop)

    def _reduce(self, values: Tensor, how: "dist.ReduceOp.RedOpType") -> None:
        group = dist.distributed_c10d._resolve_process_group(self.group)  # type: ignore[attr-defined, arg-type]
        reduce(values, group, how)

    def add(self, totals: Tensor) -> Tensor:
        """Sums over the ranks, in place."""
        if self.group:
            self._reduce(totals, dist.ReduceOp.SUM)
        return totals

    def add_logarithms(self, totals: Tensor) -> Tensor:
        """Logarithms of sums over the ranks, in place."""
        if self.group:
            top = self.highest(totals)
            top.masked_fill_(top == -torch.inf, 0.0)
            self.add(totals.sub_(top).exp_()).log_().add_(top)
        return totals

    def highest(self, values: Tensor) -> Tensor:
        """Over the ranks, one by one."""
        if self.group:
            values = values.clone()
            self._reduce(values, dist.ReduceOp.MAX)
        return values

    def all_of(self, own: Tensor, pairs: int) -> Tensor:
        """Columns (..., b) of this rank's pairs to (..., N) of all."""
        if not self.group:
            return own
        whole = own.new_zeros(*own.shape[:-1], pairs)
        whole[..., self.start : self.start + own.shape[-1]] = own
        return self.add(whole)


ALONE = World()
