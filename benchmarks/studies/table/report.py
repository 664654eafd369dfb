"""What the runs say: tables of percentages, the paper's count, and everything behind them as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.hit_at_k import KS, hit_at_k
from benchmarks.studies.report import table
from benchmarks.studies.table.run import Outcome
from benchmarks.studies.table.settings import PAPER
from benchmarks.studies.table.statistics import LEVEL, Comparison, Evaluation, Hits, count_wins
from benchmarks.studies.training.losses import BASELINE, METHODS, OURS

Comparisons = Mapping[str, tuple[Mapping[Evaluation, Comparison], tuple[float, tuple[float, float]]]]
"""By rival: OTTER minus it in every evaluation, and in the mean over them."""


def write_report(folder: Path, found: Hits, compared: Comparisons, outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> str:
    text = "\n\n".join((_count_table(found, compared), *(_score_table(found, compared, k) for k in KS), _notes(found, facts)))
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    content = {
        **facts,
        "wins_and_ties": {"paper's losses": count_wins(found, PAPER), "all losses": count_wins(found, list(METHODS))},
        "otter_less": {
            rival: {
                "mean": mean,
                "evaluations": [{**at._asdict(), **comparison._asdict()} for at, comparison in comparisons.items()],
            }
            for rival, (comparisons, mean) in compared.items()
        },
        "runs": [_run(outcome) for outcome in outcomes],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return text


def _run(outcome: Outcome) -> dict[str, Any]:
    scores = {
        role: {f"{test} hit@{k}": round(value, 3) for test, ranks in tests.items() for k, value in hit_at_k(ranks, KS).items()}
        for role, tests in (("validation", outcome.validation), ("test", outcome.test))
    }
    return {"setting": outcome.run.setting, "loss": outcome.run.method, "seed": outcome.run.seed, **scores}


def _count_table(found: Hits, compared: Comparisons) -> str:
    papers, everyone = count_wins(found, PAPER), count_wins(found, list(METHODS))
    rows = []
    for method in METHODS:
        among = [f"{wins} + {ties}" for wins, ties in (papers.get(method, ("", "")), everyone[method])]
        rows.append([method, among[0] if method in papers else "", among[1], *_against(compared, method)])
    header = ["loss", "best alone + tied, paper's four", "of all five", "OTTER better / worse, Holm", "interval above / below 0"]
    return table([*header, "OTTER minus it, mean [95 %]"], rows)


def _against(compared: Comparisons, rival: str) -> list[str]:
    if rival not in compared:
        return ["", "", ""]
    comparisons, (mean, (low, high)) = compared[rival]
    sure = [one.difference for one in comparisons.values() if one.holm < LEVEL]
    apart = [one.interval for one in comparisons.values()]
    return [
        f"{sum(value > 0 for value in sure)} / {sum(value < 0 for value in sure)}",
        f"{sum(interval[0] > 0 for interval in apart)} / {sum(interval[1] < 0 for interval in apart)}",
        f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]",
    ]


def _score_table(found: Hits, compared: Comparisons, k: int) -> str:
    rows = []
    for evaluation, by_method in found.items():
        if evaluation.k == k:
            comparison = compared[BASELINE][0][evaluation]
            means = {method: round(float(values.mean()), 1) for method, values in by_method.items()}
            cells = [_cell(values, best=means[method] == max(means.values())) for method, values in by_method.items()]
            low, high = comparison.interval
            star = "*" if comparison.holm < LEVEL else ""
            rows.append(
                [evaluation.setting, evaluation.test, *cells, f"{comparison.difference:+.1f}{star} [{low:+.1f}, {high:+.1f}]"]
            )
    methods = list(next(iter(found.values())))
    return f"## hit@{k}\n\n{table(['setting', 'test', *methods, f'{OURS} minus {BASELINE}'], rows)}"


def _cell(values: NDArray[np.float64], best: bool) -> str:
    mean = f"**{values.mean():.1f}**" if best else f"{values.mean():.1f}"
    return f"{mean} ± {values.mean(axis=1).std(ddof=1):.1f}" if len(values) > 1 else mean


def _notes(found: Hits, facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    seeds = len(next(iter(next(iter(found.values())).values())))
    return (
        f"Drawn pictures. Per cent, mean ± standard deviation of {seeds} seeds; in brackets the 95 % interval of a bootstrap "
        "over concepts and seeds, not corrected for the number of scores; * where the paired t-test over seeds stays below 5 % "
        "by Holm's correction over all scores. The paper: OTTER best in 32 of 42, tied in 2. "
        f"{machine['device']}, torch {machine['torch']}, commit {machine['commit']}; {facts['seconds']['training']:.0f} s of "
        f"training in {facts['jobs']} processes."
    )
