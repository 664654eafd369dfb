"""The table's statistics and its report."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.studies.table import report, statistics
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import Outcome, Run
from benchmarks.studies.table.settings import PAPER, TESTS
from benchmarks.studies.table.statistics import Evaluation, collect, compare, count_wins, holm
from benchmarks.studies.training.losses import BASELINE, METHODS, OURS


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def made_hits(differences: dict[Evaluation, float], seeds: int = 5, pictures: int = 400) -> statistics.Hits:
    """Hits of losses that differ by so many points, with the noise of drawing."""
    generator = np.random.default_rng(0)
    base = dict.fromkeys(METHODS, 30.0)
    return {
        evaluation: {
            method: np.where(generator.random((seeds, pictures)) < (value + (method == OURS) * difference) / 100, 100.0, 0.0)
            for method, value in base.items()
        }
        for evaluation, difference in differences.items()
    }


def test_wins_and_ties_are_counted_in_tenths() -> None:
    def constant(values: dict[str, float]) -> dict[str, np.ndarray]:
        return {method: np.full((2, 3), value) for method, value in values.items()}

    low = dict.fromkeys(PAPER, 1.0)
    hits = {
        Evaluation("a", "t", 1): constant({**low, "OTTER": 2.0}),
        Evaluation("a", "t", 5): constant({**low, "OTTER": 2.04, "KD": 2.03}),
        Evaluation("a", "t", 10): constant({**low, "InfoNCE": 3.0}),
    }
    assert count_wins(hits, PAPER) == {"InfoNCE": (1, 0), "label smoothing": (0, 0), "KD": (0, 1), "OTTER": (1, 1)}


def test_comparison_finds_a_true_difference_and_covers_it() -> None:
    hits = made_hits({Evaluation("a", "t", 1): 15.0, Evaluation("a", "t", 5): 0.0, Evaluation("b", "t", 5): 0.0})
    compared, (mean, (low, high)) = compare(hits, BASELINE, {"t": list(range(400))})
    first, second, third = compared.values()
    ours, theirs = (hits[Evaluation("a", "t", 1)][method].mean(axis=1) for method in (OURS, BASELINE))
    assert first.difference == pytest.approx(ours.mean() - theirs.mean())
    assert first.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert first.holm == pytest.approx(3 * first.p)
    assert first.interval[0] < 15 < first.interval[1]
    assert first.interval[0] > 0
    assert all(one.interval[0] < 0 < one.interval[1] and one.holm > 0.05 for one in (second, third))
    assert mean == pytest.approx(np.mean([one.difference for one in compared.values()]))
    assert low < 5 < high


def test_bootstrap_draws_concepts_whole() -> None:
    hits = made_hits({Evaluation("a", "t", 1): 10.0}, seeds=1)
    repeated = {at: {method: np.repeat(values, 6, axis=1) for method, values in of.items()} for at, of in hits.items()}
    at = Evaluation("a", "t", 1)

    def width(found: statistics.Hits, labels: list[int]) -> float:
        low, high = compare(found, BASELINE, {"t": labels})[0][at].interval
        return high - low

    alone = width(hits, list(range(400)))
    clustered = width(repeated, [index // 6 for index in range(2400)])
    ignorant = width(repeated, list(range(2400)))
    assert clustered == pytest.approx(alone, rel=1e-9)
    assert ignorant < 0.6 * clustered


def test_report_says_what_the_runs_say(tmp_path: Path, problem: Problem) -> None:
    generator = np.random.default_rng(0)

    def ranks(method: str) -> dict[str, np.ndarray]:
        most = 3 if method == OURS else 40
        return {test: generator.integers(1, most, len(problem.test[test].pictures)).astype(np.int32) for test in TESTS}

    outcomes = [
        Outcome(Run(setting, method, seed), ranks(method), ranks(method), 20.0)
        for setting in ("all", "keywords")
        for method in METHODS
        for seed in range(3)
    ]
    found = collect(outcomes)
    assert len(found) == 12
    compared = {
        rival: compare(found, rival, {name: test.labels for name, test in problem.test.items()}, draws=50)
        for rival in METHODS
        if rival != OURS
    }
    facts = {"machine": {"device": "a CPU", "torch": "2", "commit": "c"}, "seconds": {"training": 3.0}, "jobs": 2}
    text = report.write_report(tmp_path, found, compared, outcomes, facts)
    written = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert "| OTTER                  | 12 + 0" in text
    assert written["wins_and_ties"]["all losses"]["OTTER"] == [12, 0]
    assert len(written["otter_less"][BASELINE]["evaluations"]) == 12
    assert len(written["runs"]) == len(outcomes)
    first = written["runs"][0]
    expected = 100 * np.mean(outcomes[0].test[TESTS[0]] <= 5)
    assert first["test"][f"{TESTS[0]} hit@5"] == pytest.approx(expected, abs=1e-3)
