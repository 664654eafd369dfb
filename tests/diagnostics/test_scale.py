"""scale_check: the trained scale beside the one that is best on held-out pairs."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.diagnostics import scale_check
from tests.helpers.batches import make_features


def held_out(n: int = 96) -> tuple[Tensor, Tensor]:
    x, y = make_features("random", n, 12, seed=4)
    return x, F.normalize(x + 0.8 * y, dim=1)


def in_batch_loss(x: Tensor, y: Tensor, scale: float) -> float:
    z, own = scale * x @ y.T, torch.arange(len(x))
    return float(F.cross_entropy(z, own) + F.cross_entropy(z.T, own)) / 2


def test_the_best_scale_has_the_lowest_loss() -> None:
    x, y = held_out()
    found = scale_check(x, y, 5.0)
    assert found.loss == pytest.approx(in_batch_loss(x, y, 5.0), rel=1e-12)
    assert found.best_loss == pytest.approx(in_batch_loss(x, y, found.best_scale), rel=1e-12)
    for factor in (0.99, 1.01):
        assert in_batch_loss(x, y, factor * found.best_scale) > found.best_loss
    assert found.ratio == pytest.approx(5.0 / found.best_scale, rel=1e-12)


def test_it_warns_above_the_ratio_and_not_below() -> None:
    x, y = held_out()
    best = scale_check(x, y, 1.0).best_scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not scale_check(x, y, 1.75 * best).is_too_sharp
        assert not scale_check(x, y, torch.tensor([0.3 * best])).is_too_sharp
    with pytest.warns(UserWarning, match=r"the trained logit scale is .*, 1\.85 times the .* too sharp .* Start from a lower"):
        assert scale_check(x, y, 1.85 * best).is_too_sharp


def test_wrong_captions_lower_the_best_scale() -> None:
    x, y = held_out()
    shuffled = torch.cat((y[:64], y[64:].roll(1, 0)))
    assert scale_check(x, shuffled, 1.0).best_scale < 0.7 * scale_check(x, y, 1.0).best_scale


def test_batches_of_fewer_pairs_are_easier() -> None:
    x, y = held_out()
    losses = [scale_check(x, y, 5.0, batch_size=size).best_loss for size in (8, 32, 96)]
    assert losses == sorted(losses)
    assert len(set(losses)) == 3


def test_pairs_that_are_told_apart_for_sure_have_no_best_scale() -> None:
    found = scale_check(torch.eye(8), torch.eye(8), 100.0)
    assert found.best_scale == pytest.approx(1e4)
    assert not found.is_too_sharp


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_autocast_change_little(dtype: torch.dtype) -> None:
    x, y = held_out()
    exact = scale_check(x, y, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = scale_check(x.to(dtype), y.to(dtype), torch.tensor(1.0))
    assert found.best_scale == pytest.approx(exact.best_scale, rel=2e-3 if dtype == torch.float32 else 3e-2)


def test_under_no_grad_and_with_a_parameter() -> None:
    x, y = held_out()
    with torch.no_grad():
        found = scale_check(x, y, torch.nn.Parameter(torch.tensor(5.0)))
    assert found == scale_check(x, y, 5.0)


def test_in_inference_mode() -> None:
    x, y = held_out()
    with torch.inference_mode():
        found = scale_check(x.clone(), y.clone(), 5.0)
    assert found == scale_check(x, y, 5.0)


def test_pairs_that_are_not_told_apart_are_named() -> None:
    x, _ = held_out()
    for images, texts in ((x, -x), (x[:1].expand_as(x), x[1:2].expand_as(x))):
        with pytest.warns(UserWarning, match="no logit scale tells the held-out pairs apart"):
            scale_check(images, texts, 5.0)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.eye(4), torch.eye(3), 1.0), {}, ValueError, "need the same"),
        ((torch.eye(4), torch.eye(4), -1.0), {}, ValueError, "logit_scale is -1.0; need a finite number above 0"),
        ((torch.eye(4), torch.eye(4), float("nan")), {}, ValueError, "logit_scale is nan"),
        ((torch.ones(1, 2), torch.ones(1, 2), 1.0), {}, ValueError, "image_features has 1 row; need at least 2 held-out pairs"),
        ((torch.eye(4), torch.eye(4), 1.0), {"batch_size": 1}, ValueError, "batch_size is 1; need an int of at least 2"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scale_check(*arguments, **options)
