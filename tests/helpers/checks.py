"""Distances from what is expected, and what every loss must keep."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.helpers.batches import Batch


def relative(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of what is expected, or over the floor where that is larger."""
    difference = torch.linalg.vector_norm(actual.detach().double() - expected.detach().double())
    size = max(float(torch.linalg.vector_norm(expected.detach().double())), floor)
    return float(difference) / size if size else float(difference)


def worst_error(
    value: Tensor, gradients: Sequence[Tensor], expected: Tensor, expected_gradients: Sequence[Tensor], scale: float = 14.3
) -> float:
    """The largest relative error of a loss and its gradients by x, y and scale.

    The loss is a difference of numbers as large as the scale, the gradients are differences of distributions. Where those cancel,
    the error is measured against a share of the terms.
    """
    size = max(abs(scale), 1.0)
    feature_floor = 0.1 * size / len(expected_gradients[0]) ** 0.5
    errors = [relative(value, expected, floor=0.1 * size)]
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert actual.shape == wanted.shape
        errors.append(relative(actual, wanted, 0.1 if wanted.dim() == 0 else feature_floor))
    return max(errors)


def check_autocast(batch: Batch, evaluate: Callable[[Batch], Tensor]) -> None:
    """Under autocast float32 features are rounded, their gradients are not; features of other types stay as they are."""
    multiplied = batch.to(torch.bfloat16).to(torch.float32) if batch.x.dtype == torch.float32 else batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = evaluate(batch)
        gradients = batch.gradients(value)
        with torch.autocast("cpu", enabled=False):
            inner = evaluate(batch)
    plain, expected = evaluate(batch), evaluate(multiplied)
    assert torch.equal(inner, plain)
    assert torch.equal(value, expected)
    check_equal(gradients, multiplied.gradients(expected))
    assert torch.equal(value, plain) == (batch is multiplied)


def check_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """To the bit, and in dtype."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def check_half(batch: Batch, value: Tensor, exact: Batch, expected: Tensor, rounding: float) -> None:
    """The float32 value is that of the rounded features; their gradients differ by the rounding to their own dtype."""
    assert value.dtype == torch.float32
    assert relative(value, expected, floor=1.0) <= 2e-6
    for actual, wanted in zip(batch.gradients(value)[:2], exact.gradients(expected)[:2], strict=True):
        assert actual.dtype == batch.x.dtype
        assert relative(actual, wanted) <= rounding
