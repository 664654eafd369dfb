"""The documentation's pictures, drawn from the committed results: ``python -m benchmarks.pictures``."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.measure import RESULTS
from benchmarks.studies.demo import plots as demo
from benchmarks.studies.plots import COLOURS, FAINT, GRID, STYLE, Bar, draw_by_noise
from benchmarks.studies.table import plots as table
from benchmarks.studies.table.statistics import Comparison, Evaluation
from benchmarks.studies.training.losses import BASELINE

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
RIGHT, WRONG = "#2a8c4a", "#c0392b"
TIMED = {"InfoNCELoss": COLOURS["InfoNCE"], "OTTERLoss": COLOURS["OTTER"], "released OTTER": COLOURS["KD"]}
"""Whose time over eager InfoNCE's is drawn."""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for draw in (draw_hero, draw_audit, draw_demo, draw_table, draw_registered, draw_speed, draw_gpu):
        print(draw())


@cache
def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def save(name: str, draw: Callable[[Figure], None], width: float, height: float) -> Path:
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        path = PICTURES / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
    return path


def draw_hero() -> Path:
    """Which pairs are wrong, and what it brings to know."""

    def draw(figure: Figure) -> None:
        seen, worth = figure.subplots(1, 2)
        _scores(seen)
        draw_by_noise(worth, _registered_by_noise(), "points, mean of hit@1, 5 and 10")
        seen.set_title("Which pairs are wrong?")
        worth.set_title("Does it help to know?")

    return save("hero", draw, 9.6, 3.5)


def _registered_by_noise() -> dict[str, dict[float, Bar]]:
    minus = read("registered/results.json")[f"minus {BASELINE}"]
    settings = {0.0: "all", 0.2: "20 % shuffled", 0.4: "40 % shuffled", 0.6: "60 % shuffled"}
    return {loss: {noise: Bar(*minus[name][loss]) for noise, name in settings.items()} for loss in demo.SHOWN}


def draw_audit() -> Path:
    """What the audit sees of right and of wrong pairs, and what it makes of the share of wrong ones."""

    def draw(figure: Figure) -> None:
        seen, share = figure.subplots(1, 2, width_ratios=(3, 2))
        _scores(seen)
        seen.set_title("40 % of 14,114 captions belong to another picture")
        for name, true in (("all", 0.0), ("20 % shuffled", 0.2), ("40 % shuffled", 0.4), ("60 % shuffled", 0.6)):
            share.plot(true, mean(one["wrong_share"] for one in _audits(name)), "o", color=RIGHT)
        on_topic = mean(one["wrong_share"] for one in _audits("40 % within source"))
        share.plot(0.4, on_topic, "o", color=WRONG)
        share.annotate("wrong, but on topic", (0.4, on_topic), (-40, -16), textcoords="offset points", fontsize=9)
        share.axline((0, 0), slope=1, color="#888888", linewidth=1)
        share.set(xlabel="truth", ylabel="estimate", xlim=(-0.03, 0.7), ylim=(-0.03, 0.7), title="Share of wrong pairs")
        for axis in (share.xaxis, share.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    return save("audit", draw, 9.6, 3.5)


def _audits(condition: str) -> list[Any]:
    """One a seed, of all pairs at once."""
    return [
        one
        for one in read("trust/trust.json")["audits"]
        if one["audit"]["condition"] == condition and one["audit"]["shards"] == 1
    ]


def _scores(axes: Axes) -> None:
    """Of right and of wrong pairs, one upon the other."""
    histogram = _audits("40 % shuffled")[0]["histogram"]
    edges = histogram["edges"]
    middles, width = [(low + high) / 2 for low, high in pairwise(edges)], edges[1] - edges[0]
    axes.bar(middles, histogram["wrong"], width, color=WRONG, label="wrong pairs")
    axes.bar(middles, histogram["right"], width, histogram["wrong"], color=RIGHT, label="right pairs")
    axes.set(xlabel="score of the audit", ylabel="pairs")
    axes.set_xticks([-2, 0, 2, 4, 6], ["-2", "0", "2", "4", "6 and above"])
    axes.legend(frameon=False, loc="upper left")


def draw_demo() -> Path:
    """The demo's own picture again."""
    path = RESULTS / "demo" / "differences.png"
    demo.plot_differences(path, _of_demo())
    return path


def _of_demo() -> dict[tuple[str, float], list[Any]]:
    scores: dict[tuple[str, float], list[Any]] = {}
    for run in sorted(read("demo/results.json")["runs"], key=lambda run: run["seed"]):
        test = {int(name.removeprefix("hit@")): value for name, value in run["test"].items()}
        scores.setdefault((run["method"], run["noise"]), []).append(SimpleNamespace(test=test))
    return scores


def draw_table() -> Path:
    """The 42 scores' own picture again."""
    results = read("realpairs/results.json")
    compared = {
        rival: (
            {
                Evaluation(one["setting"], one["test"], one["k"]): Comparison(
                    one["difference"], one["deviation"], one["p"], one["holm"], tuple(one["interval"])
                )
                for one in of["evaluations"]
            },
            (of["mean"][0], tuple(of["mean"][1])),
        )
        for rival, of in results["otter_less"].items()
    }
    path = RESULTS / "realpairs" / "differences.png"
    table.plot_differences(path, compared, f"Drawn pictures, frozen encoders, {results['seeds']} seeds")
    return path


def draw_registered() -> Path:
    """What RobustLoss and OTTER are worth beside InfoNCE, under each condition of the registered run."""
    minus: Mapping[str, Mapping[str, Sequence[float]]] = read("registered/results.json")[f"minus {BASELINE}"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, of in enumerate(minus.values()):
            for offset, loss in ((-0.16, "RobustLoss"), (0.16, "OTTER")):
                value, low, high = of[loss]
                axes.plot([low, high], [row + offset] * 2, color=COLOURS[loss], linewidth=1.6)
                axes.plot(
                    value, row + offset, "o", color=COLOURS[loss], markersize=5, label=None if row else f"{loss} minus {BASELINE}"
                )
        axes.axvline(0, color="#888888", linewidth=1)
        axes.axhline(0.5, color=GRID, linewidth=1)
        axes.set_yticks(range(len(minus)), list(minus))
        axes.set_ylim(len(minus) - 0.4, -0.6)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        axes.set_xlabel("points, mean of six scores, with 95 % intervals")
        axes.legend(frameon=False)

    return save("registered", draw, 8, 7)


def _save_times(picture: str, times: Mapping[tuple[int, str], float], eager: str, title: str, backend: str = "") -> Path:
    """A bar for each of `TIMED` and batch size, its time over that of the eager loss. `times` is by size and name."""
    sizes = sorted({size for size, name in times if name == eager})
    width = 0.8 / len(TIMED)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (name, colour) in enumerate(TIMED.items()):
            measured = name if name.startswith("released") else name + backend
            ratios = {
                row: times[size, measured] / times[size, eager] for row, size in enumerate(sizes) if (size, measured) in times
            }
            at = [row + (place - (len(TIMED) - 1) / 2) * width for row in ratios]
            axes.bar(at, list(ratios.values()), width * 0.92, color=colour, label=name)
        axes.axhline(1, color="#444444", linewidth=1)
        axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
        axes.set(xlabel="pairs in a batch", ylabel="time / eager InfoNCE")
        axes.set_title(title, color=FAINT, fontsize=9)
        axes.legend(frameon=False, fontsize=9)

    return save(picture, draw, 6.5, 3.4)


def draw_speed() -> Path:
    """Forward and backward on a CPU."""
    rows = read("speed-cpu.json")["rows"]
    times = {(row["pairs"], row["name"]): row["median_ms"] for row in rows if row["group"] == "loss"}
    return _save_times("speed-cpu", times, "eager InfoNCE", "Two cores of a CPU, float32, D = 512")


def draw_gpu() -> Path:
    """A step by the clock on a GPU."""
    results = read("gpu-h100.json")
    times = {
        (row["pairs"], row["name"]): row["step"]["median_ms"]
        for row in results["rows"]
        if row["group"] == "losses" and row["width"] == 512 and row["dtype"] == "bfloat16" and row["status"] == "ok"
    }
    device, commit = (results["about"]["machine"][key] for key in ("device", "commit"))
    title = f"{device}, bfloat16, D = 512, kernels of commit {commit}"
    return _save_times("gpu", times, "eager ClipLoss", title, backend=" [triton]")


if __name__ == "__main__":
    main()
