"""What targets look like, in numbers and written down while a loss trains."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, RobustLoss, SigLIPLoss
from otter_losses.diagnostics import log_targets, plan_summary, target_summary
from otter_losses.losses.base import PairLoss
from otter_losses.ops import reference
from tests.helpers.batches import Batch, make_batch
from tests.helpers.groups import make_groups, matches
from tests.helpers.losses import VARIANTS, Build


def expected_summary(plans: tuple[Tensor, Tensor], alpha: Tensor, own: Tensor) -> dict[str, float]:
    """Row by row."""
    found: dict[str, list[float]] = {"alpha": [], "mass_off_pair": [], "effective_matches": [], "top_mass": []}
    for plan in plans:
        for prior, row, same in zip(alpha, plan, own, strict=True):
            found["alpha"].append(float(prior))
            found["mass_off_pair"].append(float((1 - prior) * row[~same].sum()))
            found["effective_matches"].append(float(torch.exp(-(row[row > 0] * row[row > 0].log()).sum())))
            found["top_mass"].append(float(row.max()))
    return {name: sum(values) / len(values) for name, values in found.items()}


def plans_of(name: str, batch: Batch, same: Tensor) -> tuple[Tensor, Tensor]:
    n = len(batch.x)
    if name == "label_smoothing":
        plan = (~same).double() / (~same).sum(1, keepdim=True)
        return plan, plan
    if name == "label_smoothing as torch's":
        plan = torch.full((n, n), 1 / n, dtype=torch.float64)
        return plan, plan
    if name in ("distillation", "robust"):
        return reference.distillation_targets(batch.v, batch.t, 20.0)
    if name == "distillation, off the diagonal":
        scores = (batch.v @ batch.t.T / 0.15).masked_fill(same, -torch.inf)
        return scores.softmax(1), scores.T.softmax(1)
    return matches(batch.v, batch.t, same, 0.01 if "logarithms" in name else 0.15)


def summary(loss: PairLoss, batch: Batch, **call: Any) -> dict[str, float]:
    return target_summary(loss, batch.x, batch.y, batch.scale, **call)


LOSSES: dict[str, Build] = {
    **{name: build for name, build in VARIANTS.items() if name not in ("info_nce", "siglip") and "official" not in name},
    "label_smoothing as torch's": partial(LabelSmoothingLoss, convention="torch"),
}


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_numbers_are_those_of_the_targets(name: str, grouped: bool) -> None:
    batch, loss = make_batch(17, 6), LOSSES[name]()
    groups = make_groups("some", 17) if grouped else torch.arange(17)
    same = groups[:, None] == groups
    call: dict[str, Any] = {"groups": groups} if grouped else {}
    alpha = torch.linspace(0, 1, 17, dtype=torch.float64)
    if isinstance(loss, LabelSmoothingLoss):
        alpha = torch.full((17,), 0.9, dtype=torch.float64)
    else:
        call["alpha"] = alpha
    found = summary(loss, batch, **batch.teacher(), dist_logit_scale=20.0, **call)
    assert found == pytest.approx(expected_summary(plans_of(name, batch, same), alpha, same), rel=1e-6)


@pytest.mark.parametrize("build", [InfoNCELoss, SigLIPLoss])
def test_a_loss_of_the_given_pairs_matches_them_alone(build: Build) -> None:
    batch = make_batch(9, 6)
    expected = {"alpha": 1.0, "mass_off_pair": 0.0, "effective_matches": 1.0, "top_mass": 1.0}
    assert target_summary(build(), batch.x, batch.y, batch.scale) == expected


def test_the_student_teaches_itself_where_nobody_else_does() -> None:
    batch = make_batch(9, 6)
    own = {"dist_image_features": batch.x.detach(), "dist_text_features": batch.y.detach(), "dist_logit_scale": batch.scale}
    for loss in (OTTERLoss(), RobustLoss()):
        found = target_summary(loss, batch.x, batch.y, batch.scale)
        assert found == pytest.approx(summary(loss, batch, **own), rel=1e-12)
        assert found != pytest.approx(summary(loss, batch, **batch.teacher()), rel=1e-3)


def test_the_released_arithmetic_keeps_a_diagonal_without_gammas() -> None:
    batch = make_batch(9, 6)
    paper, released = (build(gamma_image=0.0, gamma_text=0.0) for build in (OTTERLoss, OTTERLoss.official))
    assert target_summary(paper, batch.x, batch.y, 14.3)["mass_off_pair"] == pytest.approx(0.5)
    assert target_summary(released, batch.x, batch.y, 14.3)["mass_off_pair"] < 0.45
    assert target_summary(OTTERLoss.official(), batch.x, batch.y, 14.3) == pytest.approx(
        target_summary(OTTERLoss(), batch.x, batch.y, 14.3), rel=1e-6
    )


def test_a_plan_that_is_sure_of_one_match() -> None:
    plan = torch.eye(5).roll(1, 0)
    found = plan_summary((plan, plan), alpha=torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))
    assert found == pytest.approx({"alpha": 0.6, "mass_off_pair": 0.4, "effective_matches": 1.0, "top_mass": 1.0})
    grouped = plan_summary((plan, plan), 0.0, groups=torch.tensor([0, 0, 1, 1, 2]))
    assert grouped["mass_off_pair"] == pytest.approx(0.6)


class Board:
    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))


def step(loss: PairLoss, seed: int = 0, **call: Any) -> Batch:
    batch = make_batch(9, 6, seed=seed)
    value = loss(batch.x, batch.y, batch.scale, **batch.teacher(), **call)
    torch.autograd.backward(value)
    return batch


def test_steps_are_written_down(tmp_path: Path) -> None:
    loss, board, path = OTTERLoss(), Board(), tmp_path / "run" / "targets.jsonl"
    handle = log_targets(loss, path, board=board, every=3, first_step=10)
    alpha = torch.linspace(0, 0.5, 9, dtype=torch.float64)
    batches = [step(loss, seed, alpha=alpha) for seed in range(7)]
    handle.remove()
    step(loss)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.pop("step") for line in lines] == [10, 13, 16]
    for line, batch in zip(lines, batches[::3], strict=True):
        assert line == summary(loss, batch, **batch.teacher(), alpha=alpha)
        assert line["alpha"] == pytest.approx(0.25)
    assert board.scalars[:2] == [
        ("targets/alpha", lines[0]["alpha"], 10),
        ("targets/mass_off_pair", lines[0]["mass_off_pair"], 10),
    ]
    assert len(board.scalars) == 12


def test_calls_without_a_gradient_are_no_steps(tmp_path: Path) -> None:
    loss, path = DistillationLoss(), tmp_path / "targets.jsonl"
    log_targets(loss, path, every=1)
    batch = make_batch(9, 6)
    with torch.no_grad():
        loss(batch.x, batch.y, batch.scale)
    assert not path.exists()
    step(loss)
    assert len(path.read_text().splitlines()) == 1


def test_the_value_and_its_gradients_do_not_change(tmp_path: Path) -> None:
    plain, logged = OTTERLoss(), OTTERLoss()
    log_targets(logged, tmp_path / "targets.jsonl", every=1)
    batch = make_batch(9, 6)
    gradients = [batch.gradients(loss(batch.x, batch.y, batch.scale, **batch.teacher())) for loss in (plain, logged)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_compiled_loss_is_left_alone(tmp_path: Path) -> None:
    torch.compiler.reset()
    loss, path, batch = OTTERLoss(), tmp_path / "targets.jsonl", make_batch(9, 6, dtype=torch.float32)
    log_targets(loss, path, every=1)
    compiled = torch.compile(loss, backend="aot_eager")
    assert torch.isfinite(compiled(batch.x, batch.y, 14.3))
    assert not path.exists()


def test_tensorboard_takes_it(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    loss = OTTERLoss()
    with tensorboard.SummaryWriter(tmp_path) as writer:
        log_targets(loss, board=writer, every=1)
        step(loss)
    assert any(tmp_path.iterdir())


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path and board are None; need a file, a SummaryWriter, or both"):
        log_targets(OTTERLoss())
    with pytest.raises(ValueError, match="every is 0; need an int of at least 1"):
        log_targets(OTTERLoss(), tmp_path / "targets.jsonl", every=0)
    other: Any = torch.nn.CrossEntropyLoss()
    with pytest.raises(TypeError, match=r"loss is CrossEntropyLoss\(\); need a loss of otter_losses"):
        log_targets(other, tmp_path / "targets.jsonl")
    with pytest.raises(TypeError, match=r"loss is CrossEntropyLoss\(\); need a loss of otter_losses"):
        target_summary(other, torch.eye(4), torch.eye(4), 1.0)
    with pytest.raises(ValueError, match="dist_text_features is None but its counterpart is not"):
        target_summary(OTTERLoss(), torch.eye(4), torch.eye(4), 1.0, dist_image_features=torch.eye(4))
    refused: list[tuple[PairLoss, dict[str, Any], str]] = [
        (OTTERLoss(), {"groups": torch.arange(3)}, r"groups has shape \(3,\); need \(4,\)"),
        (OTTERLoss(), {"alpha": 1.7}, "alpha is 1.7; need"),
        (OTTERLoss(), {"alpha": torch.ones(3)}, r"alpha has shape \(3,\)"),
        (LabelSmoothingLoss(), {"smoothing": 2.0}, "smoothing is 2.0; need"),
        (LabelSmoothingLoss(), {"convention": "mine"}, "convention is 'mine'; need"),
        (RobustLoss(), {"dist_logit_scale": torch.ones(9)}, r"dist_logit_scale has shape \(9,\)"),
    ]
    for loss, call, message in refused:
        with pytest.raises(ValueError, match=message):
            target_summary(loss, torch.eye(4), torch.eye(4), 1.0, **call)
    with pytest.raises(TypeError, match=r"alfa is no argument of target_summary; .* Did you mean alpha"):
        target_summary(OTTERLoss(), torch.eye(4), torch.eye(4), 1.0, alfa=0.5)


def test_a_call_that_the_loss_refuses_is_refused_by_the_loss_and_no_step(tmp_path: Path) -> None:
    loss, path = OTTERLoss(), tmp_path / "targets.jsonl"
    log_targets(loss, path, every=1)
    with pytest.raises(ValueError, match=r"alpha has shape \(3,\)"):
        step(loss, alpha=torch.ones(3, dtype=torch.float64))
    assert not path.exists()


def test_a_logged_loss_is_pickled(tmp_path: Path) -> None:
    loss, path = OTTERLoss(), tmp_path / "targets.jsonl"
    log_targets(loss, path, every=1)
    step(pickle.loads(pickle.dumps(loss)))
    assert len(path.read_text().splitlines()) == 1


def test_a_file_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    loss = OTTERLoss()
    log_targets(loss, tmp_path, every=1)
    with pytest.warns(UserWarning, match="the targets of step 0 were not written to"):
        step(loss)
