"""Zero-shot evaluation of a checkpoint, or of any model: flat hit@k and retrieval R@K over pictures on disk.

``python -m benchmarks.reproduction evaluate RUN --benchmark goi ...`` evaluates a checkpoint of ``train``; `evaluate` below
takes any model, as two plain callables.
"""

import argparse
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.hit_at_k import percentages
from benchmarks.measure import machine
from otter_losses import __version__

from . import results, scores
from .bad import Bad
from .banks import PAPER_TEMPLATE
from .tasks import TASKS, Loaded, Question, Task, load
from .zero_shot import KS, EncodeImages, EncodeTexts, ZeroShot, class_gallery, text_gallery


class EvaluationError(RuntimeError):
    """An evaluation whose numbers would not be what they claim to be."""


@dataclass(frozen=True)
class Model:
    """What is evaluated, with the size of its square pictures and what is told about it in the results."""

    encode_images: EncodeImages
    encode_texts: EncodeTexts
    size: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    model: Model,
    task: Task,
    *,
    templates: Sequence[str] = (PAPER_TEMPLATE,),
    ks: Sequence[int] = KS,
    batch: int = 256,
    workers: int = 0,
    max_skipped: float = 0.01,
    progress: Callable[[Iterable[Loaded], int], Iterable[Loaded]] = lambda batches, total: batches,
) -> list[dict[str, Any]]:
    """All questions of a task; every picture is encoded once.

    Args:
        model: the two encoders.
        task: pictures, and what is asked about them (`tasks.TASKS`).
        templates: prompts of the class names.
        ks: those above the number of classes or pictures are left out.
        batch: pictures, or texts, encoded at a time.
        workers: processes that read pictures; 0 reads them here.
        max_skipped: the share of pictures that may be missing or unreadable; these are left out of the scores, and named.
        progress: wraps the batches and their number, for a progress bar.

    Returns:
        One result a question, as `results.write` takes them.

    Raises:
        EvaluationError: too many pictures are missing or cannot be read.
    """
    _check_skipped(task.missing, [], len(task.pictures) + len(task.missing), max_skipped)
    with torch.inference_mode():
        asked = [
            ZeroShot(class_gallery(model.encode_texts, question.bank, templates, batch), _fitting(ks, len(question.bank.names)))
            for question in task.questions
        ]
        bad: list[Bad] = []
        seen: list[int] = []
        features: list[Tensor] = []
        total = -(-len(task.pictures) // batch)
        for loaded in progress(load(task, model.size, batch, workers), total):
            bad += loaded.bad
            if not loaded.positions:
                continue
            encoded = model.encode_images(loaded.pixels)
            for running, question in zip(asked, task.questions, strict=True):
                running.add(encoded, [question.answers[position] for position in loaded.positions])
            if task.captions:
                seen += loaded.positions
                features.append(encoded)
        _check_skipped(task.missing, bad, len(task.pictures) + len(task.missing), max_skipped)
        left_out = {key for key, _ in bad}
        found = [_answered(*pair, task, left_out, templates) for pair in zip(task.questions, asked, strict=True)]
        if task.captions:
            found.append(_retrieved(model, task, torch.cat(features), seen, ks, batch))
    for result in found:
        result["pictures"] |= {
            "missing": len(task.missing),
            "missing_first": task.missing[:20],
            "bad": len(bad),
            "bad_first": [f"{key}: {reason}" for key, reason in bad[:20]],
        }
        result |= {"model": dict(model.facts), "versions": _versions()}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``evaluate``."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of train, or a run's folder for its newest")
    parser.add_argument("--benchmark", choices=list(TASKS), required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument(
        "--classes", type=Path, help="file of the class bank, as it was published (goi, in10k), or a CSV: id,name"
    )
    parser.add_argument(
        "--labels", type=Path, help="file of labels, as published (goi, in10k), or a CSV: image,label or image,caption"
    )
    parser.add_argument("--templates", type=Path, help=f"file with a prompt a line (default: {PAPER_TEMPLATE!r} alone)")
    parser.add_argument("--ks", type=int, nargs="+", default=list(KS))
    parser.add_argument(
        "--teacher", action="store_true", help="evaluate the average of the weights; the paper's numbers are the model's"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of result files")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=8, help="processes that read pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-skipped", type=float, default=0.01, help="share of pictures that may be missing or unreadable")


def run(options: argparse.Namespace) -> None:
    """Evaluates a checkpoint and writes one result file a question."""
    from tqdm import tqdm

    task = TASKS[options.benchmark](options)
    model = load_checkpoint(options.checkpoint, options.device, teacher=options.teacher)
    templates = (PAPER_TEMPLATE,)
    if options.templates:
        templates = tuple(line for line in options.templates.read_text(encoding="utf-8").splitlines() if line.strip())
    for result in evaluate(
        model,
        task,
        templates=templates,
        ks=options.ks,
        batch=options.batch,
        workers=options.workers,
        max_skipped=options.max_skipped,
        progress=lambda batches, total: tqdm(batches, total=total, unit="batch", dynamic_ncols=True),
    ):
        name = result["benchmark"]["name"]
        path = options.out / f"{name}-{model.facts['sha256'][:12]}{'-teacher' if options.teacher else ''}.json"
        results.write(path, result)
        shown = ", ".join(f"{metric} {value:.1f}" for metric, value in result["scores"].items())
        left_out = f"{result['pictures']['missing']} missing and {result['pictures']['bad']} unreadable left out"
        print(f"{name}: {shown} % over {result['pictures']['scored']:,} pictures ({left_out}); {path}")
        if duplicates := result["benchmark"].get("duplicate_names"):
            print(f"  {len(duplicates)} names belong to several classes; they tie, the first class comes first")
        if constant := result["benchmark"].get("constant"):
            print("  one answer for all pictures would get " + ", ".join(f"{key} {value:.1f}" for key, value in constant.items()))


def load_checkpoint(path: Path, device: str, *, teacher: bool = False) -> Model:
    """A checkpoint of ``train`` with its tokenizer."""
    from . import checkpoint, models

    if path.is_dir():
        files = [*checkpoint.found(path), *checkpoint.found(path / "checkpoints")]
        if not files:
            raise EvaluationError(f"there is no checkpoint in {path}; give a run's folder, or one of its checkpoints")
        path = files[0]
    state = checkpoint.read(path)
    network, config = checkpoint.load_model(path, teacher=teacher)
    network.to(device)
    tokenize = models.tokenizer(config.model)

    def encode_texts(texts: list[str]) -> Tensor:
        return network.encode_texts({name: tensor.to(device) for name, tensor in tokenize(texts).items()})

    facts = {
        "checkpoint": path.name,
        "sha256": _sha256(path),
        "weights": "teacher" if teacher else "model",
        "step": state["step"],
        "pairs": state["pairs"],
        "config": config.as_dict(),
    }
    return Model(lambda pixels: network.encode_images(pixels.to(device)), encode_texts, config.data.size, facts)


def _answered(
    question: Question, running: ZeroShot, task: Task, left_out: Collection[str], templates: Sequence[str]
) -> dict[str, Any]:
    answers = [true for key, true in zip(task.pictures, question.answers, strict=True) if key not in left_out]
    constant = percentages(scores.constant_hits(answers, running.ks), len(answers))
    return {
        "benchmark": {
            "name": question.name,
            **question.facts,
            "templates": list(templates),
            "constant": {f"hit@{k}": value for k, value in constant.items()},
        },
        "scores": running.scores,
        "pictures": {"scored": running.images, "labelled": running.labelled},
    }


def _retrieved(model: Model, task: Task, images: Tensor, seen: Sequence[int], ks: Sequence[int], batch: int) -> dict[str, Any]:
    """R@K among the pictures that could be read and their captions."""
    assert task.captions is not None
    keys = list(task.pictures)
    rows = {keys[position]: row for row, position in enumerate(seen)}
    pairs = [
        (text, rows[key])
        for text, owner in zip(task.captions.texts, task.captions.owners, strict=True)
        if (key := task.captions.keys[owner]) in rows
    ]
    gallery = text_gallery(model.encode_texts, [text for text, _ in pairs], batch)
    both = scores.retrieval(images, gallery, [row for _, row in pairs], _fitting(ks, min(len(pairs), len(images))))
    digest = hashlib.sha256("\n".join(f"{keys[seen[row]]}\t{text}" for text, row in pairs).encode()).hexdigest()
    return {
        "benchmark": {"name": "retrieval", "captions": len(pairs), "labels_sha256": digest},
        "scores": {
            **{f"image to text R@{k}": value for k, value in both.image_to_text.items()},
            **{f"text to image R@{k}": value for k, value in both.text_to_image.items()},
        },
        "pictures": {"scored": len(images)},
    }


def _check_skipped(missing: Sequence[str], bad: Sequence[Bad], total: int, max_skipped: float) -> None:
    if len(missing) + len(bad) > max_skipped * total:
        examples = [*missing[:3], *(f"{key} ({reason})" for key, reason in bad[:3])]
        raise EvaluationError(
            f"{len(missing)} of {total} pictures are missing, {len(bad)} unreadable, above the share of {max_skipped} that may: "
            f"{'; '.join(examples)}. Complete the folder of pictures, or raise --max-skipped and say so beside the numbers."
        )


def _fitting(ks: Sequence[int], most: int) -> list[int]:
    return sorted({k for k in ks if k <= most})


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _versions() -> dict[str, Any]:
    found = {"otter_losses": __version__, **machine("cuda" if torch.cuda.is_available() else "cpu")}
    for package in ("timm", "transformers", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
