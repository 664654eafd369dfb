"""The one core of the softmax losses: the cross entropies of every pair against given and against a teacher's targets.

With logits ``z = s x y^T`` and a teacher's targets ``M`` (rows sum to 1) and ``M'`` (columns sum to 1) it computes

    row_lse_i = log sum_j exp z_ij      column_lse_j = log sum_i exp z_ij      own_logit_i = z_ii
    row_expected_logit_i = sum_j M_ij z_ij                      column_expected_logit_j = sum_i M'_ij z_ij

from them four cross entropies of every pair, and from those's gradients the logits' ``G`` (see `statistics`); then ``dx = s G
y``, ``dy = s G^T x`` and ``ds = <x, G y>``. Nothing flows to the teacher. What a loss makes of the four, weights per pair or
direction, transforms, parts reported separately, is autograd's.

The N x N matrices are kept from forward to backward where they fit `max_memory`, and recomputed in row blocks where they do not.
A backend computes this rank's rows; what crosses between the ranks is reduced here, or by the `Reduction` a backend is given.
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otter_losses.distributed.shard import BatchShard
from otter_losses.ops import dispatch, memory
from otter_losses.ops.domains import has_numbers
from otter_losses.ops.eager import cross_entropy as eager
from otter_losses.ops.execution import Execution
from otter_losses.ops.memory import Storage, wanted
from otter_losses.ops.operator import custom_operator, make_differentiable, schema, unflatten
from otter_losses.ops.problem import CrossEntropies, CrossEntropyGradients, Gradients, Problem, Saved, Student
from otter_losses.ops.targets import HardTargets, Mean, SoftTargets


def cross_entropy(
    student: Student, hard: HardTargets, soft: SoftTargets | None, execution: Execution, mean: Mean | None = None
) -> CrossEntropies:
    """The cross entropies of the local pairs against given and soft targets, or from kernels the means that are asked for.

    Of several ranks each brings its own pairs, and the text features of all as constants. The text features' gradient is summed
    over the ranks before it is rounded to their dtype.
    """
    if soft is not None:
        execution = execution.for_targets(soft)
    return CrossEntropies(*_cross_entropy(*Arguments.pack(student, hard, soft, execution, mean)))


class Arguments(NamedTuple):
    """The forward's flat list: `cross_entropy`'s arguments field by field.

    Products take the operands, constants, where they are given; gradients are those of the features.

    Numbers that may be annealed are tensors where torch.compile looks, which would compile anew for every value of a number:
    `hard_numbers` in place of the given targets' numbers, also where every pair has its own; and on the CPU `traced_weights` in
    place of the soft ones', of which the numbers then say no more than whether they are 0 or infinite.
    """

    image_features: Tensor
    text_features: Tensor
    image_operand: Tensor | None
    text_operand: Tensor | None
    all_text_features: Tensor | None
    logit_scale: Tensor
    on_pair: float
    uniform: float | None
    hard_numbers: Tensor | None
    groups: Tensor | None
    backend: str
    max_memory: int
    group_name: str
    shard_sizes: Sequence[int]
    teacher_image_features: Tensor | None
    teacher_text_features: Tensor | None
    inv_epsilon: Tensor | None
    gamma_image: float
    gamma_text: float
    diagonal_penalty: float
    traced_weights: Tensor | None
    fits_plain_numbers: bool
    iterations: int
    divergence: bool
    kept_apart: Tensor | None
    takes_means: bool
    alpha: float
    prior: Tensor | None
    mean_factor: float
    mean_q: float

    @classmethod
    def pack(
        cls, student: Student, hard: HardTargets, soft: SoftTargets | None, execution: Execution, mean: Mean | None
    ) -> "Arguments":
        x, y = student.differentiated()
        is_rounded = student.originals is not None
        scale = student.logit_scale
        on_pair, uniform = hard.on_pair, hard.uniform
        gamma_image, gamma_text, penalty = (0.0, 0.0, 0.0) if soft is None else soft.weights
        hard_numbers = traced_weights = None
        if isinstance(on_pair, Tensor) or (uniform is not None and torch.compiler.is_compiling()):
            numbers = [on_pair] if uniform is None else [on_pair, uniform]
            hard_numbers = torch.stack([scale.new_ones(()) * each for each in numbers])
            on_pair, uniform = 1.0, None
        assert not isinstance(uniform, Tensor)
        if torch.compiler.is_compiling() and soft is not None and scale.device.type == "cpu":
            traced_weights = _as_tensor(scale, gamma_image, gamma_text, penalty)
            gamma_image, gamma_text, penalty = (_kind(each) for each in (gamma_image, gamma_text, penalty))
        return cls(
            image_features=x,
            text_features=y,
            image_operand=student.image_features if is_rounded else None,
            text_operand=student.text_features if is_rounded else None,
            all_text_features=None if student.all_text_features is student.text_features else student.all_text_features,
            logit_scale=scale,
            on_pair=on_pair,
            uniform=uniform,
            hard_numbers=hard_numbers,
            groups=hard.groups,
            backend=execution.backend,
            max_memory=execution.max_memory,
            group_name=execution.shard.group_name,
            shard_sizes=execution.shard.sizes,
            teacher_image_features=None if soft is None else soft.image_features,
            teacher_text_features=None if soft is None else soft.text_features,
            inv_epsilon=None if soft is None else soft.inv_epsilon,
            gamma_image=gamma_image,
            gamma_text=gamma_text,
            diagonal_penalty=penalty,
            traced_weights=traced_weights,
            fits_plain_numbers=soft is not None and soft.fit(scale.dtype),
            iterations=0 if soft is None else soft.iterations,
            divergence=soft is not None and soft.divergence,
            kept_apart=None if soft is None else soft.groups,
            takes_means=mean is not None,
            alpha=1.0 if mean is None else mean.alpha,
            prior=None if mean is None else mean.prior,
            mean_factor=1.0 if mean is None else mean.factor,
            mean_q=0.0 if mean is None else mean.q,
        )

    @property
    def problem(self) -> Problem:
        student = self.student
        rows = self.shard.local_slice(self.image_features.shape[0])
        mean = Mean(self.alpha, self.prior, self.mean_factor, self.mean_q) if self.takes_means else None
        return Problem(student, self.hard, self.soft, mean, rows, self._storage(student), self.backend)

    @property
    def student(self) -> Student:
        return Student.of(
            self.image_features,
            self.text_features,
            self.image_operand,
            self.text_operand,
            self.all_text_features,
            self.logit_scale,
        )

    @property
    def hard(self) -> HardTargets:
        if self.hard_numbers is None:
            return HardTargets(self.on_pair, self.uniform, self.groups)
        on_pair, *uniform = self.hard_numbers.unbind()
        return HardTargets(on_pair, uniform[0] if uniform else None, self.groups)

    @property
    def soft(self) -> SoftTargets | None:
        if self.inv_epsilon is None:
            return None
        gamma_image, gamma_text, penalty = self.gamma_image, self.gamma_text, self.diagonal_penalty
        if self.traced_weights is not None and has_numbers(self.traced_weights):
            gamma_image, gamma_text, penalty = self.traced_weights.tolist()
        return SoftTargets(
            image_features=self.teacher_image_features,
            text_features=self.teacher_text_features,
            inv_epsilon=self.inv_epsilon,
            gamma_image=gamma_image,
            gamma_text=gamma_text,
            diagonal_penalty=penalty,
            logit_range=0.0 if self.fits_plain_numbers else math.inf,
            iterations=self.iterations,
            divergence=self.divergence,
            groups=self.kept_apart,
        )

    @property
    def shard(self) -> BatchShard:
        return BatchShard(self.group_name, tuple(self.shard_sizes))

    def _storage(self, student: Student) -> Storage:
        """What is kept for the backward, which asks again and gets the same."""
        # Codes have no room for a diagonal that is lowered but stays.
        may_encode = self.diagonal_penalty in (0.0, math.inf) and self.fits_plain_numbers
        return memory.storage(
            student.image_features,
            student.all_text_features.shape[0],
            has_soft_targets=self.inv_epsilon is not None,
            may_encode=may_encode,
            max_memory=self.max_memory,
            fused=dispatch.is_fused(self.backend),
        )

    @property
    def arithmetic(self) -> ModuleType:
        """The backend's module: ``forward`` and ``backward``."""
        if not dispatch.is_fused(self.backend):
            return eager
        from otter_losses.ops.triton import cross_entropy as fused

        return fused


def _as_tensor(like: Tensor, *numbers: float) -> Tensor:
    one = like.new_ones(())
    return torch.stack([one * each for each in numbers])


def _kind(number: float) -> float:
    return math.inf if number == math.inf else 1.0 if number else 0.0


class BackwardArguments(NamedTuple):
    """The backward's flat list: gradients of the losses, what the forward was given and saved, and what is wanted.

    The products of gradients that nobody wants are left out; the scale's gradient needs one of them.
    """

    gradient: CrossEntropyGradients
    forward: Arguments
    saved: Saved
    wants_image: bool
    wants_text: bool


@custom_operator("cross_entropy", schema(Arguments, 2 + len(Saved._fields)))
def _forward(*flat: Any) -> tuple[Tensor, ...]:
    """`CrossEntropies`, and `Saved`."""
    arguments = Arguments(*flat)
    with torch.no_grad(), torch.autocast(arguments.image_features.device.type, enabled=False):
        with memory.advice_when_exhausted(arguments.max_memory):
            losses, saved = arguments.arithmetic.forward(arguments.problem, arguments.shard)
        return *losses, *saved


@_forward.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    arguments = Arguments(*flat)
    like, shape = arguments.logit_scale, () if arguments.takes_means else (2, arguments.image_features.shape[0])
    soft = like.new_empty(0 if arguments.inv_epsilon is None else shape)
    return like.new_empty(shape), soft, *Saved.unwritten(arguments.problem)


@custom_operator("cross_entropy_backward", schema(BackwardArguments, len(Gradients._fields)))
def _backward(*flat: Any) -> tuple[Tensor, ...]:
    """`Gradients`."""
    arguments = unflatten(BackwardArguments, iter(flat))
    given = arguments.forward
    with torch.no_grad(), torch.autocast(given.image_features.device.type, enabled=False):
        with memory.advice_when_exhausted(given.max_memory):
            wants = arguments.wants_image, arguments.wants_text
            gradients: Gradients = given.arithmetic.backward(
                given.problem, arguments.gradient, arguments.saved, *wants, given.shard
            )
        return tuple(gradients)


@_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    arguments = unflatten(BackwardArguments, iter(flat))
    x, scale = arguments.forward.image_features, arguments.forward.logit_scale
    return wanted(x, arguments.wants_image, x.dtype), wanted(x, arguments.wants_text, x.dtype), scale.new_empty(())


_cross_entropy = make_differentiable(_forward, _backward, Arguments, Gradients, results=2)
