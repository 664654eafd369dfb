"""What the transport finds beside the given caption, as in the paper's Figure 1: cards of random training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.studies.data.installed.pairs import CREDITS, Pair, render
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.demo.problem import Problem
from benchmarks.studies.demo.run import Outcome
from benchmarks.studies.plots import FAINT, INK, STYLE
from benchmarks.studies.training.fit import BATCH
from benchmarks.studies.training.losses import EPSILON, GAMMA, ITERATIONS
from otter_losses.functional import otter_targets

SHOWN_PAIRS = 8
SHOWN_CAPTIONS = 4
SHOWN_SIZE = 256
PROBE_SEED = 20_000
"""Far from the seeds of the runs, so that the pairs shown have nothing to do with which captions are shuffled."""
WRONG, RIGHT, BAR = "#b3261e", "#1b7f3b", "#cfe3f3"


@dataclass(frozen=True)
class Match:
    """A training picture, the caption it was given and its own, and the captions transported to it with their masses."""

    picture: Image.Image
    given: str
    own: str
    transported: Sequence[tuple[str, float]]


def draw_probe(training_pairs: int) -> tuple[int, ...]:
    """A random batch of training pairs for the cards."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return tuple(torch.randperm(training_pairs, generator=generator)[:BATCH].tolist())


def find_matches(pairs: Sequence[Pair], problem: Problem, outcome: Outcome) -> list[Match]:
    """The first pairs of the probe: it is in random order, so they are a random choice."""
    run = outcome.run
    if outcome.probe_features is None:
        raise ValueError("the outcome was not probed")
    images, texts = map(torch.from_numpy, outcome.probe_features)
    masses, _ = otter_targets(images, texts, epsilon=EPSILON, iterations=ITERATIONS, gamma_image=GAMMA, gamma_text=GAMMA)
    training = problem.split.training
    given = shuffle_captions(len(training), run.noise, run.seed)
    captions = [pairs[training[given[pair]]].caption for pair in run.probe]
    matches = []
    for row, pair in enumerate(run.probe[:SHOWN_PAIRS]):
        top = masses[row].topk(SHOWN_CAPTIONS)
        transported = [(captions[index], mass) for index, mass in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        own = pairs[training[pair]]
        matches.append(Match(render(own, SHOWN_SIZE), captions[row], own.caption, transported))
    return matches


def plot_matches(path: Path, matches: Sequence[Match], noise: float, batch: int) -> None:
    """Cards of a picture, its given caption and the captions that OTTER's transport matches it with (the paper's Figure 1)."""
    with rc_context(STYLE):
        columns = 2
        rows = -(-len(matches) // columns)
        figure = Figure(figsize=(6.2 * columns, 2.15 * rows + 1.1))
        largest = max(mass for match in matches for _, mass in match.transported)
        top = 1 - 0.95 / figure.get_figheight()
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
            _draw_captions(figure.add_subplot(grid[row, 2 * column + 1]), match, largest)
        inch = 1 / figure.get_figheight()
        explanation = (
            f"Random training pairs, {noise:.0%} of the captions shuffled. Bars: how much of the picture's mass transport gives "
            f"to others of the batch's {batch} captions,\nthe four largest, all on one scale. Red: the given caption is another "
            "picture's. Green: the picture's own caption was found."
        )
        figure.text(0.015, 1 - 0.36 * inch, "What OTTER matches beside the given caption", fontsize=15, color=INK)
        figure.text(0.015, 1 - 0.78 * inch, explanation, fontsize=9, color=FAINT)
        figure.text(0.015, 0.012, CREDITS, fontsize=7.5, color=FAINT)
        figure.savefig(path)


def _draw_picture(axes: Axes, picture: Image.Image) -> None:
    axes.imshow(picture, interpolation="lanczos")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#dddddd")


def _draw_captions(axes: Axes, match: Match, largest: float) -> None:
    axes.axis("off")
    lines = len(match.transported)
    axes.set(xlim=(0, 1), ylim=(lines - 0.4, -2.1))
    shuffled = match.given != match.own
    axes.text(0, -1.6, "given:", color=FAINT, va="center", fontsize=9)
    axes.text(0.13, -1.6, _short(match.given, 34), color=WRONG if shuffled else INK, va="center", weight="bold")
    if shuffled:
        axes.text(0, -0.85, f"shuffled; its own is “{_short(match.own, 34)}”", color=FAINT, va="center", fontsize=9)
    for line, (caption, mass) in enumerate(match.transported):
        axes.barh(line, 0.84 * mass / largest, height=0.8, color=BAR)
        axes.text(0.012, line, _short(caption, 36), color=RIGHT if caption == match.own else INK, va="center", fontsize=9)
        axes.text(1, line, f"{mass:.1%}", color=FAINT, va="center", ha="right", fontsize=9)


def _short(caption: str, length: int) -> str:
    return caption if len(caption) <= length else caption[: length - 1].rstrip() + "…"
