"""The demo's picture: what each loss is worth beside InfoNCE."""

import math
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.studies.demo.report import Scores, to_baseline
from benchmarks.studies.plots import FAINT, STYLE, Bar, draw_by_noise

SHOWN = ("RobustLoss", "OTTER")


def plot_differences(path: Path, scores: Scores) -> None:
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.add_subplot()
        draw_differences(axes, scores)
        seeds = len(next(iter(scores.values())))
        bars = ", bars: standard error" if seeds > 1 else ""
        axes.set_title(f"Drawn pictures, unseen concepts, {seeds} seed{'s' * (seeds > 1)}{bars}", color=FAINT, fontsize=9)
        figure.savefig(path)


def draw_differences(axes: Axes, scores: Scores, k: int = 10) -> None:
    """hit@k minus InfoNCE's against the share of shuffled captions: means of the seeds' differences and their standard errors."""
    noises = sorted({noise for _, noise in scores})
    gains = {method: {noise: _difference(scores, method, noise, k) for noise in noises} for method in SHOWN}
    draw_by_noise(axes, gains, f"points of hit@{k}")


def _difference(scores: Scores, method: str, noise: float, k: int) -> Bar:
    differences = to_baseline(scores, method, noise, k)
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return Bar(mean(differences), mean(differences) - error, mean(differences) + error)
