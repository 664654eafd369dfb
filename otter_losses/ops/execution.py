"""How an operator computes, apart from what."""

import math
from dataclasses import dataclass, replace

from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.ops import dispatch, memory
from otter_losses.ops.targets import SoftTargets
from otter_losses.ops.tracing import is_exporting, known_when_exporting


@dataclass(frozen=True)
class Execution:
    """Decided once a call, and carried from there on.

    Attributes:
        backend: what `dispatch.resolve` returned.
        max_memory: bytes that N x N matrices may take.
        shard: this rank's pairs among those of the batch.
    """

    backend: str
    max_memory: int
    shard: BatchShard

    @classmethod
    def resolve(cls, backend: str, max_memory: int | None, shard: BatchShard, features: Tensor) -> "Execution":
        """For local features (b, D) and what a caller asked for."""
        local = features.shape[0]
        pairs = shard.batch_size(local)
        resolved = dispatch.resolve(backend, features, pairs)
        budget = memory.budget(max_memory, features.device)
        if is_exporting() and not known_when_exporting(16 * local * pairs <= budget):
            budget = 0  # an exported program keeps for every size what it keeps for one
        return cls(resolved, budget, shard)

    def for_targets(self, soft: SoftTargets) -> "Execution":
        """With a backend that can hold those targets' logarithms: kernels have one float for each."""
        if not dispatch.is_fused(self.backend) or not dispatch.LARGEST_RANGE < soft.logit_range < math.inf:
            return self
        if self.backend != "auto":
            raise RuntimeError(
                f"backend={self.backend!r} takes logits of a teacher that span at most {dispatch.LARGEST_RANGE:g}; this epsilon "
                f"makes them span up to {soft.logit_range:.3g}. Use backend='auto' or 'torch', or raise epsilon."
            )
        return replace(self, backend="torch")

    def divided(self, parts: int) -> "tuple[Execution, Execution]":
        """With one of so many parts of the memory, and with the rest, for operators that have matrices at the same time."""
        part = self.max_memory // parts
        return Execution(self.backend, part, self.shard), Execution(self.backend, self.max_memory - part, self.shard)

    def within_rank(self, features: Tensor) -> "Execution":
        """Of the local pairs alone, with these features."""
        return Execution(dispatch.resolve(self.backend, features, features.shape[0]), self.max_memory, WHOLE_BATCH)
