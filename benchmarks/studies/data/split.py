"""Which pairs train, validate and test: split by concept, then cleared of what the held-out pictures give away."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

VALIDATION_SHARE = 0.1
TEST_SHARE = 0.3
MAX_COSINE = 0.9
"""A training picture closer than this to a held-out one, in the frozen encoder's features, is dropped."""


@dataclass(frozen=True)
class Split:
    """Indices of pairs. `training` is decontaminated; the two counts say how many pairs that cost."""

    training: list[int]
    validation: list[int]
    test: list[int]
    dropped_by_name: int
    dropped_by_picture: int


def split_by_concept(concepts: Sequence[str | None], captions: Sequence[str], images: Tensor) -> Split:
    """Splits the pairs that have a concept (60 / 10 / 30 %); those without one (the icons) all go to training.

    A training pair is dropped if its caption is the name of a held-out pair, or if its picture is close to the picture
    of a held-out pair.
    """
    roles = ["training" if concept is None else role_of(concept) for concept in concepts]
    validation = [index for index, role in enumerate(roles) if role == "validation"]
    test = [index for index, role in enumerate(roles) if role == "test"]
    training = [index for index, role in enumerate(roles) if role == "training"]

    held_out = validation + test
    held_out_names = {plain(captions[index]) for index in held_out}
    unnamed = [index for index in training if plain(captions[index]) not in held_out_names]
    cosine = largest_cosine(images[unnamed], images[held_out])
    clean = [index for index, value in zip(unnamed, cosine.tolist(), strict=True) if value <= MAX_COSINE]
    return Split(clean, validation, test, len(training) - len(unnamed), len(unnamed) - len(clean))


def role_of(concept: str) -> str:
    """Fixed by the concept's name alone: the same for everyone, whatever else is in the data."""
    position = hashed(concept) / 2**64
    if position < TEST_SHARE:
        return "test"
    return "validation" if position < TEST_SHARE + VALIDATION_SHARE else "training"


def hashed(text: str) -> int:
    """A number below 2**64 that the text alone fixes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def first_of_each(concepts: Iterable[str | None]) -> dict[str, int]:
    """The first pair that shows each concept, by its place; the concepts in the order of their names."""
    first: dict[str, int] = {}
    for index, concept in enumerate(concepts):
        if concept is not None:
            first.setdefault(concept, index)
    return dict(sorted(first.items()))


def plain(name: str) -> str:
    """Icons' names have lost their hyphens and capitals, so names are compared without."""
    return name.casefold().replace("-", " ")


def largest_cosine(images: Tensor, others: Tensor) -> Tensor:
    """For each of `images` its cosine with the nearest of `others`."""
    if not len(others):
        return torch.full((len(images),), -1.0)
    return (normalize(images, dim=-1) @ normalize(others, dim=-1).T).amax(dim=1)
