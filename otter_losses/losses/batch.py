"""From a caller's arguments to the core's, and from the core's cross entropies to a loss: what all loss functions share."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.distributed.shard import BatchShard
from otter_losses.ops import dispatch
from otter_losses.ops.cross_entropy import cross_entropy
from otter_losses.ops.execution import Execution
from otter_losses.ops.groups import Groups
from otter_losses.ops.memory import computing_dtype
from otter_losses.ops.problem import Student
from otter_losses.ops.products import operand_dtype
from otter_losses.ops.targets import HardTargets, Mean, SoftTargets

Parts = dict[str, Tensor]
"""A loss by its parts, weights applied: ``contrastive_loss`` and, where there are soft targets, ``distill_loss``."""

Features = tuple[Tensor | None, Tensor | None]
"""A teacher's features of the images and texts of all ranks, as constants; None stands for the student's own."""


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs, checked and brought to the computing types.

    Attributes:
        student: the local features and those of all texts, in one dtype, that of a half-precision autocast region where float32
            ones come in it; the scale in the computing dtype.
        logit_bias: as the caller gave it; see `result`.
        groups: pairs that are each other's positives; None where each is its own alone.
        q: of the generalised cross entropy that those against the given targets become; see `of_given`.
        reduction: "mean" or "none"; see `result`.
        execution: how the core computes.
    """

    student: Student
    logit_bias: Tensor | float | None
    groups: Groups | None
    q: float
    reduction: str
    execution: Execution

    @classmethod
    def prepare(
        cls,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None,
        *,
        groups: Tensor | None = None,
        q: float = 0.0,
        reduction: str,
        backend: str,
        max_memory: int | None,
        shard: BatchShard,
    ) -> "PairBatch":
        """Check what loss functions have in common, and gather text features and groups where ranks share the batch."""
        checks.check_reduction(reduction)
        checks.check_backend(backend)
        if max_memory is not None:
            checks.check_count("max_memory", max_memory, 0)
        checks.check_features("image_features", image_features, "text_features", text_features)
        if logit_bias is not None:
            checks.check_scalar("logit_bias", logit_bias)
        checks.check_q(q)
        if groups is not None:
            checks.check_groups(groups, image_features.shape[0], image_features.device)
        originals = x, y = of_one_dtype(image_features, text_features)
        dtype = operand_dtype(x)
        is_rounded = dtype != x.dtype
        if is_rounded:
            x, y = x.detach().to(dtype), y.detach().to(dtype)
        execution = Execution.resolve(backend, max_memory, shard, x)
        scale = scalar("logit_scale", logit_scale, x)
        student = Student(x, y, shard.all_gather(y), scale, originals if is_rounded else None)
        found = None if groups is None else Groups.of(shard.all_gather(checks.savable(groups)), scale.dtype)
        return cls(student, logit_bias, found, q, reduction, execution)

    @property
    def shard(self) -> BatchShard:
        return self.execution.shard

    @property
    def local_size(self) -> int:
        """Pairs b of this rank."""
        return self.student.image_features.shape[0]

    @property
    def size(self) -> int:
        """Pairs N of all ranks."""
        return self.shard.batch_size(self.local_size)

    @property
    def hard(self) -> HardTargets:
        """The given pairs: all of the mass for each, in a group shared alike among its pairs."""
        return HardTargets() if self.groups is None else HardTargets(1 / self.groups.sizes, None, self.groups.ids)

    def kept_apart(self, within_rank: bool = False) -> Tensor | None:
        """`SoftTargets.groups`, of the pairs of all ranks or of this one's."""
        if self.groups is None:
            return None
        if not within_rank:
            return self.groups.kept_apart()
        own = self.groups.ids[self.shard.local_slice(self.local_size)]
        return Groups.of(own, self.groups.sizes.dtype).kept_apart()

    def scalar(self, name: str, value: Tensor | float) -> Tensor:
        """A caller's number as a 0-D tensor beside the features, in the computing dtype."""
        return scalar(name, value, self.student.image_features)

    def constant(self, value: float) -> Tensor:
        """0-D, beside the features, in the computing dtype."""
        return constant(value, self.student.image_features)

    def check_teacher(self, image_features: Tensor | None, text_features: Tensor | None) -> None:
        checks.check_teacher(image_features, text_features, self.local_size, self.student.image_features.device)

    def teacher(self, image_features: Tensor | None, text_features: Tensor | None, shard: BatchShard) -> Features:
        """The teacher's features of all pairs of a shard, as they are multiplied: in no wider a type than is computed in."""
        self.check_teacher(image_features, text_features)
        x = self.student.image_features
        if image_features is None or text_features is None:
            return (shard.all_gather(x) if shard.is_distributed else None), None
        v, t = of_one_dtype(image_features.detach(), text_features.detach())
        dtype = computing_dtype(x)
        if dtype == torch.float32 and v.dtype != torch.float64:
            dtype = operand_dtype(v)
        return shard.all_gather(v.to(dtype)), shard.all_gather(t.to(dtype))

    def result(self, output_dict: bool, are_means: bool = False, **losses: Tensor) -> Tensor | Parts:
        """The losses (b,) of the local pairs, or their mean over the pairs of all ranks; by their parts or summed.

        A mean's gradient is W times this rank's share, for DDP's mean over W ranks. Single losses have their own: DDP then makes
        the mean over all pairs of a mean over this rank's, whatever is made of them.
        """
        parts = losses
        if self.reduction == "mean" and not are_means:
            parts = {name: self.shard.mean(values) for name, values in losses.items()}
        if isinstance(self.logit_bias, Tensor):
            # Softmaxes do not see a common bias: its gradient is zero, which DDP wants rather than none.
            first = parts["contrastive_loss"]
            parts["contrastive_loss"] = first + 0 * self.logit_bias.reshape(()).to(first)
        if output_dict:
            return parts
        total, *others = parts.values()
        for part in others:
            total = total + part
        return total

    def of_given(self, cross_entropies: Tensor) -> Tensor:
        """Each pair's loss, (b,), from its cross entropies against the given targets, (2, b), generalised as `q` says."""
        if self.q:
            cross_entropies = torch.expm1(-self.q * cross_entropies) / -self.q
        return cross_entropies.mean(0)

    def softmax(
        self, hard: HardTargets, soft: SoftTargets | None, alpha: Tensor | float, output_dict: bool, factor: float = 1.0
    ) -> Tensor | Parts:
        """``alpha`` of the mean losses against the given targets and the rest of those against the soft ones.

        Times the factor; without soft targets those against the given ones alone.
        """
        mean = self._mean(1.0 if soft is None else alpha, soft, factor)
        given, matched = cross_entropy(self.student, hard, soft, self.execution, mean)
        if mean is not None:
            parts = {"contrastive_loss": given, "distill_loss": matched}
            return self.result(output_dict, are_means=True, **(parts if soft is not None else {"contrastive_loss": given}))
        given = factor * self.of_given(given)
        return (
            self.result(output_dict, contrastive_loss=given)
            if soft is None
            else self.mixed(alpha, given, factor * matched.mean(0), output_dict)
        )

    def _mean(self, alpha: Tensor | float, soft: SoftTargets | None, factor: float) -> Mean | None:
        """The means of a whole batch, of which kernels leave out the losses of single pairs.

        None where eager torch computes or the ranks share a batch; and for torch.compile, which fuses them itself and would take
        an annealed alpha in an operator's arguments for a constant.
        """
        execution = self.execution if soft is None else self.execution.for_targets(soft)
        is_fused = dispatch.is_fused(execution.backend) and not torch.compiler.is_compiling()
        if self.reduction == "none" or self.shard.is_distributed or not is_fused:
            return None
        factor /= 2 * self.size
        prior, alpha = (self._prior(alpha), 1.0) if isinstance(alpha, Tensor) else (None, float(alpha))
        return Mean(alpha, prior, factor, self.q)

    def _prior(self, alpha: Tensor) -> Tensor:
        """Alpha of every pair, (N,), beside the features."""
        like = self.student.logit_scale
        if alpha.dim() == 0:  # maybe on the CPU: filled in, for a copy from there cannot be captured in a CUDA graph
            return like.new_empty(self.size).fill_(alpha)
        return checks.savable(alpha).to(like.dtype).expand(self.size).contiguous()

    def mixed(self, alpha: Tensor | float, given: Tensor, soft: Tensor, output_dict: bool) -> Tensor | Parts:
        """``alpha`` of the losses of the given targets and the rest of the soft ones', (b,) each."""
        prior: Any = checks.savable(alpha).to(given) if isinstance(alpha, Tensor) else alpha
        return self.result(output_dict, contrastive_loss=prior * given, distill_loss=(1 - prior) * soft)

    def believes_all(self, alpha: Tensor | float) -> bool:
        """Whether no target is shared out beside the given pairs."""
        return not (isinstance(alpha, Tensor) or alpha < 1)


def of_one_dtype(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Float64, float32 or, where both are of it, one of the half precisions."""
    dtype = image.dtype
    if text.dtype != dtype:
        dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
    return checks.savable(image).to(dtype), checks.savable(text).to(dtype)


def scalar(name: str, value: Tensor | float, features: Tensor) -> Tensor:
    checks.check_scalar(name, value)
    dtype = computing_dtype(features)
    if isinstance(value, Tensor):
        return checks.savable(value).to(features.device, dtype).reshape(())
    return constant(value, features)


def constant(value: float, features: Tensor) -> Tensor:
    """0-D, beside the features, in the computing dtype."""
    dtype = computing_dtype(features)
    if torch.compiler.is_compiling():
        return features.new_ones((), dtype=dtype) * value  # new_full would be specialised on every value
    return features.new_full((), value, dtype=dtype)
