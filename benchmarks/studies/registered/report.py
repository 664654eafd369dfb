"""What the registered run says, once all of it is in: counts, differences, controls, collapses and cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.measure import machine
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.registered import ledger
from benchmarks.studies.registered.arms import ARMS, CONTROLS, MAIN, OURS
from benchmarks.studies.registered.conditions import CONDITIONS, SEEDS, SEVEN
from benchmarks.studies.registered.pipeline import LEDGER, all_runs, missing_runs
from benchmarks.studies.registered.run import estimate_trust
from benchmarks.studies.report import table
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.statistics import LEVEL, Comparison, Evaluation, Hits, collect, compare, count_wins
from benchmarks.studies.training.losses import BASELINE
from benchmarks.studies.training.losses import OURS as OTTER

RIVALS = [name for name in MAIN if name != OURS]
COLLAPSED = 0.75
"""A run has collapsed whose validation mean is below this share of InfoNCE's under the same condition and seed."""

Compared = tuple[dict[Evaluation, Comparison], tuple[float, tuple[float, float]]]


def write_report(*, output: Path, cache: Path, jobs: int) -> str:
    lines = ledger.read(output / LEDGER)
    missing = missing_runs(lines)
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(all_runs())} registered runs are missing; need all of them before the test is read. "
            "Finish them: python -m benchmarks.realpairs.registered"
        )
    problem = build_problem(load_collection(cache, jobs), CONDITIONS.values())
    concepts = {name: test.labels for name, test in problem.test.items()}
    trusts = [estimate_trust(problem, CONDITIONS[name], seed, cache)[1] for name in ("all", "40 % shuffled") for seed in SEEDS]
    hits = collect([ledger.outcome_of(line) for line in lines])
    text = "\n\n".join(
        (
            count_table(hits, concepts),
            f"## Mean of six scores\n\n{condition_table(hits, concepts, list(MAIN))}",
            f"## Controls, mean of six scores\n\n{condition_table(hits, concepts, [BASELINE, OURS, *CONTROLS])}",
            f"## The 42 scores\n\n{score_table(hits)}",
            f"## Collapsed runs\n\n{collapse_table(lines)}",
            f"## Seconds of one core\n\n{cost_table(lines)}\n\nTrust, once for all losses: {mean(trusts):.1f}.",
            "Drawn pictures, frozen encoders. Per cent, means of five seeds; in brackets the 95 % interval of a bootstrap over "
            "concepts and seeds, not corrected for the number of scores.",
        )
    )
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    content = {
        "machine": machine("cpu"),
        "scores": [
            {**at._asdict(), **{method: round(float(values.mean()), 3) for method, values in of.items()}}
            for at, of in hits.items()
        ],
        f"minus {BASELINE}": {
            name: differences(only(hits, settings), concepts)
            for name, settings in {"the 42 scores": SEVEN, **{name: [name] for name in CONDITIONS}}.items()
        },
    }
    (output / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return text


def differences(hits: Hits, concepts: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    """Each loss and control minus InfoNCE, the mean over the scores, and its interval."""
    found = {}
    for name in ARMS:
        if name != BASELINE and all(name in of for of in hits.values()):
            average, bounds = compare(hits, BASELINE, concepts, name)[1]
            found[name] = [round(value, 3) for value in (average, *bounds)]
    return found


def only(hits: Hits, settings: Sequence[str]) -> Hits:
    return {at: of for at, of in hits.items() if at.setting in settings}


def level(hits: Hits, rivals: Sequence[str]) -> int:
    """Scores in which ours is not below any of the rivals, by means in tenths of a point."""
    rounded = [{name: round(float(values.mean()), 1) for name, values in of.items()} for of in hits.values()]
    return sum(all(of[OURS] >= of[rival] for rival in rivals) for of in rounded)


def count_table(hits: Hits, concepts: Mapping[str, Sequence[int]]) -> str:
    """Over the 42 scores: the paper's count, and ours minus each other loss."""
    seven = only(hits, SEVEN)
    wins = count_wins(seven, list(MAIN))
    rows = []
    for name in MAIN:
        against = ["", "", "", ""] if name == OURS else _against(compare(seven, name, concepts, OURS), level(seven, [name]))
        rows.append([name, "{} + {}".format(*wins[name]), *against])
    header = ["loss", "best alone + tied", f"{OURS} level or better", "better / worse, Holm", "interval above / below 0"]
    both = level(seven, [BASELINE, OTTER])
    return (
        f"{table([*header, f'{OURS} minus it, mean [95 %]'], rows)}\n\n"
        f"At least level with both {BASELINE} and {OTTER} in {both} of {len(seven)}."
    )


def _against(compared: Compared, at_least_level: int) -> list[str]:
    comparisons, average = compared
    sure = [one.difference for one in comparisons.values() if one.holm < LEVEL]
    apart = [one.interval for one in comparisons.values()]
    return [
        str(at_least_level),
        f"{sum(value > 0 for value in sure)} / {sum(value < 0 for value in sure)}",
        f"{sum(low > 0 for low, _ in apart)} / {sum(high < 0 for _, high in apart)}",
        interval(*average),
    ]


def interval(value: float, bounds: tuple[float, float]) -> str:
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(value, *bounds)


def condition_table(hits: Hits, concepts: Mapping[str, Sequence[int]], methods: Sequence[str]) -> str:
    """Means of the six scores under each condition, and ours minus InfoNCE and minus OTTER."""
    rows = []
    for condition in CONDITIONS:
        own = only(hits, [condition])
        first = next(iter(own.values()))
        cells = [f"{mean(float(of[name].mean()) for of in own.values()):.1f}" if name in first else "" for name in methods]
        differences = [interval(*compare(own, rival, concepts, OURS)[1]) for rival in (BASELINE, OTTER)]
        rows.append([condition, *cells, *differences])
    return table(["setting", *methods, f"{OURS} minus {BASELINE}", f"{OURS} minus {OTTER}"], rows)


def score_table(hits: Hits) -> str:
    rows = []
    for at, of in only(hits, SEVEN).items():
        means = {name: round(float(of[name].mean()), 1) for name in MAIN}
        cells = [f"**{value:.1f}**" if value == max(means.values()) else f"{value:.1f}" for value in means.values()]
        rows.append([at.setting, at.test, f"hit@{at.k}", *cells])
    return table(["setting", "test", "score", *MAIN], rows)


def collapse_table(lines: Sequence[ledger.Line]) -> str:
    """Collapsed runs of each loss and condition, by validation; conditions without any are left out."""
    values = {(line["setting"], line["method"], line["seed"]): ledger.validation_mean(line) for line in lines}
    collapsed = [
        (setting, method, seed, value, values[setting, BASELINE, seed])
        for (setting, method, seed), value in values.items()
        if value < COLLAPSED * values[setting, BASELINE, seed]
    ]
    if not collapsed:
        return "None."
    rows = [[setting, method, str(seed), f"{value:.1f}", f"{base:.1f}"] for setting, method, seed, value, base in collapsed]
    return table(["setting", "loss", "seed", "validation mean", BASELINE], rows)


def cost_table(lines: Sequence[ledger.Line]) -> str:
    """Of a run of 10 epochs on all pairs."""
    rows = []
    for method in ARMS:
        cells = [
            mean(line["seconds"] for line in lines if line["method"] == method and line["setting"] == setting)
            for setting in ("all", "all, 2 layers")
        ]
        rows.append([method, *(f"{seconds:.1f}" for seconds in cells)])
    return table(["loss", "linear", "2 layers"], rows)
