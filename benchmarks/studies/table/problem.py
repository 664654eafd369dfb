"""What the runs share: training pairs for each setting, and pictures whose names are to be found."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.data.fetched.pairs import CLIP_ART, ICONS, Pair
from benchmarks.studies.data.split import first_of_each, plain, split_by_concept
from benchmarks.studies.table.settings import SETTINGS, SOURCES, TESTS, Setting


class HeldOut(NamedTuple):
    """Pictures (rows of the collection), the features of all names that they can have, and each picture's true name there."""

    pictures: list[int]
    names: NDArray[np.float32]
    labels: list[int]


@dataclass(frozen=True)
class Problem:
    """`sources` says where each pair is from, `captions` and `keywords` are the features of its text. `training` has the pairs of
    each setting."""

    sources: list[str]
    images: NDArray[Any]
    captions: NDArray[np.float32]
    keywords: NDArray[np.float32]
    training: dict[str, list[int]]
    validation: dict[str, HeldOut]
    test: dict[str, HeldOut]
    facts: dict[str, Any]

    def texts(self, setting: Setting) -> NDArray[np.float32]:
        return self.keywords if setting.keywords else self.captions


def build_problem(collection: Collection, settings: Iterable[Setting] = tuple(SETTINGS.values())) -> Problem:
    """Splits by concept and clears the training pairs of what the held-out ones give away, as `split_by_concept` does."""
    pairs = collection.pairs
    split = split_by_concept([pair.concept for pair in pairs], [pair.name for pair in pairs], torch.from_numpy(collection.images))
    held_out = {plain(pairs[index].name) for index in (*split.validation, *split.test)}
    training = {}
    for setting in settings:
        sources = {source for kind in setting.sources for source in SOURCES[kind]}
        chosen = [index for index in split.training if pairs[index].source in sources]
        training[setting.name] = [index for index in chosen if plain(_text(pairs[index], setting)) not in held_out]
    facts = {
        **collection.facts,
        "dropped_by_name": split.dropped_by_name,
        "dropped_by_picture": split.dropped_by_picture,
        "training_pairs": {name: len(chosen) for name, chosen in training.items()},
    }
    return Problem(
        [pair.source for pair in pairs],
        collection.images,
        collection.of_texts([pair.caption for pair in pairs]),
        collection.of_texts([pair.tag for pair in pairs]),
        training,
        _tests(collection, split.validation),
        _tests(collection, split.test),
        facts,
    )


def _text(pair: Pair, setting: Setting) -> str:
    return pair.tag if setting.keywords else pair.caption


def _tests(collection: Collection, held_out: Sequence[int]) -> dict[str, HeldOut]:
    """Emoji among the names of all emoji, clip art among the names of the held-out clip art."""
    pairs = collection.pairs
    emoji = [index for index, pair in enumerate(pairs) if pair.source not in (CLIP_ART, *ICONS)]
    art = [index for index in held_out if pairs[index].source == CLIP_ART]
    shown = [index for index in held_out if pairs[index].source != CLIP_ART]
    return {name: _test(collection, *of) for name, of in zip(TESTS, ((shown, emoji), (art, art)), strict=True)}


def _test(collection: Collection, pictures: list[int], named: list[int]) -> HeldOut:
    pairs = collection.pairs
    first = first_of_each(pairs[index].concept for index in named)
    row = {concept: position for position, concept in enumerate(first)}
    labels = [row[str(pairs[index].concept)] for index in pictures]
    return HeldOut(pictures, collection.of_texts([pairs[named[place]].name for place in first.values()]), labels)
