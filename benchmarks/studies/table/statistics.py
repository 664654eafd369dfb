"""Wins and ties, paired tests over seeds with Holm's correction, and a bootstrap over concepts and seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.hit_at_k import KS
from benchmarks.studies.table.run import Outcome
from benchmarks.studies.table.settings import TESTS
from benchmarks.studies.training.losses import OURS

LEVEL = 0.05
DRAWS = 2000


class Evaluation(NamedTuple):
    """One of the 42 scores."""

    setting: str
    test: str
    k: int


Hits = dict[Evaluation, dict[str, NDArray[np.float64]]]
"""For each loss which pictures were hit, (seeds, pictures), 100 or 0: means over both are per cent."""


class Comparison(NamedTuple):
    """Ours minus another loss, in points: the mean over the seeds and its standard deviation, the p-value of the paired t-test,
    alone and by Holm's correction, and the bootstrap's interval."""

    difference: float
    deviation: float
    p: float
    holm: float
    interval: tuple[float, float]


def collect(outcomes: Sequence[Outcome]) -> Hits:
    """In the order of the outcomes' settings; seeds in their order."""
    found: Hits = {}
    methods: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.run.seed):
        methods.setdefault((outcome.run.setting, outcome.run.method), []).append(outcome)
    for setting in dict.fromkeys(outcome.run.setting for outcome in outcomes):
        for test in TESTS:
            for k in KS:
                found[Evaluation(setting, test, k)] = {
                    method: np.stack([100.0 * (outcome.test[test] <= k) for outcome in of_method])
                    for (of, method), of_method in methods.items()
                    if of == setting
                }
    return found


def count_wins(hits: Hits, methods: Sequence[str]) -> dict[str, tuple[int, int]]:
    """In how many evaluations each loss is best alone, and best together with another, by means in tenths of a point."""
    wins, ties = dict.fromkeys(methods, 0), dict.fromkeys(methods, 0)
    for by_method in hits.values():
        means = {method: round(float(by_method[method].mean()), 1) for method in methods}
        best = [method for method in methods if means[method] == max(means.values())]
        for method in best:
            (wins if len(best) == 1 else ties)[method] += 1
    return {method: (wins[method], ties[method]) for method in methods}


def compare(
    hits: Hits, rival: str, concepts: Mapping[str, Sequence[int]], ours: str = OURS, draws: int = DRAWS
) -> tuple[dict[Evaluation, Comparison], tuple[float, tuple[float, float]]]:
    """Ours minus the rival for each evaluation, and the mean over all of them with its interval.

    `concepts` names what each picture of a test set shows: pictures of one concept are drawn together.
    """
    from scipy.stats import ttest_1samp

    differences = {evaluation: of[ours] - of[rival] for evaluation, of in hits.items()}
    by_seed = {evaluation: difference.mean(axis=1) for evaluation, difference in differences.items()}
    spread = {evaluation: values.std(ddof=1) if len(values) > 1 else 0.0 for evaluation, values in by_seed.items()}
    ps = [float(ttest_1samp(by_seed[evaluation], 0).pvalue) if spread[evaluation] > 0 else 1.0 for evaluation in hits]
    drawn = _bootstrap(differences, concepts, draws)
    comparisons = {
        evaluation: Comparison(float(by_seed[evaluation].mean()), float(spread[evaluation]), p, adjusted, _interval(values))
        for evaluation, p, adjusted, values in zip(hits, ps, holm(ps), drawn, strict=True)
    }
    mean = float(np.mean([comparison.difference for comparison in comparisons.values()]))
    return comparisons, (mean, _interval(drawn.mean(axis=0)))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down method."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap(
    differences: Mapping[Evaluation, NDArray[np.float64]], concepts: Mapping[str, Sequence[int]], draws: int
) -> NDArray[np.float64]:
    """The mean difference in each draw, (evaluations, draws). All settings and k share a draw's concepts, those of a setting its
    seeds."""
    generator = np.random.default_rng(0)
    pictures = {}
    for test, shown in concepts.items():
        _, concept = np.unique(np.asarray(shown), return_inverse=True)
        count = int(concept.max()) + 1
        weights = generator.multinomial(count, np.full(count, 1 / count), size=draws)[:, concept].astype(np.float64)
        pictures[test] = weights / weights.sum(axis=1, keepdims=True)
    seeds = {}
    for evaluation, difference in differences.items():
        count = len(difference)
        if evaluation.setting not in seeds:
            seeds[evaluation.setting] = generator.multinomial(count, np.full(count, 1 / count), size=draws) / count
    return np.stack(
        [
            ((pictures[evaluation.test] @ difference.T) * seeds[evaluation.setting]).sum(axis=1)
            for evaluation, difference in differences.items()
        ]
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)
