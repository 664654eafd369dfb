"""What the audits found, as text."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.report import table
from benchmarks.studies.trust.run import Judged

HEADER = ["pairs", "search", "AUC", "trust, right", "trust, shuffled", "wrong share", "of them shuffled", "seconds"]


def report(judged: Sequence[Judged], facts: dict[str, Any]) -> str:
    kinds = dict.fromkeys((one.audit.condition, one.audit.shards) for one in judged)
    rows = [_row([one for one in judged if (one.audit.condition, one.audit.shards) == kind]) for kind in kinds]
    machine = facts["machine"]
    notes = (
        f"{judged[0].pairs:,} training pairs; means of {facts['seeds']} shuffles, in brackets the least and the largest. "
        "AUC: the chance that a right pair scores above a shuffled one. Not all captions of the collection are right to begin "
        f"with, and two pairs may have the same caption. Seconds of one core. {machine['device']}, torch {machine['torch']}, "
        f"commit {machine['commit']}."
    )
    return f"{table(HEADER, rows)}\n\n{notes}"


def _row(judged: Sequence[Judged]) -> list[str]:
    audit = judged[0].audit
    condition = CONDITIONS[audit.condition]

    def of(value: Callable[[Judged], float | None], digits: int = 3) -> str:
        values = [found for one in judged if (found := value(one)) is not None]
        if not values:
            return ""
        low, high = (f"{each:.{digits}f}" for each in (min(values), max(values)))
        return f"{mean(values):.{digits}f}" + (f" ({low} to {high})" if low != high else "")

    return [
        audit.condition,
        "all pairs" if audit.shards == 1 else f"in {audit.shards} parts",
        of(lambda one: one.auc),
        of(lambda one: one.trust_right, 2),
        of(lambda one: one.trust_wrong, 2),
        of(lambda one: one.wrong_share),
        f"{condition.shuffled:.0%}",
        of(lambda one: one.seconds, 0),
    ]
