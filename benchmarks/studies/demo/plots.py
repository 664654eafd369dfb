"""The demo's picture: what each loss is worth beside InfoNCE."""

import math
from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.studies.demo.report import Scores
from benchmarks.studies.plots import COLOURS, FAINT, GRID, STYLE
from benchmarks.studies.training.losses import BASELINE

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
    for side, method in zip((-1, 1), SHOWN, strict=True):
        pairs = [zip(scores[method, noise], scores[BASELINE, noise], strict=True) for noise in noises]
        differences = [[ours.test[k] - theirs.test[k] for ours, theirs in seeds] for seeds in pairs]
        axes.errorbar(
            [noise + 0.005 * side for noise in noises],
            [mean(seeds) for seeds in differences],
            [stdev(seeds) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0 for seeds in differences],
            label=f"{method} minus {BASELINE}",
            color=COLOURS[method],
            marker="o",
            markersize=6,
            linewidth=1.8,
            capsize=3,
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xticks(noises)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("captions that belong to another picture")
    axes.set_ylabel(f"points of hit@{k}")
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left")
