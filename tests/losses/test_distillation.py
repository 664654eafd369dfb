"""DistillationLoss against targets that are written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import DistillationLoss, InfoNCELoss
from otter_losses.functional import distillation_loss
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import check_autocast, check_half, relative, worst_error
from tests.helpers.losses import memories


def expected_value(
    batch: Batch,
    temperature: float,
    alpha: Tensor | float = 0.5,
    gamma_image: float = 0.0,
    gamma_text: float = 0.0,
    remove_diagonal: bool = False,
) -> Tensor:
    n = len(batch.x)
    scores = reference.similarity(batch.v, batch.t, gamma_image, gamma_text) * temperature
    if remove_diagonal and n > 1:
        scores = scores.masked_fill(torch.eye(n, dtype=torch.bool), -math.inf)
    prior = torch.as_tensor(alpha, dtype=torch.float64).expand(n)
    p, q = (prior.diag() + (1 - prior)[:, None] * each.softmax(1) for each in (scores, scores.T))
    return reference.soft_target_loss(batch.x, batch.y, batch.scale, p, q)


def value_of(batch: Batch, loss: DistillationLoss, **call: Any) -> Tensor:
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    assert isinstance(value, Tensor)
    return value


def error(batch: Batch, value: Tensor, temperature: float, **options: Any) -> float:
    exact = batch.to(torch.float64)
    expected = expected_value(exact, temperature, **options)
    return worst_error(value, batch.gradients(value), expected, exact.gradients(expected), float(batch.scale.detach()))


@memories
@pytest.mark.parametrize("n", [1, 2, 3, 41, 257, 1030])
@pytest.mark.parametrize("teacher_scale", [1.0, 100.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_row_softmaxes_of_the_teacher(
    n: int, teacher_scale: float, dtype: torch.dtype, limit: float, max_memory: int
) -> None:
    batch = make_batch(n, 16).to(dtype)
    value = value_of(batch, DistillationLoss(max_memory=max_memory), dist_logit_scale=teacher_scale)
    assert value.dtype == dtype
    assert error(batch, value, teacher_scale) <= limit * max(teacher_scale / 14.3, 1)


def test_targets_of_the_reference_are_the_same() -> None:
    batch = make_batch(9, 8)
    plans = reference.distillation_targets(batch.v, batch.t, 20.0)
    expected = reference.soft_target_loss(batch.x, batch.y, batch.scale, *plans)
    assert relative(value_of(batch, DistillationLoss(alpha=0.0), dist_logit_scale=20.0), expected) <= 1e-12


@memories
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [0.15, 0.01, 0.001])
@pytest.mark.parametrize("remove_diagonal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_options_equal_written_out_targets(
    family: str, epsilon: float, remove_diagonal: bool, dtype: torch.dtype, max_memory: int
) -> None:
    batch = make_batch(41, 16, family=family).to(dtype)
    options: dict[str, Any] = {"alpha": 0.3, "gamma_image": 1.0, "gamma_text": 0.7, "remove_diagonal": remove_diagonal}
    value = value_of(batch, DistillationLoss(epsilon=epsilon, max_memory=max_memory, **options), dist_logit_scale=3.0)
    limit = 1e-10 if dtype == torch.float64 else 4e-6 + 8e-7 / epsilon
    assert error(batch, value, 1 / epsilon, **options) <= limit


@memories
@pytest.mark.parametrize("scale", [0.0, -5.0])
@pytest.mark.parametrize("remove_diagonal", [False, True])
def test_teachers_scale_may_be_zero_or_negative(scale: float, remove_diagonal: bool, max_memory: int) -> None:
    batch = make_batch(41, 16)
    loss = DistillationLoss(remove_diagonal=remove_diagonal, max_memory=max_memory)
    assert error(batch, value_of(batch, loss, dist_logit_scale=scale), scale, remove_diagonal=remove_diagonal) <= 1e-10


@memories
def test_the_given_pair_may_be_the_only_likely_one(max_memory: int) -> None:
    """The largest logits lie on the diagonal, far from all others."""
    v = torch.eye(5, dtype=torch.float64)
    batch = make_batch(5, 5)
    sure = Batch(batch.x, batch.y, batch.scale, v, v).to(torch.float32)
    assert error(sure, value_of(sure, DistillationLoss(max_memory=max_memory), dist_logit_scale=95.0), 95.0) <= 4e-6


@memories
@pytest.mark.parametrize("n", [1, 2, 41])
@pytest.mark.parametrize("remove_diagonal", [False, True])
def test_alpha_may_differ_from_pair_to_pair(n: int, remove_diagonal: bool, max_memory: int) -> None:
    batch = make_batch(n, 16)
    alpha = torch.linspace(0, 1, n, dtype=torch.float64)
    loss = DistillationLoss(remove_diagonal=remove_diagonal, max_memory=max_memory)
    value = value_of(batch, loss, alpha=alpha, dist_logit_scale=20.0)
    assert error(batch, value, 20.0, alpha=alpha, remove_diagonal=remove_diagonal) <= 1e-10


@memories
def test_students_detached_features_and_scale_teach_where_none_is_given(max_memory: int) -> None:
    batch = make_batch(41, 16)
    own = Batch(batch.x, batch.y, batch.scale, batch.x.detach(), batch.y.detach())
    value = DistillationLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale)
    assert error(own, value, float(batch.scale.detach())) <= 1e-11


@pytest.mark.parametrize("form", ["float", "0-D", "[1]"])
def test_teachers_scale_may_come_in_any_form_and_gets_no_gradient(form: str) -> None:
    batch = make_batch(9, 8)
    tensors = {"0-D": torch.tensor(20.0), "[1]": torch.tensor([20.0])}
    scale: Tensor | float = tensors[form].requires_grad_() if form in tensors else 20.0
    value = value_of(batch, DistillationLoss(), dist_logit_scale=scale)
    assert relative(value, expected_value(batch, 20.0)) <= 1e-12
    torch.autograd.backward(value)
    assert not isinstance(scale, Tensor) or scale.grad is None


def test_alpha_one_is_info_nce() -> None:
    batch = make_batch(41, 16)
    expected = InfoNCELoss()(batch.x, batch.y, batch.scale)
    wanted = batch.gradients(expected)
    for value in (value_of(batch, DistillationLoss(alpha=1.0)), value_of(batch, DistillationLoss(), alpha=torch.ones(41))):
        assert worst_error(value, batch.gradients(value), expected, wanted) <= 1e-12


@memories
def test_parts_carry_their_weights_and_have_exact_gradients(max_memory: int) -> None:
    batch = make_batch(41, 16)
    loss = DistillationLoss(alpha=0.3, max_memory=max_memory)
    parts = loss(batch.x, batch.y, batch.scale, **batch.teacher(), dist_logit_scale=20.0, output_dict=True)
    assert sorted(parts) == ["contrastive_loss", "distill_loss"]
    value = 3 * parts["contrastive_loss"] - 0.5 * parts["distill_loss"]
    expected = 0.9 * expected_value(batch, 20.0, 1.0) - 0.35 * expected_value(batch, 20.0, 0.0)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-10


@memories
@pytest.mark.parametrize("remove_diagonal", [False, True])
def test_gradients_are_those_of_finite_differences(remove_diagonal: bool, max_memory: int) -> None:
    batch = make_batch(5, 3, scale=2.0)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = DistillationLoss(alpha=0.4, remove_diagonal=remove_diagonal, max_memory=max_memory)

    def run(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Any:
        return loss(x, y, scale, bias, **batch.teacher(), dist_logit_scale=4.0)

    assert torch.autograd.gradcheck(run, (batch.x, batch.y, batch.scale, bias))


@memories
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_features_give_the_loss_of_those_numbers(dtype: torch.dtype, rounding: float, max_memory: int) -> None:
    batch = make_batch(127, 64).to(dtype)
    exact = batch.to(torch.float64)
    expected = expected_value(exact, 20.0)
    value = value_of(batch, DistillationLoss(max_memory=max_memory), dist_logit_scale=20.0)
    check_half(batch, value, exact, expected, rounding)


@memories
def test_autocast_rounds_what_float32_products_take(max_memory: int) -> None:
    batch = make_batch(127, 64, dtype=torch.float32)
    check_autocast(batch, lambda batch: value_of(batch, DistillationLoss(max_memory=max_memory)))


def test_function_and_module_are_one() -> None:
    batch = make_batch(9, 8)
    options: dict[str, Any] = {"alpha": 0.2, "epsilon": 0.3, "gamma_image": 1.0, "gamma_text": 2.0, "remove_diagonal": True}
    value = distillation_loss(batch.x, batch.y, batch.scale, dist_image_features=batch.v, dist_text_features=batch.t, **options)
    assert isinstance(value, Tensor)
    assert torch.equal(value, value_of(batch, DistillationLoss(**options)))
