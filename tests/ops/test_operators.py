"""The custom operators keep torch's contract: schema, fake tensors, autograd, tracing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops import cross_entropy, sigmoid
from otter_losses.ops.execution import Execution
from otter_losses.ops.problem import Student
from otter_losses.ops.targets import HardTargets, Mean, SoftTargets
from tests.helpers.batches import DEVICE, Batch, make_batch, on_device
from tests.helpers.losses import MODULES, memories

dtypes = pytest.mark.parametrize(
    ("dtype", "operand"), [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)]
)
kernels = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
# Lanes beyond the matrix's edge, as numpy sees them in the interpreter; a deprecation inside opcheck's own tracing.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]


def make_student(batch: Batch, operand: torch.dtype) -> Student:
    """Multiplied in the operand's dtype, as features of another one are under autocast."""
    x, y, scale = batch.x, batch.y, batch.scale.detach().float().requires_grad_()
    if operand == x.dtype:
        return Student(x, y, y, scale)
    rounded_x, rounded_y = (each.detach().to(operand) for each in (x, y))
    return Student(rounded_x, rounded_y, rounded_y, scale, (x, y))


def check(operator: Any, arguments: tuple[object, ...], backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton", reason="triton is there on Linux only")
        arguments = tuple(
            each.detach().to(DEVICE).requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each
            for each in arguments
        )
    results = torch.library.opcheck(operator, arguments)
    assert set(results.values()) == {"SUCCESS"}


@kernels
@memories
@dtypes
@pytest.mark.parametrize("teacher", ["own", "given", "none"])
def test_cross_entropy(teacher: str, dtype: torch.dtype, operand: torch.dtype, max_memory: int, backend: str) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    v, t = (batch.v, batch.t) if teacher == "given" else (None, None)
    soft = None
    if teacher != "none":
        soft = SoftTargets(v, t, torch.tensor(1 / 0.15), 1.0, 1.0, math.inf, 40.0, 3)
    student = make_student(batch, operand)
    execution = Execution(backend, max_memory, WHOLE_BATCH)
    check(cross_entropy._forward, cross_entropy.Arguments.pack(student, HardTargets(0.8, 0.1), soft, execution, None), backend)


@pytest.mark.gpu
@dtypes
@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("per_pair", [True, False])
def test_means_of_cross_entropies(teacher: bool, per_pair: bool, dtype: torch.dtype, operand: torch.dtype) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    soft = SoftTargets(batch.v, batch.t, torch.tensor(1 / 0.15), 1.0, 1.0, math.inf, 40.0, 3) if teacher else None
    mean = Mean(0.3, torch.linspace(0, 1, 9) if per_pair else None, 1 / 18)
    execution = Execution("triton", 2 << 30, WHOLE_BATCH)
    arguments = cross_entropy.Arguments.pack(make_student(batch, operand), HardTargets(0.8, 0.1), soft, execution, mean)
    check(cross_entropy._forward, arguments, "triton")


@pytest.mark.gpu
@dtypes
def test_mean_of_sigmoid(dtype: torch.dtype, operand: torch.dtype) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    bias = torch.tensor(-1.0, requires_grad=True)
    arguments = sigmoid.Arguments.pack(make_student(batch, operand), bias, Execution("triton", 2 << 30, WHOLE_BATCH))
    check(sigmoid._mean, (*arguments, True, True), "triton")


@kernels
@memories
@dtypes
def test_sigmoid(dtype: torch.dtype, operand: torch.dtype, max_memory: int, backend: str) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    bias = torch.tensor(-1.0, requires_grad=True)
    student = make_student(batch, operand)
    check(sigmoid._forward, sigmoid.Arguments.pack(student, bias, Execution(backend, max_memory, WHOLE_BATCH)), backend)


@kernels
@pytest.mark.parametrize("name", MODULES)
def test_a_penalty_on_the_gradient_is_refused(name: str, backend: str) -> None:
    """Nothing but the loss's own sum depends on the features: also where kernels made the gradient with the value."""
    batch = on_device(make_batch(7, 4))
    bias = torch.tensor(-1.0, device=batch.x.device, requires_grad=True)
    value = MODULES[name](backend=backend)(batch.x, batch.y, batch.scale, bias, **batch.teacher())
    assert isinstance(value, Tensor)
    for gradient in torch.autograd.grad(value, (batch.x, batch.y, batch.scale), create_graph=True):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(value + gradient.square().sum(), batch.x, retain_graph=True)
