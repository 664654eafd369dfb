"""The loss in a training step, with a tiny model on the CPU: its numbers mean nothing here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import training_step

LOSSES = ["none", "open_clip ClipLoss", "InfoNCELoss", "OTTERLoss, own teacher", "open_clip SigLipLoss", "SigLIPLoss"]


def test_every_loss_trains_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip", reason="what is trained is open_clip's")
    monkeypatch.setattr(training_step, "CHECKPOINTED_FROM", 12)
    options = f"--device cpu --model tiny --pairs 6 12 --repetitions 2 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["training_step", *options.split()])
    training_step.main()
    rows = json.loads((tmp_path / "training_step.json").read_text())["rows"]
    assert [(row["pairs"], row["loss"], row["status"]) for row in rows] == [(n, each, "ok") for n in (6, 12) for each in LOSSES]
    assert all(row["step"]["median_ms"] > 0 < row["alone"]["median_ms"] for row in rows)


def test_a_step_moves_both_towers_and_the_scale() -> None:
    pytest.importorskip("open_clip", reason="what is trained is open_clip's")
    training = training_step.Training("tiny", 6, "cpu")
    watched = training.model.visual.proj, training.model.text_projection, training.model.logit_scale
    before = [each.detach().clone() for each in watched]
    training.step(training_step.losses()["OTTERLoss, own teacher"])
    assert all((now != then).any() for now, then in zip(watched, before, strict=True))


def test_what_a_step_takes_beyond_one_without_a_loss_is_the_loss_s() -> None:
    def row(loss: str, step: float, **other: Any) -> dict[str, Any]:
        return {"pairs": 64, "loss": loss, "status": "ok", "step": {"median_ms": step, "spread": 0.1}, **other}

    rows = [row("none", 30.0, alone={"median_ms": 0.1}), row("OTTERLoss", 40.0, alone={"median_ms": 8.0})]
    lines = training_step.table([*rows, {"pairs": 64, "loss": "SigLIPLoss", "status": "out of memory"}]).splitlines()
    assert lines[2:] == [
        "| 64 | none | 30 (10%) |  |  | 0.1 |",
        "| 64 | OTTERLoss | 40 (10%) | 10 | 25.0% | 8 |",
        "| 64 | SigLIPLoss | out of memory |  |  |  |",
    ]


def test_without_open_clip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "open_clip":
                raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")

    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(SystemExit, match="pip install open_clip_torch"):
        training_step.open_clip()
