"""The custom operators keep torch's contract: schema, fake tensors, autograd, tracing."""

import math
from typing import Any

import pytest
import torch
from otter_losses.ops.soft_target import soft_target
from torch import Tensor

from otter_losses.ops.sigmoid import sigmoid
from tests.helpers.batches import DEVICE, make_batch
from tests.helpers.losses import memories

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
kernels = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.gpu)])
# Lanes beyond the matrix's edge, as numpy sees them in the interpreter; a deprecation inside opcheck's own tracing.
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
]


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
def test_soft_target(teacher: str, dtype: torch.dtype, max_memory: int, backend: str) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    v, t = (batch.v, batch.t) if teacher == "given" else (None, None)
    sharpness: Tensor | None = None if teacher == "none" else torch.tensor(1 / 0.15)
    options = (sharpness, 1.0, 1.0, math.inf, 40.0, 3, False, 0.8, 0.1, max_memory, backend, "", ())
    check(soft_target, (batch.x, batch.y, None, batch.scale.detach().float().requires_grad_(), v, t, *options), backend)


@kernels
@memories
@dtypes
def test_sigmoid(dtype: torch.dtype, max_memory: int, backend: str) -> None:
    batch = make_batch(9, 6, dtype=dtype)
    bias = torch.tensor(-1.0, requires_grad=True)
    check(
        sigmoid,
        (batch.x, batch.y, None, batch.scale.detach().float().requires_grad_(), bias, max_memory, backend, "", ()),
        backend,
    )
