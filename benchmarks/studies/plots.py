"""How the studies' plots look."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from benchmarks.studies.training.losses import BASELINE

STYLE: Any = {  # matplotlib types each key on its own
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "savefig.dpi": 160,
}
COLOURS = {
    "InfoNCE": "#444444",
    "label smoothing": "#a0a0a0",
    "KD": "#e08a1e",
    "OTTER": "#1768ac",
    "OTTER without Sinkhorn": "#62b6cb",
    "RobustLoss": "#2a8c4a",
}
INK, FAINT, GRID = "#222222", "#777777", "#e6e6e6"


class Bar(NamedTuple):
    value: float
    low: float
    high: float


def draw_by_noise(axes: Axes, gains: Mapping[str, Mapping[float, Bar]], points: str) -> None:
    """Each loss minus InfoNCE against the share of shuffled captions."""
    for row, (loss, by_noise) in enumerate(gains.items()):
        bars = by_noise.values()
        axes.errorbar(
            [noise + 0.01 * (row - (len(gains) - 1) / 2) for noise in by_noise],
            [bar.value for bar in bars],
            [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]],
            label=f"{loss} minus {BASELINE}",
            color=COLOURS[loss],
            marker="o",
            markersize=6,
            linewidth=1.8,
            capsize=3,
        )
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_xticks(sorted({noise for by_noise in gains.values() for noise in by_noise}))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("captions that belong to another picture")
    axes.set_ylabel(points)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left")
