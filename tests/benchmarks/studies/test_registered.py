"""The registered run: its runs, its ledger, its report; the whole of it is run by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.registered import ledger, report
from benchmarks.studies.registered.arms import ARMS, CONTROLS, MAIN, OURS, runs_of, trust_given
from benchmarks.studies.registered.conditions import CONDITIONS, SEVEN
from benchmarks.studies.registered.pipeline import all_runs, missing_runs, reckoning
from benchmarks.studies.registered.run import estimate_trust, given_pairs, train
from benchmarks.studies.table import run as table_run
from benchmarks.studies.table.problem import Problem, build_problem
from benchmarks.studies.table.run import Outcome, Run
from benchmarks.studies.table.settings import SETTINGS, TESTS
from benchmarks.studies.training.heads import INITIAL_SCALE
from benchmarks.studies.training.losses import BASELINE, METHODS
from otter_losses import DistillationLoss, RobustLoss


@pytest.fixture(scope="module")
def registered(collection: Collection) -> Problem:
    return build_problem(collection, CONDITIONS.values())


def test_the_seven_settings_are_the_tables() -> None:
    for name in SEVEN:
        shared = {key: value for key, value in vars(CONDITIONS[name]).items() if key in vars(SETTINGS[name])}
        assert shared == vars(SETTINGS[name])


def test_every_arm_runs_under_every_condition_but_for_start_scales_of_its_own() -> None:
    runs = all_runs()
    assert len(set(runs)) == len(runs) == 5 * (17 * len(ARMS) + 4 * (len(ARMS) - 2))
    for condition in CONDITIONS.values():
        left_out = set(ARMS) - {run.method for run in runs_of(condition, seed=0)}
        assert left_out == ({"InfoNCE, scale 7", "InfoNCE, scale 10"} if condition.start_scale != INITIAL_SCALE else set())
    seeds = [run.seed for run in runs]
    assert seeds == sorted(seeds)


def test_wrong_captions_within_a_source_stay_there(registered: Problem) -> None:
    condition = CONDITIONS["40 % within source"]
    given = given_pairs(registered, condition, seed=3)
    sources = np.array([registered.sources[index] for index in registered.training[condition.name]])
    wrong = given != torch.arange(len(given))
    assert wrong.float().mean().item() == pytest.approx(0.4, abs=0.01)
    assert (sources[given.numpy()] == sources).all()
    anywhere = given_pairs(registered, CONDITIONS["40 % shuffled"], seed=3)
    assert (sources[anywhere.numpy()] != sources).any()


def test_trust_as_it_is_given() -> None:
    estimated, given = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7]), torch.tensor([0, 2, 1, 3, 4])
    assert trust_given("estimated", estimated, given, seed=1).equal(estimated)
    assert trust_given("true", estimated, given, seed=1).tolist() == [1, 0, 0, 1, 1]
    permuted = trust_given("permuted", estimated, given, seed=1)
    assert permuted.sort().values.equal(estimated.sort().values)
    assert not permuted.equal(estimated)


@pytest.mark.usefixtures("one_thread")
def test_trust_is_estimated_once_for_conditions_that_share_pairs(registered: Problem, tmp_path: Path) -> None:
    first, _ = estimate_trust(registered, CONDITIONS["40 % shuffled"], 0, tmp_path)
    second, _ = estimate_trust(registered, CONDITIONS["40 % shuffled, 2 layers"], 0, tmp_path)
    assert first.equal(second)
    assert len(list((tmp_path / "trust").iterdir())) == 1
    right = given_pairs(registered, CONDITIONS["40 % shuffled"], 0) == torch.arange(len(first))
    assert first[right].mean() > first[~right].mean() + 0.2
    estimate_trust(registered, CONDITIONS["40 % within source"], 0, tmp_path)
    assert len(list((tmp_path / "trust").iterdir())) == 2


@pytest.mark.usefixtures("one_thread")
def test_a_run_of_the_paper_is_the_tables(registered: Problem, problem: Problem, tmp_path: Path) -> None:
    run = Run("40 % shuffled", "OTTER", 1, epochs=2)
    ours, theirs = train(registered, run, tmp_path), table_run.train(problem, run)
    assert ours.logit_scale == theirs.logit_scale
    for test in TESTS:
        np.testing.assert_array_equal(ours.test[test], theirs.test[test])


@pytest.mark.usefixtures("one_thread")
def test_arms_differ_by_what_they_change(registered: Problem, tmp_path: Path) -> None:
    def scale_and_ranks(setting: str, method: str) -> tuple[float, list[int]]:
        outcome = train(registered, Run(setting, method, 2, epochs=2), tmp_path)
        return outcome.logit_scale, outcome.validation[TESTS[0]].tolist()

    found = {name: scale_and_ranks("60 % shuffled", name) for name in (*CONTROLS, "GCE", "trust x GCE", OURS, BASELINE)}
    assert len({json.dumps(each) for each in found.values()}) == len(found)
    assert found["InfoNCE, scale 7"][0] == pytest.approx(7, rel=0.1)
    assert found["InfoNCE, weight decay 3"][0] < found["InfoNCE, weight decay 1"][0] < found[BASELINE][0]
    assert scale_and_ranks("all, scale 49.4", BASELINE)[0] == pytest.approx(49.4, rel=0.1)


def test_weights_are_those_of_trust() -> None:
    features = torch.nn.functional.normalize(torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    trust = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    loss = MAIN["trust x GCE"].make()
    log_p = [logits.log_softmax(1).diagonal() for logits in (9 * features[0] @ features[1].T, 9 * features[1] @ features[0].T)]
    expected: Tensor = sum(trust * (1 - (0.3 * each).exp()) / 0.3 for each in log_p).mean() / 2  # type: ignore[union-attr]
    torch.testing.assert_close(loss(*features, torch.tensor(9.0), trust=trust), expected)


@pytest.mark.parametrize(("method", "loss"), [(OURS, RobustLoss), ("RobustLoss, unguarded", DistillationLoss)])
def test_alphas_are_those_of_trust(method: str, loss: type[RobustLoss | DistillationLoss]) -> None:
    x, y, v, t = torch.nn.functional.normalize(torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(2)), dim=-1)
    trust, scale = torch.tensor([1.0, 0.9, 0.0, 0.5, 0.8, 0.1, 0.7]), torch.tensor(9.0)
    teacher = {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": 2 * scale}
    expected = loss(q=0.3)(x, y, scale, **teacher, alpha=0.05 + 0.45 * trust)
    torch.testing.assert_close(ARMS[method].make()(x, y, scale, trust=trust, **teacher), expected)


def outcome(run: Run, hit: float) -> Outcome:
    ranks = {test: np.where(np.arange(40) < 40 * hit, 1, 20).astype(np.int32) for test in TESTS}
    return Outcome(run, ranks, ranks, 14.0)


def test_ledger_gives_back_every_hit(tmp_path: Path) -> None:
    ranks = np.array([1, 2, 5, 6, 10, 11, 900, 1, 3], np.int32)
    run = Run("keywords", "KD", 3, epochs=10)
    ledger.append(tmp_path / "runs", Outcome(run, {"a": ranks[:4]}, {"b": ranks}, 12.5), 4.0, "abc")
    (line,) = ledger.read(tmp_path / "runs")
    found = ledger.outcome_of(line)
    assert found.run == run
    for k in (1, 5, 10):
        np.testing.assert_array_equal(found.test["b"] <= k, ranks <= k)
    assert ledger.validation_mean(line) == pytest.approx(100 * (1 + 3 + 4) / 12)


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    first, second, third = all_runs()[:3]
    for run in (first, second):
        ledger.append(path, outcome(run, 0.3), 4.0, "abc")
    path.write_bytes(path.read_bytes()[:-7])
    assert [ledger.run_of(line) for line in ledger.read(path)] == [first]
    ledger.append(path, outcome(third, 0.3), 4.0, "abc")
    lines = ledger.read(path)
    assert [ledger.run_of(line) for line in lines] == [first, third]
    assert second in missing_runs(lines)
    assert reckoning(lines).startswith(f"2 of {len(all_runs())} runs")


def test_a_run_that_two_workers_finished_counts_once(tmp_path: Path) -> None:
    first, second = all_runs()[:2]
    for run, hit in ((first, 0.3), (second, 0.3), (first, 0.5)):
        ledger.append(tmp_path / "runs", outcome(run, hit), 4.0, "abc")
    lines = ledger.read(tmp_path / "runs")
    assert [ledger.run_of(line) for line in lines] == [first, second]
    assert ledger.validation_mean(lines[0]) == pytest.approx(30)


def write_ledger(path: Path, runs: list[Run]) -> None:
    for run in runs:
        collapsed = run.setting == "all, scale 49.4" and run.method == OURS and run.seed == 4
        hit = 0.02 if collapsed else 0.6 if run.method == OURS else 0.3
        ledger.append(path, outcome(run, hit), 5.0 if METHODS.get(run.method) else 7.0, "abc")


def test_report_waits_for_all_runs(tmp_path: Path) -> None:
    write_ledger(tmp_path / "runs.jsonl", all_runs()[:-2])
    with pytest.raises(SystemExit, match=f"^2 of {len(all_runs())} registered runs are missing"):
        report.write_report(output=tmp_path, cache=tmp_path, jobs=1)


def test_report_says_what_came_out(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build_problem(collection)
    shown = {name: held_out._replace(labels=list(range(40))) for name, held_out in problem.test.items()}
    monkeypatch.setattr(report, "load_collection", lambda *arguments: None)
    monkeypatch.setattr(report, "build_problem", lambda *arguments: replace(problem, test=shown))
    monkeypatch.setattr(report, "estimate_trust", lambda *arguments: (None, 6.0))
    write_ledger(tmp_path / "runs.jsonl", all_runs())
    text = report.write_report(output=tmp_path, cache=tmp_path, jobs=1)
    assert "At least level with both InfoNCE and OTTER in 42 of 42." in text
    assert f"| {OURS} " in text
    collapsed = text.split("## Collapsed runs")[1].split("##")[0]
    assert collapsed.count("\n|") == 2 + 1
    assert f"| all, scale 49.4 | {OURS} " in collapsed
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["scores"]) == len(CONDITIONS) * 6
    less = results["minus InfoNCE"]
    assert less.keys() == {"the 42 scores", *CONDITIONS}
    assert less["the 42 scores"].keys() == set(ARMS) - {BASELINE}
    assert less["40 % shuffled"][OURS] == [30.0, pytest.approx(15, abs=5), pytest.approx(45, abs=5)]
    assert less["40 % shuffled"]["KD"] == [0, 0, 0]
