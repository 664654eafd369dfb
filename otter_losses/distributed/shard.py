"""One rank's pairs among those of a batch, and every collective of the losses: features once, then O(N) sums a sweep."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses.distributed.failures import naming_missing_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it


@dataclass(frozen=True)
class BatchShard:
    """The local pairs of a batch that the ranks of a process group share; without a group they are all of it.

    Every method then works within the one process: sums and gathers return what they are given.

    Attributes:
        group_name: the process group's name, all that an operator can be given; empty for one process.
        sizes: pairs of each rank.
        process_group: the group itself, the only form in which torch.compile traces collectives; None to look it up by name.
    """

    group_name: str = ""
    sizes: tuple[int, ...] = ()
    process_group: Any = None

    @classmethod
    def of(cls, group: "ProcessGroup | None", sizes: Sequence[int]) -> "BatchShard":
        """The shard of this rank in a process group, by default that of all processes."""
        named: Any = dist.group.WORLD if group is None else group
        return cls(str(named.group_name), tuple(sizes), named)

    @property
    def is_distributed(self) -> bool:
        """Whether other ranks have pairs of the batch."""
        return bool(self.group_name)

    @property
    def group(self) -> "ProcessGroup":
        if self.process_group is not None:
            return self.process_group  # type: ignore[no-any-return]
        return dist.distributed_c10d._resolve_process_group(self.group_name)  # type: ignore[attr-defined, arg-type]

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if self.is_distributed else 0

    @property
    def row_offset(self) -> int:
        """Row of this rank's first pair in the whole batch."""
        return sum(self.sizes[: self.rank])

    def batch_size(self, local: int) -> int:
        """Pairs N of all ranks, where this rank has so many."""
        return sum(self.sizes) if self.is_distributed else local

    def local_slice(self, local: int) -> slice:
        """Rows of this rank's pairs, so many, in the whole batch."""
        return slice(self.row_offset, self.row_offset + local)

    def rows(self, local: int, device: torch.device) -> Tensor:
        """Rows (b,) of this rank's pairs, so many, in the whole batch."""
        return torch.arange(self.row_offset, self.row_offset + local, device=device)

    def _all_reduce_(self, values: Tensor, operation: "dist.ReduceOp.RedOpType") -> None:
        with naming_missing_ranks(self.group):
            dist.all_reduce(values, operation, group=self.group)

    def all_reduce_sum_(self, partial: Tensor) -> Tensor:
        """Sums over the ranks, entry by entry, in place."""
        if self.is_distributed:
            self._all_reduce_(partial, dist.ReduceOp.SUM)
        return partial

    def all_reduce_logsumexp_(self, partial: Tensor) -> Tensor:
        """Logarithms of sums over the ranks of exponentials, entry by entry, in place."""
        if self.is_distributed:
            top = self.all_reduce_max(partial)
            top.masked_fill_(top == -torch.inf, 0.0)
            self.all_reduce_sum_(partial.sub_(top).exp_()).log_().add_(top)
        return partial

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """The greatest over the ranks, entry by entry."""
        if self.is_distributed:
            values = values.clone()
            self._all_reduce_(values, dist.ReduceOp.MAX)
        return values

    def all_gather(self, local: Tensor) -> Tensor:
        """Rows (b, ...) of this rank to rows (N, ...) of all ranks in rank order, without gradient."""
        if not self.is_distributed:
            return local
        local = local.detach().contiguous()
        most = max(self.sizes)
        whole = local.new_empty(len(self.sizes) * most, *local.shape[1:])
        if len(local) < most:
            local = torch.cat((local, local.new_zeros(most - len(local), *local.shape[1:])))
        parts = list(whole.split(most))  # type: ignore[no-untyped-call]
        with naming_missing_ranks(self.group):
            dist.all_gather(parts, local, group=self.group)
        if min(self.sizes) == most:
            return whole
        return torch.cat([part[:size] for part, size in zip(parts, self.sizes, strict=True)])

    def all_gather_columns(self, local: Tensor) -> Tensor:
        """Columns (..., b) of this rank to columns (..., N) of all ranks."""
        return self.all_gather(local.movedim(-1, 0)).movedim(0, -1).contiguous() if self.is_distributed else local

    def stream(self, local: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The rows of every rank in turn, with the row of the first of them; a rank holds one other rank's at a time."""
        if not self.is_distributed:
            yield 0, local
            return
        first = 0
        for rank, size in enumerate(self.sizes):
            block = local.contiguous() if rank == self.rank else local.new_empty(size, *local.shape[1:])
            with naming_missing_ranks(self.group):
                dist.broadcast(block, dist.get_global_rank(self.group, rank), group=self.group)
            yield first, block
            first += size

    def reduce_scatter(self, partial: Tensor) -> Tensor:
        """Of rows (N, ...), summed over the ranks, those of this rank's pairs (b, ...)."""
        if not self.is_distributed:
            return partial
        parts = list(partial.contiguous().split(self.sizes))  # type: ignore[no-untyped-call]
        local = torch.empty_like(parts[self.rank])
        with naming_missing_ranks(self.group):
            try:
                dist.reduce_scatter(local, parts, group=self.group)
            except RuntimeError as error:
                if "does not support" not in str(error):  # gloo before torch 2.13
                    raise
                dist.all_reduce(partial, group=self.group)
                local = parts[self.rank].clone()
        return local

    def mean(self, values: Tensor) -> Tensor:
        """Values (b,) of this rank's pairs to their mean over the pairs of all ranks, 0-D.

        Every rank gets the value of the whole batch, and W times its share of the gradient: DDP's mean over the ranks is then
        exactly the gradient that one process with the whole batch would have, also where the ranks bring different numbers of
        pairs.
        """
        if not self.is_distributed:
            return values.mean()
        value: Tensor = _Mean.apply(values, self)  # type: ignore[no-untyped-call]
        return value


WHOLE_BATCH = BatchShard()
"""The shard of one process that has all pairs."""


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, shard: BatchShard) -> Tensor:
        ctx.sizes, ctx.rank = shard.sizes, shard.rank
        return shard.all_reduce_sum_(values.sum()) / sum(shard.sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * (len(ctx.sizes) / sum(ctx.sizes))).expand(ctx.sizes[ctx.rank]), None
