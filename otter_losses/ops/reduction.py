"""What a backend needs from the ranks that share its batch; it knows nothing else of them but the offset of its rows."""

from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Partial results of one rank's rows to those of the whole batch. `otter_losses.distributed.shard.BatchShard` is one."""

    @property
    def is_distributed(self) -> bool:
        """Whether other ranks have rows; if not, all methods return what they are given."""

    def all_reduce_sum_(self, partial: Tensor) -> Tensor:
        """Sums over the ranks, in place."""

    def all_reduce_logsumexp_(self, partial: Tensor) -> Tensor:
        """Log-sum-exps over the ranks, in place."""

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """The greatest over the ranks."""

    def reduce_scatter(self, partial: Tensor) -> Tensor:
        """Rows (N, ...) summed over the ranks, of which this rank gets its own (b, ...)."""

    def all_gather_columns(self, local: Tensor) -> Tensor:
        """Columns (..., b) of this rank to columns (..., N) of all ranks."""
