"""What the changes did, as text."""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from benchmarks.studies.collapse.arms import GUARDED, SEEN, UNGUARDED
from benchmarks.studies.collapse.run import Watched
from benchmarks.studies.report import spread, table


def report(found: Sequence[Watched], checked: Sequence[Watched], facts: dict[str, Any]) -> str:
    machine = facts["machine"]
    notes = (
        "Mean of hit@1, 5 and 10 over both validation sets, per cent, and in the first table what the loss saw in the first and "
        f"in the last epoch, means over the seeds. {machine['device']}, torch {machine['torch']}, commit {machine['commit']}."
    )
    parts = [f"## One change at a time, seed {_seeds(found)}", _mechanism(found)]
    if checked:
        parts += [f"## The guard, seed {_seeds(checked)}", _guard(checked)]
    return "\n\n".join([*parts, notes])


def _mechanism(watched: Sequence[Watched]) -> str:
    rows = []
    for arm in dict.fromkeys(one.run.method for one in watched):
        of_arm = [one for one in watched if one.run.method == arm]
        seen = [
            " to ".join(f"{_mean(one.epochs[epoch][column] for one in of_arm):.2f}" for epoch in (0, -1))
            for column in range(len(SEEN))
        ]
        rows.append([arm, *(f"{one.validation:.1f}" for one in of_arm), *seen])
    seeds = [str(one.run.seed) for one in watched if one.run.method == watched[0].run.method]
    return table(["change", *seeds, *SEEN], rows)


def _mean(values: Iterable[float | None]) -> float:
    return mean(value for value in values if value is not None)


def _guard(watched: Sequence[Watched]) -> str:
    of = {(one.run.setting, one.run.method, one.run.seed): one.validation for one in watched}
    rows = []
    for setting in dict.fromkeys(one.run.setting for one in watched):
        seeds = [one.run.seed for one in watched if (one.run.setting, one.run.method) == (setting, UNGUARDED)]
        without, guarded = ([of[setting, arm, seed] for seed in seeds] for arm in (UNGUARDED, GUARDED))
        gains = [ours - theirs for ours, theirs in zip(guarded, without, strict=True)]
        rows.append([setting, *(f"{mean(values):.1f}{spread(values)}" for values in (without, guarded)), f"{mean(gains):+.2f}"])
    return table(["condition", UNGUARDED, GUARDED, "gain"], rows)


def _seeds(watched: Sequence[Watched]) -> str:
    return ", ".join(map(str, dict.fromkeys(one.run.seed for one in watched)))
