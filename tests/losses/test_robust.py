"""RobustLoss: generalised cross entropy by trust, and distillation."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from otter_losses import DistillationLoss, RobustLoss
from tests.helpers.batches import Batch, make_batch
from tests.helpers.checks import check_autocast, check_half, relative, worst_error
from tests.helpers.losses import memories


def share_of(batch: Batch, alpha: Tensor, q: float) -> float:
    """The mean of p^q over the given pairs and both directions, by alpha."""
    z = batch.scale * batch.x @ batch.y.T
    left = (z.softmax(1).diagonal() ** q + z.T.softmax(1).diagonal() ** q) / 2
    return float((alpha * left).sum().detach() / alpha.sum())


@pytest.mark.parametrize("per_pair", [True, False])
def test_it_is_distillation_with_q_whose_teacher_is_held(per_pair: bool) -> None:
    batch = make_batch(23, 6)
    alpha = torch.linspace(0.05, 0.5, 23, dtype=torch.float64) if per_pair else torch.full((23,), 0.3, dtype=torch.float64)
    call: dict[str, Any] = {**batch.teacher(), "dist_logit_scale": 20.0, "alpha": alpha if per_pair else 0.3}
    held, plain = (
        loss(batch.x, batch.y, batch.scale, **call, output_dict=True) for loss in (RobustLoss(), DistillationLoss(q=0.3))
    )
    share = share_of(batch, alpha, 0.3)
    assert 0.1 < share < 0.9
    assert torch.equal(held["contrastive_loss"], plain["contrastive_loss"])
    assert relative(held["distill_loss"], share * plain["distill_loss"]) <= 1e-12
    gradients = [batch.gradients(value) for value in (held["distill_loss"], share * plain["distill_loss"])]
    assert max(relative(*pair) for pair in zip(*gradients, strict=True)) <= 1e-12


def test_without_q_the_teacher_is_not_held() -> None:
    batch = make_batch(23, 6)
    values = [loss(batch.x, batch.y, batch.scale, **batch.teacher()) for loss in (RobustLoss(q=0.0), DistillationLoss())]
    assert relative(values[0], values[1]) <= 1e-14


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_pairs_that_nobody_believes_leave_the_teacher_alone(reduction: Literal["mean", "none"]) -> None:
    batch = make_batch(23, 6)
    wanted = DistillationLoss(alpha=0.0, reduction=reduction)(batch.x, batch.y, batch.scale, **batch.teacher())
    for alpha in (0.0, torch.zeros(23, dtype=torch.float64)):
        found = RobustLoss(reduction=reduction)(batch.x, batch.y, batch.scale, **batch.teacher(), alpha=alpha)
        assert relative(found, wanted) <= 1e-14


@memories
@pytest.mark.parametrize("n", [1, 2, 41])
def test_value_and_gradients_are_those_of_its_equation(n: int, max_memory: int) -> None:
    batch, q = make_batch(n, 16), 0.4
    alpha = torch.linspace(0.05, 0.5, n, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    z, teacher = batch.scale * batch.x @ batch.y.T, 20.0 * batch.v @ batch.t.T
    for p, targets in ((z.softmax(1), teacher.softmax(1)), (z.T.softmax(1), teacher.T.softmax(1))):
        given = (1 - p.diagonal() ** q) / q
        distilled = share_of(batch, alpha, q) * (targets * p.log()).sum(1)
        expected = expected + (alpha * given - (1 - alpha) * distilled).sum() / (2 * n)
    loss = RobustLoss(q=q, max_memory=max_memory)
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), dist_logit_scale=20.0, alpha=alpha)
    assert isinstance(value, torch.Tensor)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-11


def test_a_pair_that_is_not_trusted_hardly_pulls() -> None:
    """What a step moves its image by is nearly what the teacher's targets alone would."""
    batch = make_batch(23, 6)
    shares = []
    for weight in (0.05, 0.5):
        alpha = torch.full((23,), 0.5, dtype=torch.float64)
        alpha[4] = weight
        loss = RobustLoss(reduction="none")
        parts = loss(batch.x, batch.y, batch.scale, **batch.teacher(), alpha=alpha, output_dict=True)
        given, distilled = (torch.autograd.grad(part[4], batch.x, retain_graph=True)[0][4].norm() for part in parts.values())
        shares.append(float(given / distilled))
    assert shares[0] < 0.1 * shares[1]


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
