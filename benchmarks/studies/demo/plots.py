"""The demo's two pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from .report import Scores
from .train import METHODS

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
}
INK, FAINT, WRONG, RIGHT, BAR = "#222222", "#777777", "#b3261e", "#1b7f3b", "#cfe3f3"
CREDITS = (
    "Pictures: OpenMoji (CC BY-SA 4.0), Twemoji (CC BY 4.0), Noto Emoji (OFL 1.1), "
    "Font Awesome Free (CC BY 4.0), Material Design Icons (Apache 2.0)"
)


@dataclass(frozen=True)
class Match:
    """A training picture, the caption it was given and its own, and the captions transported to it with their masses."""

    picture: Image.Image
    given: str
    own: str
    transported: Sequence[tuple[str, float]]


def plot_noise(path: Path, scores: Scores, k: int = 10) -> None:
    """hit@k against the share of shuffled captions, one line a loss, with the standard deviation over the seeds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        noises = sorted({noise for _, noise in scores})
        for offset, method in enumerate(METHODS):
            values = [[outcome.test[k] for outcome in scores[method, noise]] for noise in noises]
            axes.errorbar(
                [noise + 0.004 * (offset - (len(METHODS) - 1) / 2) for noise in noises],
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
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.legend(frameon=False)
        seeds = len(next(iter(scores.values())))
        axes.set_title(f"Drawn pictures, {seeds} seed{'s' * (seeds > 1)}, bars: standard deviation", color=FAINT, fontsize=9)
        _save(figure, path)


def plot_matches(path: Path, matches: Sequence[Match], noise: float, batch: int) -> None:
    """Cards of a picture, its given caption and the captions that OTTER's transport matches it with (the paper's Figure 1)."""
    with rc_context(STYLE):
        columns = 2
        rows = -(-len(matches) // columns)
        figure = Figure(figsize=(6.2 * columns, 2.15 * rows + 1.1))
        top = 1 - 0.85 / figure.get_figheight()
        grid = figure.add_gridspec(
            rows,
            2 * columns,
            width_ratios=[1, 2] * columns,
            left=0.015,
            right=0.985,
            top=top,
            bottom=0.05,
            wspace=0.06,
            hspace=0.22,
        )
        for index, match in enumerate(matches):
            row, column = divmod(index, columns)
            _draw_picture(figure.add_subplot(grid[row, 2 * column]), match.picture)
            _draw_captions(figure.add_subplot(grid[row, 2 * column + 1]), match)
        inch = 1 / figure.get_figheight()
        explanation = (
            f"Random training pairs, {noise:.0%} of the captions shuffled. Bars: the mass that optimal transport of the EMA "
            f"teacher's similarities gives to the other {batch - 1} captions of the batch."
        )
        figure.text(0.015, 1 - 0.36 * inch, "What OTTER matches beside the given caption", fontsize=15, color=INK)
        figure.text(0.015, 1 - 0.62 * inch, explanation, fontsize=9, color=FAINT)
        figure.text(0.015, 0.012, CREDITS, fontsize=7.5, color=FAINT)
        _save(figure, path)


def _draw_picture(axes: Axes, picture: Image.Image) -> None:
    axes.imshow(picture, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#dddddd")


def _draw_captions(axes: Axes, match: Match) -> None:
    axes.axis("off")
    lines = len(match.transported)
    axes.set(xlim=(0, 1), ylim=(lines - 0.4, -2.1))
    shuffled = match.given != match.own
    axes.text(0, -1.6, "given:", color=FAINT, va="center", fontsize=9)
    axes.text(0.13, -1.6, _short(match.given, 34), color=WRONG if shuffled else INK, va="center", weight="bold")
    if shuffled:
        axes.text(0, -0.85, f"shuffled; its own is “{_short(match.own, 34)}”", color=FAINT, va="center", fontsize=9)
    largest = max(mass for _, mass in match.transported)
    for line, (caption, mass) in enumerate(match.transported):
        axes.barh(line, 0.84 * mass / largest, height=0.8, color=BAR)
        axes.text(0.012, line, _short(caption, 36), color=RIGHT if caption == match.own else INK, va="center", fontsize=9)
        axes.text(1, line, f"{mass:.1%}", color=FAINT, va="center", ha="right", fontsize=9)


def _short(caption: str, length: int) -> str:
    return caption if len(caption) <= length else caption[: length - 1].rstrip() + "…"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
