"""A made collection, and the table's problem of it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from benchmarks.studies.data.fetched import pairs
from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.data.split import role_of
from benchmarks.studies.table.problem import Problem, build_problem


def make_collection(concepts: int = 60, width: int = 40) -> Collection:
    """Pictures that are a linear map of their captions: each concept in all designs, as clip art, and icons."""
    generator = torch.Generator().manual_seed(0)
    listed = []
    for index in range(concepts):
        name = f"thing {index}"
        for design in (*pairs.TRAINING_DESIGNS, *pairs.UNSEEN_DESIGNS):
            if design not in pairs.UNSEEN_DESIGNS or role_of(name) != "training":
                listed.append(pairs.Pair(design, name, name, name, f"tag {index % 20}", name))
        art = f"art {index}"
        listed.append(pairs.Pair(pairs.CLIP_ART, art, art, f"{art}, thing {index}", f"tag {index % 20}", art))
        listed += [
            pairs.Pair(source, f"{index}", f"icon {index}", f"icon {index}", f"icon {index}", None) for source in pairs.ICONS
        ]
    texts = sorted({text for pair in listed for text in (pair.name, pair.caption, pair.tag)})
    features = normalize(nn.functional.pad(torch.randn(len(texts), 16, generator=generator), (0, 384 - 16)), dim=1)
    rows = {text: row for row, text in enumerate(texts)}
    shown = features[[rows[pair.name] for pair in listed], :16] @ torch.randn(16, width, generator=generator)
    images = shown + 1.5 * torch.randn(len(listed), width, generator=generator)
    return Collection(listed, images.numpy(), features.numpy(), rows, {"versions": {}})


@pytest.fixture(scope="module")
def collection() -> Collection:
    return make_collection()


@pytest.fixture(scope="module")
def problem(collection: Collection) -> Problem:
    return build_problem(collection)
