"""The benchmarks a model can be evaluated on: pictures on disk, and what is asked about them."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import banks, images
from .bad import Bad, BadSampleError
from .banks import Bank, Captions, Labels
from .files import find_pictures
from .workers import worker_context


class Question(NamedTuple):
    """Which of the bank's names fit each picture: ``answers[i]`` are the positions that are true for picture i, or none."""

    name: str
    bank: Bank
    answers: list[tuple[int, ...]]
    facts: dict[str, Any]


class Task(NamedTuple):
    """Pictures by key, the questions asked about all of them, and captions if they are to be retrieved.

    `missing` are keys that the labels name and the folder does not have.
    """

    pictures: dict[str, Path]
    questions: list[Question]
    captions: Captions | None
    missing: list[str]


class Loaded(NamedTuple):
    """A batch of pictures: which of the task's they are, (B, 3, S, S) float32, and those that could not be read."""

    positions: list[int]
    pixels: Tensor
    bad: list[Bad]


class Pictures(Dataset[tuple[int, Tensor | str]]):
    """Test crops of a task's pictures, uint8; a reason in words where a picture cannot be read."""

    def __init__(self, pictures: Mapping[str, Path], size: int) -> None:
        self.keys, self.paths, self.size = list(pictures), list(pictures.values()), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[int, Tensor | str]:
        path = self.paths[position]
        try:
            if path.stat().st_size > images.MAX_BYTES:
                return position, f"larger than {images.MAX_BYTES:,} bytes"
            return position, images.crop(images.decode(path.read_bytes(), self.size), self.size)
        except BadSampleError as error:
            return position, str(error)
        except OSError as error:
            return position, f"cannot be read: {error.strerror}"

    def collate(self, found: list[tuple[int, Tensor | str]]) -> Loaded:
        """Those that could be read as one tensor, the others by key."""
        good = [(position, pixels) for position, pixels in found if isinstance(pixels, Tensor)]
        bad = [Bad(self.keys[position], reason) for position, reason in found if isinstance(reason, str)]
        stacked = (
            torch.stack([pixels for _, pixels in good]) if good else torch.zeros(0, self.size, self.size, 3, dtype=torch.uint8)
        )
        return Loaded([position for position, _ in good], images.normalize(stacked), bad)


def load(task: Task, size: int, batch: int, workers: int) -> Iterator[Loaded]:
    """All pictures of a task in order, in batches; the last may be smaller."""
    pictures = Pictures(task.pictures, size)
    context = worker_context(__name__) if workers else None
    yield from DataLoader(pictures, batch, num_workers=workers, collate_fn=pictures.collate, multiprocessing_context=context)


def open_images(options: argparse.Namespace) -> Task:
    """Google Open Images: every picture of the test folder counts, also one without any label."""
    bank = banks.open_images_bank(_given(options, "classes"))
    labels = banks.open_images_labels(_given(options, "labels"), bank)
    pictures = find_pictures(options.images, by_stem=True)
    return _zero_shot(pictures, labels, {"goi": (bank, labels)})


def imagenet_10k(options: argparse.Namespace) -> Task:
    """Tencent ML-Images' ImageNet 10K, all names and leaves only; the pictures are those that the label file names."""
    classes = _given(options, "classes")
    bank = banks.tencent_bank(classes)
    labels = banks.tencent_labels(_given(options, "labels"), bank)
    pictures = _named(find_pictures(options.images, by_stem=True), labels.of)
    leaves = banks.restrict(bank, labels, banks.tencent_leaves(classes))
    return _zero_shot(pictures, labels, {"in10k": (bank, labels), "in10k-leaves": leaves})


def imagenet_general(options: argparse.Namespace) -> Task:
    """The predecessor's general zero-shot over ImageNet 21k+1k; a picture's WordNet id is in its path."""
    pictures = find_pictures(options.images, by_stem=False)
    bank = banks.imagenet_bank()
    labels = banks.wordnet_labels(pictures, bank)
    return _zero_shot(pictures, labels, {"imagenet-21k-1k": (bank, labels)})


def image_folder(options: argparse.Namespace) -> Task:
    """One folder a class; `--classes` gives the folders other names."""
    pictures = find_pictures(options.images, by_stem=False)
    bank = banks.csv_bank(options.classes) if options.classes else banks.folder_bank(options.images)
    labels = banks.folder_labels(pictures, bank)
    return _zero_shot(_named(pictures, labels.of), labels, {"folder": (bank, labels)})


def csv_file(options: argparse.Namespace) -> Task:
    """A CSV of classes and a CSV of labels; the pictures are those that it names."""
    bank = banks.csv_bank(_given(options, "classes"))
    labels = banks.csv_labels(_given(options, "labels"), bank)
    pictures = _named(find_pictures(options.images, by_stem=False), labels.of)
    return _zero_shot(pictures, labels, {"csv": (bank, labels)})


def retrieval(options: argparse.Namespace) -> Task:
    """Captions for pictures and pictures for captions, both from a CSV."""
    captions = banks.csv_captions(_given(options, "labels"))
    pictures = _named(find_pictures(options.images, by_stem=False), captions.keys)
    return Task(pictures, [], captions, [key for key in captions.keys if key not in pictures])


TASKS: Mapping[str, Callable[[argparse.Namespace], Task]] = {
    "goi": open_images,
    "in10k": imagenet_10k,
    "imagenet-21k-1k": imagenet_general,
    "folder": image_folder,
    "csv": csv_file,
    "retrieval": retrieval,
}


def _zero_shot(pictures: dict[str, Path], labels: Labels, asked: Mapping[str, tuple[Bank, Labels]]) -> Task:
    questions = [
        Question(name, bank, [found.of.get(key, ()) for key in pictures], _facts(bank, found))
        for name, (bank, found) in asked.items()
    ]
    return Task(pictures, questions, None, [key for key in labels.of if key not in pictures])


def _facts(bank: Bank, labels: Labels) -> dict[str, Any]:
    """What a reader must know to compare scores."""
    return {
        "classes": len(bank.names),
        "classes_sha256": bank.digest,
        "duplicate_names": bank.duplicates,
        "labels_sha256": labels.digest,
        "unknown_labels": labels.unknown,
    }


def _named(pictures: Mapping[str, Path], keys: Iterable[str]) -> dict[str, Path]:
    """The pictures of the keys, in their order."""
    return {key: pictures[key] for key in keys if key in pictures}


def _given(options: argparse.Namespace, name: str) -> Path:
    path: Path | None = getattr(options, name)
    if path is None:
        raise ValueError(f"benchmark {options.benchmark} needs --{name}")
    return path
