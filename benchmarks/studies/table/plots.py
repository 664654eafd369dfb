"""The table's picture: what OTTER gains and loses in each of the scores."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.studies.plots import COLOURS, FAINT, GRID, STYLE
from benchmarks.studies.table.report import Comparisons
from benchmarks.studies.training.losses import BASELINE, OURS, WITHOUT


def plot_differences(path: Path, compared: Comparisons, title: str) -> None:
    """OTTER less InfoNCE and less OTTER without Sinkhorn, with their bootstrap intervals, one line a score."""
    with rc_context(STYLE):
        evaluations = list(compared[BASELINE][0])
        figure = Figure(figsize=(10, 1.4 + 0.2 * len(evaluations)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, rival in zip(panels, (BASELINE, WITHOUT), strict=True):
            comparisons, (mean, _) = compared[rival]
            for row, comparison in enumerate(comparisons.values()):
                low, high = comparison.interval
                apart = low > 0 or high < 0
                axes.plot([low, high], [row, row], color=COLOURS[OURS], linewidth=1.4, alpha=1 if apart else 0.45)
                axes.plot(
                    comparison.difference,
                    row,
                    "o",
                    color=COLOURS[OURS],
                    markersize=4,
                    markerfacecolor=COLOURS[OURS] if apart else "white",
                )
            axes.axvline(0, color="#888888", linewidth=1)
            axes.axvline(mean, color="#b3261e", linewidth=1, linestyle=":")
            for row in range(6, len(evaluations), 6):
                axes.axhline(row - 0.5, color=GRID, linewidth=1)
            axes.set_title(f"less {rival}: mean {mean:+.2f}", fontsize=10)
            axes.set_xlabel("points of hit@k")
        panels[0].set_yticks(range(len(evaluations)), [f"{at.setting}: {at.test} @{at.k}" for at in evaluations], fontsize=8)
        panels[0].set_ylim(len(evaluations) - 0.4, -0.6)
        figure.suptitle(
            f"{OURS} less the others, with 95 % bootstrap intervals over concepts and seeds\n{title}", fontsize=9, color=FAINT
        )
        figure.savefig(path)
