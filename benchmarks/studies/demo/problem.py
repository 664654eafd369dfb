"""The demo's task: pairs to train on, and pictures of unseen concepts whose names are to be found among all names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .split import Split, split_by_concept


class Features(NamedTuple):
    """Frozen features of pictures (N, 1280) and captions (N, 384), row i belonging to pair i."""

    images: NDArray[np.float32]
    texts: NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """What all runs share.

    `names` are the text features of all concepts' names, those of training concepts included; `labels` gives each pair's row
    in there (-1 for an icon).
    """

    features: Features
    split: Split
    names: NDArray[np.float32]
    labels: list[int]


def build_problem(features: Features, captions: Sequence[str], concepts: Sequence[str | None]) -> Problem:
    """`concepts` names what each pair shows, as its caption does, or is None for a pair that only ever trains."""
    first = {concept: index for index, concept in reversed(list(enumerate(concepts))) if concept is not None}
    row = {concept: position for position, concept in enumerate(sorted(first))}
    names = features.texts[[first[concept] for concept in row]]
    labels = [-1 if concept is None else row[concept] for concept in concepts]
    return Problem(features, split_by_concept(concepts, captions, torch.from_numpy(features.images)), names, labels)
