"""The table's picture: what OTTER gains and loses in each of the scores."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.studies.plots import COLOURS, FAINT, GRID, STYLE
from benchmarks.studies.table.report import Comparisons
from benchmarks.studies.training.losses import BASELINE, OURS, WITHOUT


def plot_differences(path: Path, compared: Comparisons, title: str) -> None:
    """OTTER minus InfoNCE and minus OTTER without Sinkhorn, with intervals: a row a score, grouped by setting and test."""
    with rc_context(STYLE):
        evaluations = list(compared[BASELINE][0])
        settings = [at.setting for at in evaluations]
        groups = {name: (settings.index(name), settings.index(name) + settings.count(name)) for name in dict.fromkeys(settings)}
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
            for start, end in groups.values():
                if start:
                    axes.axhline(start - 0.5, color="#bbbbbb", linewidth=1)
                axes.axhspan((start + end) / 2 - 0.5, end - 0.5, color=GRID, alpha=0.35, linewidth=0)
            axes.set_title(f"minus {rival}: {mean:+.2f} on average", fontsize=10)
            axes.set_xlabel("points of hit@k")
        panels[0].set_yticks(range(len(evaluations)), [f"{at.test}, {at.k}" for at in evaluations], fontsize=8)
        for name, (start, end) in groups.items():
            place = {"transform": panels[0].get_yaxis_transform(), "ha": "right", "va": "center"}
            panels[0].text(-0.42, (start + end - 1) / 2, name, weight="bold", fontsize=9, **place)
        panels[0].set_ylim(len(evaluations) - 0.4, -0.6)
        figure.suptitle(
            f"{OURS} minus the others, 95 % intervals over concepts and seeds\n{title}; filled: 0 is outside; dotted: mean",
            fontsize=9,
            color=FAINT,
        )
        figure.savefig(path)
