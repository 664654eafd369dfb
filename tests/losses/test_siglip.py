"""SigLIPLoss against open_clip's arithmetic, restated here."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import SigLIPLoss
from otter_losses.functional import siglip_loss
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import check_autocast, check_half, relative
from tests.helpers.losses import memories


def open_clip_loss(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | float) -> Tensor:
    logits = scale * x @ y.T + bias
    labels = 2 * torch.eye(len(x), dtype=logits.dtype) - 1
    return -F.logsigmoid(labels * logits).sum() / len(x)


def make_bias(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)


def check(batch: Batch, bias: float, limit: float, max_memory: int) -> None:
    """Gradients are sums of sigmoids times features; nothing cancels to zero here, so errors are relative to them."""
    exact = batch.to(torch.float64)
    own_bias, exact_bias = make_bias(bias, batch.x.dtype), make_bias(bias)
    value = SigLIPLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, own_bias)
    expected = open_clip_loss(exact.x, exact.y, exact.scale, exact_bias)
    assert value.shape == ()
    assert value.dtype == own_bias.dtype
    assert relative(value, expected) <= limit
    gradients = torch.autograd.grad(value, (batch.x, batch.y, batch.scale, own_bias))
    wanted = torch.autograd.grad(expected, (exact.x, exact.y, exact.scale, exact_bias))
    for actual, each in zip(gradients, wanted, strict=True):
        assert actual.shape == each.shape
        assert relative(actual, each, floor=0.02) <= 4 * limit


@memories
@pytest.mark.parametrize("n", [1, 2, 3, 41, 127, 257, 1030])
@pytest.mark.parametrize("d", [8, 384])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_open_clips(n: int, d: int, dtype: torch.dtype, limit: float, max_memory: int) -> None:
    check(make_batch(n, d, scale=10.0).to(dtype), -10.0, limit, max_memory)


@memories
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (100.0, -10.0), (10.0, 5.0)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_hard_data_and_scales_equal_open_clips(
    family: str, scale: float, bias: float, dtype: torch.dtype, limit: float, max_memory: int
) -> None:
    check(make_batch(41, 16, scale=scale, family=family).to(dtype), bias, limit, max_memory)


@memories
def test_a_well_separated_batch_keeps_its_tiny_loss(max_memory: int) -> None:
    """Where every pair is told apart the loss is exp(-margin), not a difference that rounds to zero."""
    x = torch.eye(8)
    value = SigLIPLoss(max_memory=max_memory)(x, x, 60.0, -30.0)
    assert relative(value, open_clip_loss(x.double(), x.double(), torch.tensor(60.0).double(), -30.0)) <= 1e-3


@memories
@pytest.mark.parametrize("form", ["float", "0-D", "[1]", "none"])
def test_bias_may_come_in_any_form(form: str, max_memory: int) -> None:
    batch = make_batch(9, 8)
    forms: dict[str, Tensor | float | None] = {
        "float": -3.0,
        "0-D": torch.tensor(-3.0, requires_grad=True),
        "[1]": torch.tensor([-3.0], requires_grad=True),
        "none": None,
    }
    bias = forms[form]
    value = SigLIPLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, bias)
    exact_bias = make_bias(0.0 if bias is None else -3.0)
    expected = open_clip_loss(batch.x, batch.y, batch.scale, exact_bias)
    assert relative(value, expected) <= 1e-12
    if isinstance(bias, Tensor):
        (gradient,) = torch.autograd.grad(value, bias)
        (wanted,) = torch.autograd.grad(expected, exact_bias)
        assert gradient.shape == bias.shape
        assert relative(gradient.reshape(()), wanted) <= 1e-6


@memories
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_features_give_the_loss_of_those_numbers(dtype: torch.dtype, rounding: float, max_memory: int) -> None:
    batch = make_batch(127, 64, scale=10.0).to(dtype)
    exact = batch.to(torch.float64)
    value = SigLIPLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, -10.0)
    expected = open_clip_loss(exact.x, exact.y, exact.scale, -10.0)
    check_half(batch, value, exact, expected, rounding)


@memories
def test_autocast_rounds_what_float32_products_take(max_memory: int) -> None:
    batch = make_batch(127, 64, dtype=torch.float32)
    loss = SigLIPLoss(max_memory=max_memory)
    check_autocast(batch, lambda batch: loss(batch.x, batch.y, batch.scale, -10.0))


@memories
def test_gradients_are_those_of_finite_differences(max_memory: int) -> None:
    batch = make_batch(5, 3, scale=2.0)
    assert torch.autograd.gradcheck(SigLIPLoss(max_memory=max_memory), (batch.x, batch.y, batch.scale, make_bias(-0.5)))


@memories
def test_a_frozen_tower_leaves_the_others_gradient(max_memory: int) -> None:
    batch = make_batch(41, 8)
    (wanted,) = torch.autograd.grad(open_clip_loss(batch.x, batch.y, batch.scale, -10.0), batch.x)
    SigLIPLoss(max_memory=max_memory)(batch.x, batch.y.detach(), batch.scale.detach(), -10.0).backward()
    assert batch.x.grad is not None
    assert relative(batch.x.grad, wanted) <= 1e-12


@memories
def test_second_derivatives_are_refused_by_name(max_memory: int) -> None:
    batch = make_batch(5, 3)
    value = SigLIPLoss(max_memory=max_memory)(batch.x, batch.y, batch.scale, -1.0)
    (gradient,) = torch.autograd.grad(value, batch.x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.backward(gradient.sum())


def test_dictionary_holds_the_value() -> None:
    batch = make_batch(9, 8)
    parts = SigLIPLoss()(batch.x, batch.y, batch.scale, -10.0, output_dict=True)
    assert list(parts) == ["contrastive_loss"]
    assert torch.equal(parts["contrastive_loss"], SigLIPLoss()(batch.x, batch.y, batch.scale, -10.0))


def test_results_repeat_to_the_bit() -> None:
    batch = make_batch(257, 64, dtype=torch.float32)
    runs = []
    for _ in range(2):
        value = SigLIPLoss()(batch.x, batch.y, batch.scale, -10.0)
        runs.append((value.detach(), *batch.gradients(value)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_function_and_module_are_one() -> None:
    batch = make_batch(9, 8)
    value = siglip_loss(batch.x, batch.y, batch.scale, -3.0)
    assert isinstance(value, Tensor)
    assert torch.equal(value, SigLIPLoss()(batch.x, batch.y, batch.scale, -3.0))
