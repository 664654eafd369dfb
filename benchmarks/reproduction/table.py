"""The paper's numbers beside ours: every cell of ours is read from a result file of ``evaluate``, or is empty.

Results are put in one table only if they answer the same question (class bank, labels, pictures, prompts) about models that were
trained alike (data, encoders, optimisation, steps), the loss and the seed apart; everything else is refused with what differs.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.studies.report import table as markdown

from . import config, results

PAPER_METRICS = tuple((benchmark, f"hit@{k}") for benchmark in ("goi", "in10k") for k in (1, 5, 10))
PAPER: Mapping[str, tuple[float, ...]] = {
    "InfoNCE": (26.8, 55.1, 66.4, 10.9, 29.4, 40.5),
    "label smoothing": (26.3, 55.9, 67.5, 10.1, 29.6, 39.8),
    "KD": (26.7, 55.3, 67.1, 10.0, 27.5, 38.5),
    "OTTER": (29.1, 59.6, 70.9, 12.0, 31.8, 42.1),
}
"""Flat hit@k in per cent, as the authors published it with their code: CC3M, ResNet-50 and DeCLUTR-Sci-base, one run each."""

FREE = frozenset(
    {"train.seed", "train.log_every", "train.diagnose_every", "train.save_every", "data.workers", "data.max_bad_share"}
)
"""Settings in which models of one table may differ, beside the loss: they change no expected score."""

CONSTANT = "one answer for all"


class Result(NamedTuple):
    """A result file, flattened: everything that must agree, and the scores."""

    path: Path
    label: str
    seed: int
    benchmark: str
    loss: dict[str, Any]
    setting: dict[str, Any]
    question: dict[str, Any]
    scores: dict[str, float]
    constant: dict[str, float]
    model: dict[str, Any]
    pictures: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``table``."""
    parser.add_argument(
        "results", type=Path, nargs="*", help="result files of evaluate, or folders of them; none for the paper alone"
    )


def run(options: argparse.Namespace) -> None:
    """Prints the table."""
    print(report(read_all(options.results)))


def read_all(paths: Iterable[Path]) -> list[Result]:
    """Result files, and all those in folders.

    Raises:
        ValueError: a path with no result in it, or a file that is none.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"there is no result file in {path}; evaluate writes them")
        files += inside
    return [flatten(path, results.read(path)) for path in dict.fromkeys(files)]


def flatten(path: Path, found: Mapping[str, Any]) -> Result:
    """What a table needs of a result file.

    Raises:
        ValueError: the result is not of a checkpoint of ``train``.
    """
    model, benchmark = found["model"], dict(found["benchmark"])
    if "config" not in model:
        raise ValueError(f"{path} does not say which configuration was trained; only checkpoints of train go into the table")
    settings = by_name(model["config"])
    loss = {key: value for key, value in settings.items() if key.startswith("loss.") or key == "model.temperatures"}
    setting = {key: value for key, value in settings.items() if key not in loss and key not in FREE}
    setting |= {key: model[key] for key in ("step", "pairs", "weights")}
    constant = benchmark.pop("constant", {})
    question = benchmark | {"pictures": found["pictures"]["scored"]}
    return Result(
        path=path,
        label=str(loss["loss.label"] or loss["loss.name"]),
        seed=settings["train.seed"],
        benchmark=benchmark["name"],
        loss=loss,
        setting=setting,
        question=question,
        scores=found["scores"],
        constant=constant,
        model=model,
        pictures=found["pictures"],
    )


def check(found: Sequence[Result]) -> None:
    """Refuses results that cannot stand in one table.

    Raises:
        ValueError: what differs, in which files.
    """
    cells: dict[tuple[str, int, str], Result] = {}
    for result in found:
        same_loss = next(other for other in found if other.label == result.label)
        same_question = next(other for other in found if other.benchmark == result.benchmark)
        _same(found[0], result, "setting", "trained differently")
        _same(same_loss, result, "loss", f"two losses called {result.label!r}")
        _same(same_question, result, "question", f"different questions called {result.benchmark!r}")
        twin = cells.setdefault((result.label, result.seed, result.benchmark), result)
        if twin is not result:
            raise ValueError(
                f"{twin.path} and {result.path} are both {result.label}, seed {result.seed}, on {result.benchmark}: leave one out"
            )


def report(found: Sequence[Result]) -> str:
    """Both tables, and what was run, as Markdown.

    Raises:
        ValueError: as `check` does.
    """
    check(found)
    parts = [
        "Flat hit@k in per cent on Google Open Images (GOI) and ImageNet 10K (IN10K). Paper: CC3M, ResNet-50 and "
        "DeCLUTR-Sci-base, one run each. Ours: mean ± standard deviation over seeds (their number); empty where nothing was run.",
        _paper_table(found),
    ]
    others = list(dict.fromkeys((r.benchmark, metric) for r in found for metric in r.scores))
    others = [metric for metric in others if metric not in PAPER_METRICS]
    if others:
        parts += ["What the authors did not publish beside it:", _own_table(found, others)]
    parts.append(_what_was_run(found))
    return "\n\n".join(parts)


def cell(values: Sequence[float]) -> str:
    """Mean ± standard deviation (number); the value alone if there is one, nothing if there is none.

    Example:
        >>> cell([29.0, 30.0]), cell([29.04]), cell([])
        ('29.5 ± 0.7 (2)', '29.0', '')
    """
    if len(values) < 2:
        return "".join(f"{value:.1f}" for value in values)
    return f"{mean(values):.1f} ± {stdev(values):.1f} ({len(values)})"


def by_name(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a configuration by their full names.

    Example:
        >>> by_name({"train": {"batch": 512}, "loss": {"options": {"alpha": 0.5}}})
        {'train.batch': 512, 'loss.options': {'alpha': 0.5}}
    """
    return {f"{section}.{name}": value for section, table in tables.items() for name, value in table.items()}


def _paper_table(found: Sequence[Result]) -> str:
    rows = []
    for label in dict.fromkeys([*PAPER, *(result.label for result in found)]):
        if label in PAPER:
            rows.append([label, "paper", *(f"{value:.1f}" for value in PAPER[label])])
        rows.append([label, "ours", *(cell(_values(found, label, *metric)) for metric in PAPER_METRICS)])
    rows.append([CONSTANT, "ours", *(_constant(found, *metric) for metric in PAPER_METRICS)])
    names = {"goi": "GOI", "in10k": "IN10K"}
    return markdown(["loss", "", *(f"{names[benchmark]} {metric}" for benchmark, metric in PAPER_METRICS)], rows)


def _own_table(found: Sequence[Result], metrics: Sequence[tuple[str, str]]) -> str:
    labels = list(dict.fromkeys(result.label for result in found))
    rows = [
        [f"{benchmark} {metric}", *(cell(_values(found, label, benchmark, metric)) for label in labels)]
        for benchmark, metric in metrics
    ]
    for row, metric in zip(rows, metrics, strict=True):
        row.append(_constant(found, *metric))
    return markdown(["metric", *labels, CONSTANT], rows)


def _values(found: Sequence[Result], label: str, benchmark: str, metric: str) -> list[float]:
    return [
        result.scores[metric]
        for result in found
        if (result.label, result.benchmark) == (label, benchmark) and metric in result.scores
    ]


def _constant(found: Sequence[Result], benchmark: str, metric: str) -> str:
    """The labels are the same for all results, and so is this."""
    return cell([result.constant[metric] for result in found if result.benchmark == benchmark and metric in result.constant][:1])


def _what_was_run(found: Sequence[Result]) -> str:
    if not found:
        return "Nothing was run."
    lines = []
    paper = by_name(config.load(["info_nce"]).as_dict())
    differences = [
        f"{key} is {value!r} (paper: {paper[key]!r})"
        for key, value in found[0].setting.items()
        if key in paper and key not in FREE and value != paper[key]
    ]
    if found[0].setting["pairs"] != paper["data.pairs"]:
        differences.append(f"{found[0].setting['pairs']:,} training pairs (paper: {paper['data.pairs']:,})")
    if differences:
        lines.append("NOT the paper's setting, so not comparable with its numbers: " + "; ".join(differences) + ".")
    lines.append("What was run:")
    for result in found:
        pictures, model = result.pictures, result.model
        left_out = f"{pictures['missing']} missing, {pictures['bad']} unreadable left out"
        lines.append(
            f"- {result.label}, seed {result.seed}, {result.benchmark}: {pictures['scored']:,} pictures ({left_out}); "
            f"{model['checkpoint']} ({model['sha256'][:12]}) after {model['step']:,} steps; {result.path.name}"
        )
    return "\n".join(lines)


def _same(one: Result, other: Result, what: str, problem: str) -> None:
    a, b = getattr(one, what), getattr(other, what)
    differing = [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if differing:
        shown = "; ".join(f"{key} is {a.get(key)!r} and {b.get(key)!r}" for key in differing[:5])
        raise ValueError(f"{problem}: in {one.path} and {other.path} {shown}. Make a table of each kind.")
