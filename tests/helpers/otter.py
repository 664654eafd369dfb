"""What the tests of OTTERLoss share: its value on a batch, and the float64 reference's."""

from typing import Any

import torch
from torch import Tensor

from otter_losses import OTTERLoss
from otter_losses.ops import reference
from tests.helpers.batches import Batch
from tests.helpers.checks import worst_error
from tests.helpers.losses import BLOCKS, DENSE

Expected = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]


def bound(dtype: torch.dtype, epsilon: float) -> float:
    return 1e-10 if dtype == torch.float64 else 4e-6 + 4e-7 / epsilon


def value_of(batch: Batch, loss: torch.nn.Module, **call: Any) -> Tensor:
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    assert isinstance(value, Tensor)
    return value


def reference_of(batch: Batch, alpha: Tensor | float = 0.5, **options: Any) -> Expected:
    exact = batch.to(torch.float64)
    if isinstance(alpha, Tensor):
        alpha = alpha.double()
    value = reference.otter_loss(exact.x, exact.y, exact.scale, exact.v, exact.t, alpha, **options)
    return value, exact.gradients(value)


def check(batch: Batch, expected: Expected, dtypes: tuple[torch.dtype, ...], epsilon: float, **options: Any) -> None:
    """The loss equals what is expected for each dtype, dense and in blocks."""
    call = {name: options.pop(name) for name in ("alpha",) if name in options}
    for dtype in dtypes:
        for max_memory in (DENSE, BLOCKS):
            own = batch.to(dtype)
            if isinstance(call.get("alpha"), Tensor):
                call["alpha"] = call["alpha"].to(dtype)
            value = value_of(own, OTTERLoss(epsilon=epsilon, max_memory=max_memory, **options), **call)
            assert value.dtype == dtype
            assert value.shape == ()
            assert worst_error(value, own.gradients(value), *expected, float(batch.scale.detach())) <= bound(dtype, epsilon)


BOTH = (torch.float64, torch.float32)
