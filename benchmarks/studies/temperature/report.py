"""The scales, and what the registered run found there, as text."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.studies.registered.arms import CONTROLS, OURS
from benchmarks.studies.report import table
from benchmarks.studies.temperature.run import Checked
from benchmarks.studies.training.losses import BASELINE
from benchmarks.studies.training.losses import OURS as OTTER

STARTS = (BASELINE, *(name for name in CONTROLS if name.startswith(f"{BASELINE}, scale")))
"""InfoNCE from the condition's start scale, and from lower ones."""
HEADER = (
    "setting",
    "start",
    "trained",
    "best",
    "ratio",
    "best, captions as in training",
    "ratio",
    BASELINE,
    *(f"{name} minus {BASELINE}" for name in (OTTER, "GCE", OURS)),
)


def report(checked: Sequence[Checked], registered: dict[str, Any], facts: dict[str, Any]) -> str:
    """`registered` is the registered run's results.json."""
    machine = facts["machine"]
    rows = [_row([one for one in checked if _key(one) == key], registered) for key in dict.fromkeys(map(_key, checked))]
    notes = (
        f"Scales: means over {facts['seeds']} seeds, lowest to highest of the ratios; held-out pairs are one picture of each "
        "validation concept and its name. The scores are the registered run's: test concepts, five seeds, per cent, the mean of "
        f"six scores. {machine['device']}, torch {machine['torch']}, commit {machine['commit']}."
    )
    return f"{table(HEADER, rows)}\n\n{notes}"


def _key(one: Checked) -> tuple[str, str]:
    return one.run.setting, one.run.method


def _row(of: Sequence[Checked], registered: dict[str, Any]) -> list[str]:
    setting, method = _key(of[0])
    minus = registered[f"minus {BASELINE}"][setting]
    score = mean(one[method] for one in registered["scores"] if one["setting"] == setting)
    ratios = [[one.trained / best for one, best in zip(of, bests, strict=True)] for bests in _bests(of)]
    best, as_trained = (mean(bests) for bests in _bests(of))
    gains = ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*minus[name]) if method == BASELINE else "" for name in (OTTER, "GCE", OURS)]
    return [
        setting,
        f"{of[0].start:.1f}",
        f"{mean(one.trained for one in of):.1f}",
        f"{best:.1f}",
        _range(ratios[0]),
        f"{as_trained:.1f}",
        _range(ratios[1]),
        f"{score:.1f}",
        *gains,
    ]


def _bests(of: Sequence[Checked]) -> tuple[list[float], list[float]]:
    return [one.best for one in of], [one.best_as_trained for one in of]


def _range(values: Sequence[float]) -> str:
    found = sorted(values)
    return f"{mean(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"
