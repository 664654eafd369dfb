"""The demo's task: pairs to train on, and pictures of unseen concepts whose names are to be found among all names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.studies.data.installed.features import Features, load_features
from benchmarks.studies.data.installed.pairs import Pair
from benchmarks.studies.data.split import Split, first_of_each, split_by_concept


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


def load_problem(pairs: Sequence[Pair], cache: Path, jobs: int) -> tuple[Problem, bool]:
    """The task that the pairs make, and whether their features came from the cache."""
    features, from_cache = load_features(pairs, cache, jobs)
    captions = [pair.caption for pair in pairs]
    concepts = [pair.caption if pair.is_concept else None for pair in pairs]
    return build_problem(features, captions, concepts), from_cache


def build_problem(features: Features, captions: Sequence[str], concepts: Sequence[str | None]) -> Problem:
    """`concepts` names what each pair shows, as its caption does, or is None for a pair that only ever trains."""
    first = first_of_each(concepts)
    names = features.texts[list(first.values())]
    row = {concept: position for position, concept in enumerate(first)}
    labels = [-1 if concept is None else row[concept] for concept in concepts]
    return Problem(features, split_by_concept(concepts, captions, torch.from_numpy(features.images)), names, labels)
