"""The registry has every loss, and under a loss's name there is everything about it."""

import re

import pytest
import torch

import otter_losses
from otter_losses import functional
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES, RegisteredLoss
from tests.helpers.batches import make_batch
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
    assert re.search(rf"^\| `{loss.module.__name__}` \|.*\| \[{page}\]\({page}\) \|$", readme, re.MULTILINE)


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
