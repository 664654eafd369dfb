"""The core of the sigmoid loss: the summed loss of every row of questions, N a batch.

    row_loss_i = sum_j -log sigmoid(l_ij z_ij),   z = s x y^T + b,   l_ii = 1 and l_ij = -1

For an incoming gradient ``a`` the gradient of the logits is ``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)``; then ``dx = s G y``,
``dy = s G^T x``, ``ds = <x, G y>``, ``db = sum G``.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otter_losses.distributed.shard import BatchShard
from otter_losses.ops import dispatch, memory
from otter_losses.ops.eager import sigmoid as eager
from otter_losses.ops.execution import Execution
from otter_losses.ops.memory import wanted
from otter_losses.ops.operator import make_differentiable, schema, unflatten
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem, Student


def sigmoid(student: Student, logit_bias: Tensor, execution: Execution) -> Tensor:
    """The summed loss of every local row, (b,), with a 0-D bias of the computing dtype."""
    losses: Tensor = _forward(*Arguments.pack(student, logit_bias, execution))[0]
    return losses


class Arguments(NamedTuple):
    """The forward's flat list: `sigmoid`'s arguments field by field.

    Products take the operands, constants, where they are given; gradients are those of the features.
    """

    image_features: Tensor
    text_features: Tensor
    image_operand: Tensor | None
    text_operand: Tensor | None
    all_text_features: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor
    backend: str
    max_memory: int
    group_name: str
    shard_sizes: Sequence[int]

    @classmethod
    def pack(cls, student: Student, logit_bias: Tensor, execution: Execution) -> "Arguments":
        x, y = student.differentiated()
        is_rounded = student.originals is not None
        return cls(
            image_features=x,
            text_features=y,
            image_operand=student.image_features if is_rounded else None,
            text_operand=student.text_features if is_rounded else None,
            all_text_features=None if student.all_text_features is student.text_features else student.all_text_features,
            logit_scale=student.logit_scale,
            logit_bias=logit_bias,
            backend=execution.backend,
            max_memory=execution.max_memory,
            group_name=execution.shard.group_name,
            shard_sizes=execution.shard.sizes,
        )

    @property
    def problem(self) -> SigmoidProblem:
        student = Student.of(
            self.image_features,
            self.text_features,
            self.image_operand,
            self.text_operand,
            self.all_text_features,
            self.logit_scale,
        )
        storage = memory.storage(
            student.image_features,
            student.all_text_features.shape[0],
            has_soft_targets=False,
            may_encode=False,
            max_memory=self.max_memory,
            fused=dispatch.is_fused(self.backend),
        )
        rows = self.shard.local_slice(self.image_features.shape[0])
        return SigmoidProblem(student, self.logit_bias, rows, storage.cosines)

    @property
    def shard(self) -> BatchShard:
        return BatchShard(self.group_name, tuple(self.shard_sizes))

    @property
    def arithmetic(self) -> ModuleType:
        """The backend's module: ``forward`` and ``backward``."""
        if not dispatch.is_fused(self.backend):
            return eager
        from otter_losses.ops.triton import sigmoid as fused

        return fused


class BackwardArguments(NamedTuple):
    """The backward's flat list: the gradient of the row losses (b,), what the forward was given and kept, and what is wanted."""

    gradient: Tensor
    forward: Arguments
    kept: Tensor
    wants_image: bool
    wants_text: bool


@torch.library.custom_op("otter_losses::sigmoid", mutates_args=(), schema=schema(Arguments, 2))
def _forward(*flat: Any) -> tuple[Tensor, Tensor]:
    """The row losses (b,); and what the backward needs, (b, N), empty if it is recomputed."""
    arguments = Arguments(*flat)
    with torch.no_grad(), torch.autocast(arguments.image_features.device.type, enabled=False):
        problem = arguments.problem
        with memory.advice_when_exhausted(arguments.max_memory):
            losses, kept = arguments.arithmetic.forward(problem)
            return losses, kept


@_forward.register_fake
def _(*flat: Any) -> tuple[Tensor, Tensor]:
    arguments = Arguments(*flat)
    problem, like = arguments.problem, arguments.logit_scale
    b, n = arguments.image_features.shape[0], problem.student.all_text_features.shape[0]
    return like.new_empty(b), like.new_empty(b, n) if problem.keeps_logits else like.new_empty(0)


@torch.library.custom_op(
    "otter_losses::sigmoid_backward", mutates_args=(), schema=schema(BackwardArguments, len(SigmoidGradients._fields))
)
def _backward(*flat: Any) -> tuple[Tensor, ...]:
    """`SigmoidGradients`."""
    arguments = unflatten(BackwardArguments, iter(flat))
    given = arguments.forward
    with torch.no_grad(), torch.autocast(given.image_features.device.type, enabled=False):
        problem, wants = given.problem, (arguments.wants_image, arguments.wants_text)
        with memory.advice_when_exhausted(given.max_memory):
            gradients: SigmoidGradients = given.arithmetic.backward(
                problem, arguments.gradient, arguments.kept, *wants, given.shard
            )
            return tuple(gradients)


@_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    arguments = unflatten(BackwardArguments, iter(flat))
    x, scale = arguments.forward.image_features, arguments.forward.logit_scale
    dx, dy = wanted(x, arguments.wants_image, x.dtype), wanted(x, arguments.wants_text, x.dtype)
    return dx, dy, scale.new_empty(()), scale.new_empty(())


make_differentiable(_forward, _backward, Arguments, SigmoidGradients)
