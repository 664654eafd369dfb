"""What crosses between the ranks that share a batch: features once, then sums over pairs, O(N) a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses.distributed import naming_the_lost

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there where torch is built without it


@dataclass(frozen=True)
class World:
    """The ranks that share a batch, a process group by its name, and how many pairs each brings. Without a name one is alone.

    Operators get the name alone; torch.compile traces collectives only of the group itself, the `known` one.
    """

    name: str = ""
    counts: tuple[int, ...] = ()
    known: Any = None

    @classmethod
    def of(cls, group: "ProcessGroup | None", counts: Sequence[int]) -> "World":
        """The ranks of a process group, by default of all processes."""
        named: Any = dist.group.WORLD if group is None else group
        return cls(str(named.group_name), tuple(counts), named)

    def __bool__(self) -> bool:
        """Whether there are others."""
        return bool(self.name)

    @property
    def group(self) -> "ProcessGroup":
        if self.known is not None:
            return self.known  # type: ignore[no-any-return]
        return dist.distributed_c10d._resolve_process_group(self.name)  # type: ignore[attr-defined, arg-type]

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if self else 0

    @property
    def start(self) -> int:
        """The first of this rank's pairs among those of all."""
        return sum(self.counts[: self.rank])

    def pairs(self, own: int) -> int:
        """Of all ranks, where this one has its own."""
        return sum(self.counts) if self else own

    def here(self, rows: slice) -> slice:
        """The place of this rank's rows in the whole batch."""
        start = self.start
        return slice(start + rows.start, start + rows.stop)

    def own(self, pairs: int) -> slice:
        """The place of this rank's pairs, so many, in the whole batch."""
        return self.here(slice(0, pairs))

    def _reduce(self, values: Tensor, how: "dist.ReduceOp.RedOpType") -> None:
        with naming_the_lost(self.group):
            dist.all_reduce(values, how, group=self.group)

    def add(self, totals: Tensor) -> Tensor:
        """Sums over the ranks, in place."""
        if self:
            self._reduce(totals, dist.ReduceOp.SUM)
        return totals

    def add_logarithms(self, totals: Tensor) -> Tensor:
        """Logarithms of sums over the ranks, in place."""
        if self:
            top = self.highest(totals)
            top.masked_fill_(top == -torch.inf, 0.0)
            self.add(totals.sub_(top).exp_()).log_().add_(top)
        return totals

    def highest(self, values: Tensor) -> Tensor:
        """Over the ranks, one by one."""
        if self:
            values = values.clone()
            self._reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, own: Tensor) -> Tensor:
        """Rows (b, ...) of this rank to rows (N, ...) of all ranks in rank order, without gradient."""
        if not self:
            return own
        own = own.detach().contiguous()
        most = max(self.counts)
        whole = own.new_empty(len(self.counts) * most, *own.shape[1:])
        if len(own) < most:
            own = torch.cat((own, own.new_zeros(most - len(own), *own.shape[1:])))
        parts = list(whole.split(most))  # type: ignore[no-untyped-call]
        with naming_the_lost(self.group):
            dist.all_gather(parts, own, group=self.group)
        if min(self.counts) == most:
            return whole
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def scatter(self, totals: Tensor) -> Tensor:
        """Of rows (N, ...), summed over the ranks, this rank's own (b, ...)."""
        if not self:
            return totals
        parts = list(totals.contiguous().split(self.counts))  # type: ignore[no-untyped-call]
        own = torch.empty_like(parts[self.rank])
        with naming_the_lost(self.group):
            try:
                dist.reduce_scatter(own, parts, group=self.group)
            except RuntimeError as error:
                if "does not support" not in str(error):  # gloo before torch 2.13
                    raise
                dist.all_reduce(totals, group=self.group)
                own = parts[self.rank].clone()
        return own

    def all_of(self, own: Tensor) -> Tensor:
        """Columns (..., b) of this rank's pairs to (..., N) of all."""
        return self.gather(own.movedim(-1, 0)).movedim(0, -1).contiguous() if self else own


ALONE = World()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, world: World) -> Tensor:
        ctx.counts, ctx.rank = world.counts, world.rank
        return world.add(values.sum()) / sum(world.counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * (len(ctx.counts) / sum(ctx.counts))).expand(ctx.counts[ctx.rank]), None


def mean(values: Tensor, world: World) -> Tensor:
    """Values (b,) of this rank's pairs -> their mean over the pairs of all ranks, 0-D.

    Every rank gets the value of the whole batch, and W times its share of the gradient: DDP's mean over the ranks is then exactly
    the gradient that one process with the whole batch would have, also where the ranks bring different numbers of pairs.
    """
    if not world:
        return values.mean()
    found: Tensor = _Mean.apply(values, world)  # type: ignore[no-untyped-call]
    return found
