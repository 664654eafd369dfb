"""InfoNCELoss against open_clip's arithmetic, restated here."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import InfoNCELoss
from otter_losses.functional import info_nce_loss
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import check_autocast, relative, worst_error
from tests.helpers.losses import memories


def clip_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    image_logits, text_logits = scale * x @ y.T, scale * y @ x.T
    if bias is not None:
        image_logits, text_logits = image_logits + bias, text_logits + bias
    labels = torch.arange(len(x))
    return (F.cross_entropy(image_logits, labels) + F.cross_entropy(text_logits, labels)) / 2


def expected_of(batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    exact = batch.to(torch.float64)
    value = clip_loss(exact.x, exact.y, exact.scale)
    return value, exact.gradients(value)


def value_of(batch: Batch, max_memory: int, **call: Any) -> Tensor:
    value = InfoNCELoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, **call)
    assert isinstance(value, Tensor)
    return value


@memories
@pytest.mark.parametrize("n", [1, 2, 3, 41, 127, 257, 1030])
@pytest.mark.parametrize("d", [8, 384])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_value_and_gradients_equal_open_clips(n: int, d: int, dtype: torch.dtype, limit: float, max_memory: int) -> None:
    batch = make_batch(n, d).to(dtype)
    value = value_of(batch, max_memory)
    assert value.dtype == dtype
    assert worst_error(value, batch.gradients(value), *expected_of(batch)) <= limit


@memories
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_hard_data_and_scales_equal_open_clips(family: str, scale: float, dtype: torch.dtype, max_memory: int) -> None:
    batch = make_batch(41, 16, scale=scale, family=family).to(dtype)
    value = value_of(batch, max_memory)
    limit = 1e-11 if dtype == torch.float64 else 5e-6 * max(scale / 14.3, 1)
    assert worst_error(value, batch.gradients(value), *expected_of(batch), scale) <= limit


@memories
@pytest.mark.parametrize("stretch", [10.0, 100.0])
def test_logits_beyond_what_one_exponential_holds_equal_open_clips(stretch: float, max_memory: int) -> None:
    batch = make_batch(41, 16, scale=100.0)
    long = Batch((stretch * batch.x.detach()).requires_grad_(), batch.y, batch.scale, batch.v, batch.t).to(torch.float32)
    value = value_of(long, max_memory)
    expected, wanted = expected_of(long)
    assert relative(value, expected) <= 1e-5
    for actual, exact in zip(long.gradients(value), wanted, strict=True):
        assert relative(actual, exact) <= 1e-3 * stretch / 10


@memories
def test_gradient_of_a_bias_is_zero_and_not_missing(max_memory: int) -> None:
    batch = make_batch(9, 8)
    bias = torch.tensor([-4.0], requires_grad=True)
    value = value_of(batch, max_memory, logit_bias=bias)
    assert relative(value, clip_loss(batch.x, batch.y, batch.scale, bias)) <= 1e-12
    torch.autograd.backward(value)
    assert bias.grad is not None
    assert bias.grad.tolist() == [0.0]


@memories
def test_dictionary_holds_the_value(max_memory: int) -> None:
    batch = make_batch(9, 8)
    parts = InfoNCELoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, output_dict=True)
    assert list(parts) == ["contrastive_loss"]
    assert torch.equal(parts["contrastive_loss"], value_of(batch, max_memory))


@memories
def test_a_teacher_is_ignored(max_memory: int) -> None:
    batch = make_batch(9, 8)
    assert torch.equal(value_of(batch, max_memory, **batch.teacher(), dist_logit_scale=3.0), value_of(batch, max_memory))


@memories
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_features_give_the_loss_of_those_numbers(dtype: torch.dtype, rounding: float, max_memory: int) -> None:
    batch = make_batch(127, 64).to(dtype)
    expected, wanted = expected_of(batch)
    value = value_of(batch, max_memory)
    gradients = batch.gradients(value)
    assert value.dtype == torch.float32
    assert relative(value, expected, floor=1.0) <= 2e-6
    assert relative(gradients[2], wanted[2]) <= 1e-5
    for actual, exact in zip(gradients[:2], wanted[:2], strict=True):
        assert actual.dtype == dtype
        assert relative(actual, exact) <= rounding


@memories
def test_autocast_rounds_what_float32_products_take(max_memory: int) -> None:
    batch = make_batch(127, 64, dtype=torch.float32)
    check_autocast(batch, lambda batch: value_of(batch, max_memory))


@memories
def test_gradients_are_those_of_finite_differences(max_memory: int) -> None:
    batch = make_batch(5, 3, scale=2.0)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = InfoNCELoss(max_memory=max_memory)
    assert torch.autograd.gradcheck(loss, (batch.x, batch.y, batch.scale, bias))


@memories
def test_a_frozen_tower_leaves_the_others_gradient(max_memory: int) -> None:
    batch = make_batch(41, 8)
    _, wanted = expected_of(batch)
    InfoNCELoss(max_memory=max_memory)(batch.x.detach(), batch.y, 14.3).backward()
    assert batch.y.grad is not None
    assert relative(batch.y.grad, wanted[1]) <= 1e-6


@memories
def test_second_derivatives_are_refused_by_name(max_memory: int) -> None:
    batch = make_batch(5, 3)
    (gradient,) = torch.autograd.grad(value_of(batch, max_memory), batch.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.backward(gradient.sum())


def test_function_and_module_are_one() -> None:
    batch = make_batch(9, 8)
    value = info_nce_loss(batch.x, batch.y, batch.scale)
    assert isinstance(value, Tensor)
    assert torch.equal(value, value_of(batch, 2 << 30))
