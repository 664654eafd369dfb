"""What the demo says at its end: two tables of percentages, and everything behind them as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.hit_at_k import KS
from benchmarks.studies.demo.run import ARMS, TRUSTING, Outcome
from benchmarks.studies.report import spread, table
from benchmarks.studies.training.losses import BASELINE

Scores = Mapping[tuple[str, float], Sequence[Outcome]]
"""The outcomes of each loss and noise level, one a seed, in the same order of seeds throughout."""


def by_cell(outcomes: Sequence[Outcome]) -> dict[tuple[str, float], list[Outcome]]:
    cells: dict[tuple[str, float], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.run.seed):
        cells.setdefault((outcome.run.method, outcome.run.noise), []).append(outcome)
    return cells


def to_baseline(scores: Scores, method: str, noise: float, k: int) -> list[float]:
    """hit@k minus the baseline's, seed by seed."""
    return [ours.test[k] - theirs.test[k] for ours, theirs in zip(scores[method, noise], scores[BASELINE, noise], strict=True)]


def score_table(scores: Scores) -> str:
    """Mean and standard deviation over the seeds."""
    rows = []
    for method, noise in _cells(scores):
        values = [[outcome.test[k] for outcome in scores[method, noise]] for k in KS]
        rows.append([f"{noise:.0%}", method, *(f"{mean(seeds):.1f}{spread(seeds)}" for seeds in values)])
    return table(["shuffled", "loss", *(f"hit@{k}" for k in KS)], rows)


def difference_table(scores: Scores) -> str:
    """Each loss minus the baseline, seed by seed: mean, standard error, and the seeds in which it was ahead."""
    rows = []
    for method, noise in _cells(scores):
        if method == BASELINE:
            continue
        cells = []
        for k in KS:
            differences = to_baseline(scores, method, noise, k)
            error = spread(differences, math.sqrt(len(differences)))
            won = sum(difference > 0 for difference in differences)
            cells.append(f"{mean(differences):+.1f}{error} ({won}/{len(differences)})")
        rows.append([f"{noise:.0%}", method, *cells])
    return table(["shuffled", f"minus {BASELINE}", *(f"hit@{k}" for k in KS)], rows)


def audit_table(scores: Scores) -> str:
    """What the audit says of each noise level's pairs, means over the seeds."""
    rows = []
    for noise in _noises(scores):
        audits = [outcome.audit for outcome in scores[TRUSTING, noise] if outcome.audit is not None]
        found = [audit.found for audit in audits if audit.found is not None]
        area = [audit.auc for audit in audits if audit.auc is not None]
        share = f"{mean(audit.wrong_share for audit in audits):.0%}"
        rows.append([f"{noise:.0%}", share, f"{mean(found):.0%}" if found else "", f"{mean(area):.2f}" if area else ""])
    return table(["shuffled", "taken for wrong", "shuffled ones among as many least trusted", "AUC"], rows)


def verdict(scores: Scores) -> str:
    """One sentence: what trust was worth."""
    k, noises = KS[-1], _noises(scores)
    differences = [to_baseline(scores, TRUSTING, noise, k) for noise in noises]
    won, runs = sum(each > 0 for of in differences for each in of), sum(map(len, differences))
    gains = ", ".join(f"{mean(of):+.1f} points with {noise:.0%}" for of, noise in zip(differences, noises, strict=True))
    return (
        f"Verdict: told what the audit found, {TRUSTING} beat {BASELINE}'s hit@{k} in {won} of {runs} runs; on average by "
        f"{gains} of the captions shuffled."
    )


def sampling_error(scores: Scores, pictures: int) -> float:
    """The standard error in points that a test of so few pictures leaves on the best hit@10, whatever the seeds say."""
    best = max(mean(outcome.test[KS[-1]] for outcome in outcomes) for outcomes in scores.values()) / 100
    return 100 * math.sqrt(best * (1 - best) / pictures)


def write_json(path: Path, outcomes: Sequence[Outcome], facts: Mapping[str, Any]) -> None:
    runs = [
        {
            **{key: value for key, value in asdict(outcome.run).items() if key != "probe"},
            "validation": {f"hit@{k}": value for k, value in outcome.validation.items()},
            "test": {f"hit@{k}": value for k, value in outcome.test.items()},
            "logit_scale": outcome.logit_scale,
            **({"audit": outcome.audit._asdict()} if outcome.audit else {}),
        }
        for outcome in outcomes
    ]
    path.write_text(json.dumps({**facts, "runs": runs}, indent=2) + "\n", encoding="utf-8")


def _noises(scores: Scores) -> list[float]:
    return sorted({noise for _, noise in scores})


def _cells(scores: Scores) -> list[tuple[str, float]]:
    order = list(ARMS)
    return sorted(scores, key=lambda cell: (cell[1], order.index(cell[0])))
