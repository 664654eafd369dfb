"""RobustLoss: generalised cross entropy by trust, and distillation."""

from typing import Any

import pytest
import torch

from otter_losses import DistillationLoss, RobustLoss
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import check_autocast, check_half, relative, worst_error
from tests.helpers.losses import memories


def test_it_is_distillation_with_q() -> None:
    batch = make_batch(23, 6)
    alpha = torch.linspace(0.05, 0.5, 23, dtype=torch.float64)
    call = {**batch.teacher(), "dist_logit_scale": 20.0, "alpha": alpha}
    values = [loss(batch.x, batch.y, batch.scale, **call) for loss in (RobustLoss(), DistillationLoss(q=0.3))]
    assert torch.equal(values[0], values[1])
    for one, other in zip(*(batch.gradients(value) for value in values), strict=True):
        assert torch.equal(one, other)


@memories
@pytest.mark.parametrize("n", [1, 2, 41])
def test_value_and_gradients_are_those_of_its_equation(n: int, max_memory: int) -> None:
    batch, q = make_batch(n, 16), 0.4
    alpha = torch.linspace(0.05, 0.5, n, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    z, teacher = batch.scale * batch.x @ batch.y.T, 20.0 * batch.v @ batch.t.T
    for p, targets in ((z.softmax(1), teacher.softmax(1)), (z.T.softmax(1), teacher.T.softmax(1))):
        given = (1 - p.diagonal() ** q) / q
        expected = expected + (alpha * given - (1 - alpha) * (targets * p.log()).sum(1)).sum() / (2 * n)
    loss = RobustLoss(q=q, max_memory=max_memory)
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), dist_logit_scale=20.0, alpha=alpha)
    assert isinstance(value, torch.Tensor)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-11


def test_a_pair_that_is_not_trusted_hardly_pulls() -> None:
    """Its image's gradient is nearly that of the teacher's targets alone."""
    batch = make_batch(23, 6)
    gradients = []
    for trust in (1.0, 0.0):
        alpha = torch.full((23,), 0.5, dtype=torch.float64)
        alpha[4] = 0.05 + 0.45 * trust
        losses = RobustLoss(reduction="none")(batch.x, batch.y, batch.scale, **batch.teacher(), alpha=alpha)
        gradients.append(torch.autograd.grad(losses[4], batch.x)[0][4])
    taught = RobustLoss(alpha=0.0, reduction="none")(batch.x, batch.y, batch.scale, **batch.teacher())
    wanted = torch.autograd.grad(taught[4], batch.x)[0][4]
    assert relative(gradients[1], wanted) < 0.2 * relative(gradients[0], wanted)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision(dtype: torch.dtype, rounding: float) -> None:
    batch = make_batch(41, 16).to(dtype)
    exact = batch.to(torch.float64)
    value, expected = (RobustLoss()(each.x, each.y, each.scale, **each.teacher()) for each in (batch, exact))
    check_half(batch, value, exact, expected, rounding)


def test_autocast() -> None:
    def evaluate(batch: Batch) -> torch.Tensor:
        value = RobustLoss()(batch.x, batch.y, batch.scale, **batch.teacher())
        assert isinstance(value, torch.Tensor)
        return value

    check_autocast(make_batch(23, 16, dtype=torch.float32), evaluate)


@pytest.mark.parametrize(("option", "value"), [("alpha", 1.5), ("alpha", -0.1), ("q", 1.5)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{option} is {value}; need a finite number of at least 0 and at most 1"):
        RobustLoss(**options)
