"""The core of the sigmoid loss: the summed loss of every row of questions, N a batch.

    row_loss_i = sum_j -log sigmoid(l_ij z_ij),   z = s x y^T + b,   l_ii = 1 and l_ij = -1, in groups 1 for all pairs of one

For an incoming gradient ``a`` the gradient of the logits is ``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)``; then ``dx = s G y``,
``dy = s G^T x``, ``ds = <x, G y>``, ``db = sum G``.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otter_losses.distributed.shard import BatchShard
from otter_losses.ops import dispatch, memory, products
from otter_losses.ops.eager import sigmoid as eager
from otter_losses.ops.execution import Execution
from otter_losses.ops.memory import wanted
from otter_losses.ops.operator import (
    call,
    custom_operator,
    make_differentiable,
    refuse_second_derivative,
    register_gradient,
    schema,
    unflatten,
)
from otter_losses.ops.problem import SigmoidGradients, SigmoidProblem, Student


def sigmoid(student: Student, logit_bias: Tensor, execution: Execution, groups: Tensor | None = None) -> Tensor:
    """The summed loss of every local row, (b,), with a 0-D bias of the computing dtype; with `Groups.ids` of their positives."""
    (losses,) = _sigmoid(*Arguments.pack(student, logit_bias, execution, groups))
    return losses


def makes_gradient_with_value(student: Student, logit_bias: Tensor, execution: Execution) -> bool:
    """Whether `sigmoid_mean` can: where kernels compute their tiles, for one process, and somebody wants a gradient."""
    if not dispatch.is_fused(execution.backend) or execution.shard.is_distributed or not torch.is_grad_enabled():
        return False
    x = student.image_features
    differentiated = (*student.differentiated(), student.logit_scale, logit_bias)
    return any(each.requires_grad for each in differentiated) and products.computes_tiles(x.device, x.dtype)


def sigmoid_mean(student: Student, logit_bias: Tensor, execution: Execution, groups: Tensor | None = None) -> Tensor:
    """The mean of `sigmoid`, 0-D. Its gradient is made with it: the weight of every row is known beforehand."""
    x, y = student.differentiated()
    wants = x.requires_grad or not y.requires_grad, y.requires_grad
    (mean,) = _sigmoid_mean(*Arguments.pack(student, logit_bias, execution, groups), *wants)
    return mean


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
    groups: Tensor | None

    @classmethod
    def pack(cls, student: Student, logit_bias: Tensor, execution: Execution, groups: Tensor | None = None) -> "Arguments":
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
            groups=groups,
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
        return SigmoidProblem(student, self.logit_bias, rows, storage.cosines, self.groups)

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


@custom_operator("sigmoid", schema(Arguments, 2))
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


@custom_operator("sigmoid_backward", schema(BackwardArguments, len(SigmoidGradients._fields)))
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


_sigmoid = make_differentiable(_forward, _backward, Arguments, SigmoidGradients)


class MeanArguments(NamedTuple):
    """The flat list of `sigmoid_mean`'s operator: whether the image and the text features want their gradients, besides."""

    forward: Arguments
    wants_image: bool
    wants_text: bool


@custom_operator("sigmoid_mean", schema(MeanArguments, 1 + len(SigmoidGradients._fields)))
def _mean(*flat: Any) -> tuple[Tensor, ...]:
    """The mean, and its gradients, float32."""
    from otter_losses.ops.triton import sigmoid as fused

    arguments = unflatten(MeanArguments, iter(flat))
    given = arguments.forward
    with torch.no_grad(), torch.autocast(given.image_features.device.type, enabled=False):
        with memory.advice_when_exhausted(given.max_memory):
            value, gradients = fused.mean_with_gradients(given.problem, arguments.wants_image, arguments.wants_text)
        return value, *gradients


@_mean.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    arguments = unflatten(MeanArguments, iter(flat))
    x, scale = arguments.forward.image_features, arguments.forward.logit_scale
    features = (wanted(x, wants, torch.float32) for wants in (arguments.wants_image, arguments.wants_text))
    return scale.new_empty(()), *features, scale.new_empty(()), scale.new_empty(())


class MeanGradientArguments(NamedTuple):
    """The flat list of that one's backward: the gradient of the mean, and those that were made with it."""

    gradient: Tensor
    made: SigmoidGradients
    half: str


@custom_operator("sigmoid_mean_backward", schema(MeanGradientArguments, len(SigmoidGradients._fields)))
def _mean_backward(*flat: Any) -> tuple[Tensor, ...]:
    """The gradients that were made with the mean, times that of the mean; those of features in their dtype."""
    gradient, made, half = unflatten(MeanGradientArguments, iter(flat))
    like = _mean_gradients(made, half)
    return tuple(torch.mul(each, gradient, out=out) for each, out in zip(made, like, strict=True))


def _mean_gradients(made: SigmoidGradients, half: str) -> list[Tensor]:
    """Memory for them."""
    dtypes = [getattr(torch, half or "float32")] * 2 + [torch.float32] * 2
    return [each.new_empty(each.shape, dtype=dtype) for each, dtype in zip(made, dtypes, strict=True)]


@_mean_backward.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    _, made, half = unflatten(MeanGradientArguments, iter(flat))
    return tuple(_mean_gradients(made, half))


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    dtype = inputs[0].dtype
    ctx.half = "" if dtype == torch.float32 else str(dtype).removeprefix("torch.")
    ctx.set_materialize_grads(False)


def _give_gradients(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    names = Arguments._fields
    found: list[Tensor | None] = [None] * (len(names) + 2)
    if gradient is None:
        return tuple(found)
    given = call(_mean_backward, gradient, *ctx.saved_tensors, ctx.half)
    for name, each in zip(SigmoidGradients._fields, given, strict=True):
        if ctx.needs_input_grad[names.index(name)]:
            found[names.index(name)] = each
    return tuple(found)


_mean_backward.register_autograd(refuse_second_derivative)
_sigmoid_mean = register_gradient(_mean, _keep_gradients, _give_gradients)
