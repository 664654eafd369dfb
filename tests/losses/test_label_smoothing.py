"""LabelSmoothingLoss against targets that are written out, and against torch's own label smoothing."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses import InfoNCELoss, LabelSmoothingLoss
from otter_losses.functional import label_smoothing_loss
from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, Batch, make_batch
from tests.helpers.checks import check_autocast, check_half, relative, worst_error
from tests.helpers.losses import memories

Convention = Literal["paper", "torch"]
conventions = pytest.mark.parametrize("convention", ["paper", "torch"])


def expected_value(batch: Batch, smoothing: float, convention: Convention) -> Tensor:
    n = len(batch.x)
    if convention == "torch":
        labels = torch.arange(n)
        logits = batch.scale * batch.x @ batch.y.T
        rows = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (rows + F.cross_entropy(logits.T, labels, label_smoothing=smoothing)) / 2
    targets = torch.full((n, n), smoothing / max(n - 1, 1), dtype=torch.float64).fill_diagonal_(1 - smoothing if n > 1 else 1.0)
    return reference.soft_target_loss(batch.x, batch.y, batch.scale, targets, targets)


def value_of(batch: Batch, smoothing: float, convention: Convention, max_memory: int = 2 << 30, **call: Any) -> Tensor:
    loss = LabelSmoothingLoss(smoothing, convention, max_memory=max_memory)
    value = loss(batch.x, batch.y, batch.scale, **call)
    assert isinstance(value, Tensor)
    return value


def error(batch: Batch, value: Tensor, smoothing: float, convention: Convention) -> float:
    exact = batch.to(torch.float64)
    expected = expected_value(exact, smoothing, convention)
    scale = float(batch.scale.detach())
    return worst_error(value, batch.gradients(value), expected, exact.gradients(expected), scale)


@memories
@conventions
@pytest.mark.parametrize("n", [1, 2, 3, 41, 257, 1030])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_value_and_gradients_equal_written_out_targets(
    n: int, smoothing: float, convention: Convention, dtype: torch.dtype, limit: float, max_memory: int
) -> None:
    batch = make_batch(n, 16).to(dtype)
    value = value_of(batch, smoothing, convention, max_memory)
    assert value.dtype == dtype
    assert error(batch, value, smoothing, convention) <= limit


@memories
@conventions
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_hard_data_and_scales_equal_written_out_targets(
    family: str, scale: float, convention: Convention, max_memory: int
) -> None:
    batch = make_batch(41, 16, scale=scale, family=family, dtype=torch.float32)
    assert error(batch, value_of(batch, 0.2, convention, max_memory), 0.2, convention) <= 1e-5 * max(scale / 14.3, 1)


@conventions
@pytest.mark.parametrize("n", [1, 41])
def test_no_smoothing_is_info_nce(n: int, convention: Convention) -> None:
    batch = make_batch(n, 16)
    expected = InfoNCELoss()(batch.x, batch.y, batch.scale)
    value = value_of(batch, 0.0, convention)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-12


def test_conventions_differ_by_the_pairs_share() -> None:
    """e of torch's convention leaves (N - 1)/N e for the others."""
    batch = make_batch(41, 16)
    assert relative(value_of(batch, 0.2, "torch"), value_of(batch, 0.2 * 40 / 41, "paper")) <= 1e-12
    assert relative(value_of(batch, 0.2, "torch"), value_of(batch, 0.2, "paper")) > 1e-3


@memories
@conventions
def test_gradients_are_those_of_finite_differences(convention: Convention, max_memory: int) -> None:
    batch = make_batch(5, 3, scale=2.0)
    bias = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    loss = LabelSmoothingLoss(0.3, convention, max_memory=max_memory)
    assert torch.autograd.gradcheck(loss, (batch.x, batch.y, batch.scale, bias))


@memories
@conventions
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_features_give_the_loss_of_those_numbers(
    dtype: torch.dtype, rounding: float, convention: Convention, max_memory: int
) -> None:
    batch = make_batch(127, 64).to(dtype)
    exact = batch.to(torch.float64)
    expected = expected_value(exact, 0.1, convention)
    value = value_of(batch, 0.1, convention, max_memory)
    check_half(batch, value, exact, expected, rounding)


@memories
@conventions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_rounds_what_float32_products_take(dtype: torch.dtype, convention: Convention, max_memory: int) -> None:
    batch = make_batch(127, 64).to(dtype)
    check_autocast(batch, lambda batch: value_of(batch, 0.1, convention, max_memory))


@conventions
def test_dictionary_holds_the_value(convention: Convention) -> None:
    batch = make_batch(9, 8)
    parts = LabelSmoothingLoss(0.1, convention)(batch.x, batch.y, batch.scale, output_dict=True)
    assert list(parts) == ["contrastive_loss"]
    assert torch.equal(parts["contrastive_loss"], value_of(batch, 0.1, convention))


def test_the_default_is_the_papers_convention_with_a_tenth() -> None:
    batch = make_batch(9, 8)
    assert torch.equal(LabelSmoothingLoss()(batch.x, batch.y, batch.scale), value_of(batch, 0.1, "paper"))


def test_function_and_module_are_one() -> None:
    batch = make_batch(9, 8)
    value = label_smoothing_loss(batch.x, batch.y, batch.scale, smoothing=0.3, convention="torch")
    assert isinstance(value, Tensor)
    assert torch.equal(value, value_of(batch, 0.3, "torch"))
