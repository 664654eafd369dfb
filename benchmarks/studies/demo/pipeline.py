"""The demo from pictures to report."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import otter_losses
from benchmarks.measure import machine
from benchmarks.studies.data.cache import versions
from benchmarks.studies.data.installed.features import DATA_PACKAGES
from benchmarks.studies.data.installed.pairs import CREDITS, Pair, list_pairs
from benchmarks.studies.demo.matches import draw_probe, find_matches, plot_matches
from benchmarks.studies.demo.plots import plot_differences
from benchmarks.studies.demo.problem import Problem, load_problem
from benchmarks.studies.demo.report import (
    audit_table,
    by_cell,
    difference_table,
    sampling_error,
    score_table,
    verdict,
    write_json,
)
from benchmarks.studies.demo.run import ARMS, Run, train
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.training.losses import OURS

QUICK_STEP = 12
SHOWN_NOISE = 0.4
AUDITED = "The audit of the training pairs, by `otter_losses.audit.pair_trust`, which is told neither labels nor the noise rate:"


@dataclass(frozen=True)
class Options:
    """The command line's choices; `quick` stands for a smoke run on a few pictures."""

    seeds: int
    epochs: int
    noises: tuple[float, ...]
    output: Path
    cache: Path
    jobs: int
    quick: bool


def run_demo(options: Options) -> None:
    started = time.perf_counter()
    pairs = list_pairs()[:: QUICK_STEP if options.quick else 1]
    problem, from_cache = load_problem(pairs, options.cache, options.jobs)
    encoded = time.perf_counter()
    print(_describe(pairs, problem, from_cache))

    shown = min(options.noises, key=lambda noise: abs(noise - SHOWN_NOISE))
    probe = draw_probe(len(problem.split.training))
    runs = [
        Run(method, noise, seed, options.epochs, probe if (method, noise, seed) == (OURS, shown, 0) else ())
        for seed in range(options.seeds)
        for noise in options.noises
        for method in ARMS
    ]
    outcomes = run_tasks(train, problem, runs, jobs=options.jobs, label="training", unit="run")
    trained = time.perf_counter()

    scores = by_cell(outcomes)
    error = sampling_error(scores, len(problem.split.test))
    notes = _notes(options.seeds, error, options.quick)
    parts = [score_table(scores), difference_table(scores), notes, AUDITED, audit_table(scores), verdict(scores)]
    tables = "\n\n".join(parts) + "\n"
    print(f"\n{tables}")
    (options.output / "table.md").write_text(tables, encoding="utf-8")
    plot_differences(options.output / "differences.png", scores)
    probed = next(outcome for outcome in outcomes if outcome.probe_features is not None)
    plot_matches(options.output / "matches.png", find_matches(pairs, problem, probed), shown, len(probe))
    finished = time.perf_counter()

    seconds = {"features": encoded - started, "training": trained - encoded, "all": finished - started}
    facts = {
        "quick": options.quick,
        "features_from_cache": from_cache,
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        "jobs": options.jobs,
        "otter_losses": otter_losses.__version__,
        "machine": machine("cpu"),
        "versions": versions(DATA_PACKAGES),
        **_counts(pairs, problem),
        "sampling_error": error,
    }
    write_json(options.output / "results.json", outcomes, facts)
    print(f"Written to {options.output}/: table.md, differences.png, matches.png, results.json. {finished - started:.0f} s.")


def _counts(pairs: Sequence[Pair], problem: Problem) -> dict[str, Any]:
    split = problem.split
    return {
        "pictures": Counter(pair.source for pair in pairs),
        "training_pairs": len(split.training),
        "validation_pictures": len(split.validation),
        "test_pictures": len(split.test),
        "names": len(problem.names),
        "dropped_by_name": split.dropped_by_name,
        "dropped_by_picture": split.dropped_by_picture,
    }


def _describe(pairs: Sequence[Pair], problem: Problem, from_cache: bool) -> str:
    split = problem.split
    sources = ", ".join(f"{count:,} {source}" for source, count in Counter(pair.source for pair in pairs).items())
    return (
        f"Features of {len(pairs):,} drawn pictures, no photographs ({sources}){', from the cache' if from_cache else ''}.\n"
        f"{CREDITS}.\n"
        f"Training: {len(split.training):,} pairs, after dropping {split.dropped_by_name} with a held-out name and "
        f"{split.dropped_by_picture} that look like a held-out picture.\n"
        f"Validation: {len(split.validation):,} pictures. Test: {len(split.test):,} pictures of unseen concepts, "
        f"to be found among {len(problem.names):,} names."
    )


def _notes(seeds: int, error: float, quick: bool) -> str:
    notes = (
        f"Percentages on unseen concepts, {seeds} seed{'s' * (seeds > 1)}; ± is the standard deviation over the seeds, in the "
        "differences the standard error, followed by the seeds won. Seeds vary the training only: that the test is a sample of "
        f"pictures adds about {error:.1f} points to every score."
    )
    return f"{notes}\nA QUICK RUN: too few pictures and epochs for its numbers to mean anything." if quick else notes
