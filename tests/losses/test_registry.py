"""The registry has every loss, and under a loss's name there is everything about it."""

import typing
from typing import Any

import pytest
import torch

import otter_losses
from otter_losses import OTTERLoss, functional
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES, RegisteredLoss
from tests.helpers.batches import make_batch, make_features
from tests.helpers.checks import relative, worst_error
from tests.helpers.paths import ROOT

every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def test_every_loss_of_the_package_has_a_row() -> None:
    exported = [getattr(otter_losses, name) for name in otter_losses.__all__]
    losses = {each for each in exported if isinstance(each, type) and issubclass(each, PairLoss)}
    assert losses == {row.module for row in LOSSES.values()}
    assert len(LOSSES) == len(losses)


@every_loss
def test_all_that_bears_its_name_is_there(loss: RegisteredLoss) -> None:
    assert LOSSES[loss.name] is loss
    assert getattr(functional, f"{loss.name}_loss") is loss.function
    assert loss.module.__module__ == f"otter_losses.losses.{loss.name}"
    assert (ROOT / "tests" / "losses" / f"test_{loss.name}.py").is_file()
    page = f"docs/{loss.name}.md"
    assert (ROOT / page).is_file()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[`{loss.module.__name__}`]({page})" in readme


@every_loss
def test_its_oracle_computes_what_it_does(loss: RegisteredLoss) -> None:
    batch = make_batch(9, 6)
    value = loss.module()(batch.x, batch.y, batch.scale, **batch.teacher(), dist_logit_scale=batch.scale)
    expected = loss.oracle(batch.x, batch.y, batch.scale, batch.v, batch.t)
    assert isinstance(value, torch.Tensor)
    assert worst_error(value, batch.gradients(value), expected, batch.gradients(expected)) <= 1e-11


@every_loss
def test_it_uses_a_teacher_or_does_not(loss: RegisteredLoss) -> None:
    batch, other = make_batch(9, 6), make_batch(9, 6, seed=7)
    taught = [loss.module()(batch.x, batch.y, batch.scale, **each.teacher()) for each in (batch, other)]
    assert (relative(taught[0], taught[1]) > 1e-3) == loss.uses_teacher


# ---- what a loss of somebody else's may look like ----


def passed_on(*arguments: object, q: float = 0.5, **execution: object) -> torch.Tensor:
    return torch.tensor(q)


class KeywordOnly(PairLoss):
    function = staticmethod(passed_on)

    def __init__(self, *, q: float = 0.7) -> None:
        super().__init__()
        self.q = q


class Preset(OTTERLoss):
    def __init__(self, name: str, **contract: Any) -> None:
        super().__init__(alpha=0.9, epsilon=0.3, **contract)
        self.name = name


def test_options_are_kept_whatever_the_constructor_looks_like() -> None:
    x, y = make_features("random", 6, 4)
    assert float(KeywordOnly(q=0.1)(image_features=x, text_features=y, logit_scale=1.0)) == pytest.approx(0.1)
    assert Preset("mine")(x, y, 10.0) == OTTERLoss(alpha=0.9, epsilon=0.3)(x, y, 10.0)
    assert "alpha=0.9, epsilon=0.3" in repr(Preset("mine"))


def test_a_loss_without_a_function_says_so() -> None:
    class Nameless(PairLoss): ...

    with pytest.raises(NotImplementedError, match="Nameless must name the function it computes"):
        Nameless()


def test_constructors_have_types_that_resolve() -> None:
    for row in LOSSES.values():
        if "__init__" in vars(row.module):
            assert typing.get_type_hints(row.module.__init__)
