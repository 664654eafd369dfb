"""The study of keeping and weighing: who is trained on what, and how it is told."""

from pathlib import Path

import pytest
import torch

from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.keep.arms import ARMS, Arm, rows_of
from benchmarks.studies.keep.report import report
from benchmarks.studies.keep.run import Scored, train
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run


def test_which_rows_are_kept() -> None:
    trust, right = torch.tensor([0.5, 0.49, 1.0, 0.0]), torch.tensor([True, True, False, False])
    kept = {keeps: rows_of(Arm("InfoNCE", keeps), trust, right).tolist() for keeps in ("all", "trusted", "right")}
    assert kept == {"all": [0, 1, 2, 3], "trusted": [0, 2], "right": [0, 1]}


@pytest.mark.usefixtures("one_thread")
def test_every_arm_trains_on_its_rows(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build_problem(collection, CONDITIONS.values())
    count = len(problem.training["40 % shuffled"])
    trust = torch.linspace(0, 1, count)
    monkeypatch.setattr("benchmarks.studies.keep.run.estimate_trust", lambda *_: (trust, 0.0))
    steps: list[int] = []

    def fitted(*arguments: object, **named: object) -> object:
        from benchmarks.studies.registered.run import fitted as whole

        steps.append(arguments[2].epochs)  # type: ignore[attr-defined]
        return whole(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("benchmarks.studies.keep.run.fitted", fitted)
    scored = {arm: train(problem, Run("40 % shuffled", arm, 0, epochs=4), tmp_path) for arm in ARMS}
    assert steps == [4, 4, 8, 4, 4, 4, 4]
    assert {arm: one.kept for arm, one in scored.items() if one.kept == 1} == dict.fromkeys(
        ("InfoNCE", "trust x GCE", "RobustLoss"), 1
    )
    assert scored["InfoNCE on the right pairs"].right == 1
    assert scored["InfoNCE on the kept"].kept == pytest.approx(0.5, abs=1 / count)
    assert scored["InfoNCE"].right == pytest.approx(0.6, abs=1 / count)
    assert len({one.validation for one in scored.values()}) > 3


def test_the_table_has_differences_to_the_first() -> None:
    scored = [
        Scored(Run("all", arm, seed), 0.8, 0.9, 10 + seed + (arm != "InfoNCE") * (2 + seed)) for arm in ARMS for seed in (0, 1)
    ]
    text = report(scored, {"machine": dict.fromkeys(("device", "torch", "commit"))})
    cells = [cell.strip() for cell in text.split("\n")[2].strip("|").split("|")]
    assert cells == ["all", "80%", "90%", "10.5", *["+2.5 ± 0.5"] * 6]
