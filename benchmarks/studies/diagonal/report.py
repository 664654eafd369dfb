"""What the arms say: scores, differences between arms, and the mass given back, as text and as rows of JSON."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from benchmarks.hit_at_k import KS
from benchmarks.studies.diagonal.arms import ARMS
from benchmarks.studies.diagonal.run import CHOSEN, Trained
from benchmarks.studies.report import spread, table
from benchmarks.studies.table.settings import TESTS

STEPS = (("8 ranks minus paper", 3, 0), ("the diagonal", 3, 2), ("the gradient lost in gathering", 2, 1), ("the rest", 1, 0))
"""Which arm minus which."""


def row(trained: Trained) -> dict[str, Any]:
    scores = {f"{test} hit@{k}": round(value, 3) for test, by_k in trained.test.items() for k, value in by_k.items()}
    return {"setting": trained.run.setting, "arm": trained.run.method, "seed": trained.run.seed, **scores, **_mass(trained)}


def report(trained: Sequence[Trained], facts: dict[str, Any]) -> str:
    of = {(one.run.setting, one.run.method, one.run.seed): one for one in trained}
    seeds = range(facts["seeds"])
    arms = list(ARMS)
    scores, steps, masses = [], [], []
    for setting in CHOSEN:
        values = {
            (arm, test, k): [of[setting, arm, seed].test[test][k] for seed in seeds] for arm in arms for test in TESTS for k in KS
        }
        for arm in arms:
            cells = [f"{mean(values[arm, test, k]):.1f}{spread(values[arm, test, k])}" for test in TESTS for k in KS]
            scores.append([setting, arm, *cells])
            shares = {name: mean(_mass(of[setting, arm, seed])[name] for seed in seeds) for name in _mass(trained[0])}
            masses.append([setting, arm, *(f"{value:.0%}" for value in shares.values())])
        for name, ours, theirs in STEPS:
            pairs = [
                [a - b for a, b in zip(values[arms[ours], test, k], values[arms[theirs], test, k], strict=True)]
                for test in TESTS
                for k in KS
            ]
            over_all = [mean(seed) for seed in zip(*pairs, strict=True)]
            steps.append([setting, name, *(_with_interval(each) for each in (*pairs, over_all))])
    columns = [f"{test} @{k}" for test in TESTS for k in KS]
    machine = facts["machine"]
    notes = (
        f"Per cent, {facts['seeds']} seeds: mean ± standard deviation; differences seed by seed with the 95 % interval of the t "
        "distribution, which covers the noise of training, not the choice of test pictures, and is not corrected for their "
        'number. "Given back": the share of a row\'s transported mass that the wrong diagonals put on the given pair, for the '
        f"rows of ranks 2 to {facts['ranks']}, computed from the teacher that each arm ends with. {machine['device']}, torch "
        f"{machine['torch']}, commit {machine['commit']}; {facts['seconds']:.0f} s in {facts['jobs']} processes."
    )
    return "\n\n".join(
        (
            table(["setting", "arm", *columns], scores),
            table(["setting", "difference", *columns, "mean of the six"], steps),
            table(["setting", "teacher of", "given back, mean", "5 %", "median", "95 %"], masses),
            notes,
        )
    )


def _mass(trained: Trained) -> dict[str, float]:
    low, middle, high = np.quantile(trained.given_back, [0.05, 0.5, 0.95])
    named = {"mean": trained.given_back.mean(), "5 %": low, "median": middle, "95 %": high}
    return {f"given back, {name}": round(float(value), 4) for name, value in named.items()}


def _with_interval(values: Sequence[float]) -> str:
    from scipy.stats import t

    if len(values) < 2:
        return f"{mean(values):+.2f}"
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.2f} [{mean(values) - half:+.2f}, {mean(values) + half:+.2f}]"
