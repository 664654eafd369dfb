"""The demo's own arithmetic; its pictures and encoders are tried by ``benchmarks/demo.sh --quick``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies.data.installed.features import Features
from benchmarks.studies.demo import __main__ as command
from benchmarks.studies.demo import report
from benchmarks.studies.demo.mass import likeness
from benchmarks.studies.demo.problem import Problem, build_problem
from benchmarks.studies.demo.run import ARMS, TRUSTING, Audit, Outcome, Run, train


@pytest.fixture(scope="module")
def toy() -> Problem:
    """Pictures that are a linear map of their captions, two of each of 100 concepts, and 20 icons."""
    generator = torch.Generator().manual_seed(0)
    concepts = [name for name in (f"thing {index}" for index in range(100)) for _ in range(2)] + [None] * 20
    captions = [concept or f"icon {index}" for index, concept in enumerate(concepts)]
    word = {caption: torch.randn(24, generator=generator) for caption in captions}
    texts = torch.stack([word[caption] for caption in captions])
    texts /= texts.norm(dim=1, keepdim=True)
    images = texts @ torch.randn(24, 40, generator=generator) + 0.05 * torch.randn(len(texts), 40, generator=generator)
    padded = torch.nn.functional.pad(texts, (0, 384 - 24))
    return build_problem(Features(images.numpy(), padded.numpy()), captions, concepts)


def test_problem_labels_each_picture_with_the_features_of_its_name(toy: Problem) -> None:
    held_out = toy.split.validation + toy.split.test
    assert len(toy.names) == 100
    np.testing.assert_array_equal(toy.names[[toy.labels[index] for index in held_out]], toy.features.texts[held_out])
    assert set(toy.labels[200:]) == {-1}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ARMS)
def test_training_learns_unseen_names_and_repeats_itself(toy: Problem, method: str) -> None:
    run = Run(method, 0.2, 0, epochs=25, probe=(0, 5, 9))
    first, second = train(toy, run), train(toy, run)
    assert first.test == second.test
    assert first.test[10] > 40  # chance: 10
    if ARMS[method].teacher:
        assert first.probe_features is not None
        assert [features.shape for features in first.probe_features] == [(3, 384), (3, 384)]
    else:
        assert first.probe_features is None
    assert (first.audit is not None) == (method == TRUSTING)
    if first.audit is not None:
        assert first.audit.found is not None
        assert first.audit.found > 0.5  # by chance: 0.2


def test_similarity_of_texts_sends_mass_to_captions_like_the_given_one(toy: Problem) -> None:
    outcome = train(toy, Run("OTTER", 0.4, 0, epochs=2, probe=tuple(range(len(toy.split.training)))))
    with_texts, without = (likeness(toy, outcome, gamma_text) for gamma_text in (20.0, 0.0))
    assert with_texts[0] > without[0] + 0.05
    assert with_texts[0] > with_texts[1]


def test_tables_by_hand() -> None:
    def outcome(method: str, seed: int, score: float) -> Outcome:
        return Outcome(Run(method, 0.4, seed), {}, dict.fromkeys((1, 5, 10), score), 14.3)

    values = {"InfoNCE": [10.0, 14.0], "OTTER": [13.0, 15.0]}
    scores = report.by_cell([outcome(method, seed, value) for method, row in values.items() for seed, value in enumerate(row)])
    assert "| 40%      | InfoNCE | 12.0 ± 2.8 | 12.0 ± 2.8 | 12.0 ± 2.8 |" in report.score_table(scores)
    assert "| 40%      | OTTER         | +2.0 ± 1.0 (2/2) |" in report.difference_table(scores)
    assert report.sampling_error(scores, 100) == pytest.approx(100 * (0.14 * 0.86 / 100) ** 0.5)


def test_audit_and_verdict_by_hand() -> None:
    audits = {0.0: Audit(0.06, None, None), 0.4: Audit(0.5, 0.86, 0.81)}
    scores = report.by_cell(
        [
            Outcome(
                Run(method, noise, 0), {}, dict.fromkeys((1, 5, 10), score), 14.3, audit=audit if method == TRUSTING else None
            )
            for noise, audit in audits.items()
            for method, score in (("InfoNCE", 10.0), (TRUSTING, 9.5 + 10 * noise))
        ]
    )
    clean, noisy = report.audit_table(scores).splitlines()[2:]
    assert [cell.strip() for cell in clean.split("|")[1:-1]] == ["0%", "6%", "", ""]
    assert [cell.strip() for cell in noisy.split("|")[1:-1]] == ["40%", "50%", "81%", "0.86"]
    assert report.verdict(scores) == (
        "Verdict: told what the audit found, RobustLoss beat InfoNCE's hit@10 in 1 of 2 runs; on average by -0.5 points with 0%, "
        "+3.5 points with 40% of the captions shuffled."
    )


def test_json_holds_every_run(tmp_path: Path) -> None:
    outcomes = [Outcome(Run("KD", 0.2, seed), {1: 3.0}, {1: 2.0}, 15.0) for seed in range(2)]
    report.write_json(tmp_path / "results.json", outcomes, {"names": 7})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["names"] == 7
    assert [run["seed"] for run in written["runs"]] == [0, 1]
    assert written["runs"][0]["test"] == {"hit@1": 2.0}


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "MODULES", ("torch", "no_such_module"))
    with pytest.raises(SystemExit, match=r"^The demo needs no_such_module; install with: pip install -e \.\[demo\]$"):
        command.main(["--output", str(tmp_path), "--cache", str(tmp_path)])


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--noise", "1.5"], ["--jobs", "-1"]])
def test_command_rejects_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--seeds", "--noise", "--output", "--cache", "--jobs", "--quick", "--epochs"))
