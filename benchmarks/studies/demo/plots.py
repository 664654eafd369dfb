"""The demo's curves."""

from pathlib import Path
from statistics import mean, stdev

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.studies.demo.report import Scores
from benchmarks.studies.demo.run import ARMS
from benchmarks.studies.plots import COLOURS, FAINT, GRID, STYLE


def plot_noise(path: Path, scores: Scores, k: int = 10) -> None:
    """hit@k against the share of shuffled captions, one line a loss, with the standard deviation over the seeds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        noises = sorted({noise for _, noise in scores})
        for offset, method in enumerate(ARMS):
            values = [[outcome.test[k] for outcome in scores[method, noise]] for noise in noises]
            axes.errorbar(
                [noise + 0.004 * (offset - (len(ARMS) - 1) / 2) for noise in noises],
                [mean(seeds) for seeds in values],
                [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values],
                label=method,
                color=COLOURS[method],
                marker="o",
                markersize=5,
                linewidth=2.2 if method == "OTTER" else 1.5,
                elinewidth=1,
                capsize=2,
                zorder=3 if method == "OTTER" else 2,
            )
        axes.set_xticks(noises)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("training captions shuffled")
        axes.set_ylabel(f"hit@{k} on unseen concepts (%)")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        seeds = len(next(iter(scores.values())))
        axes.set_title(f"Drawn pictures, {seeds} seed{'s' * (seeds > 1)}, bars: standard deviation", color=FAINT, fontsize=9)
        figure.savefig(path)
