"""Scores as scikit-learn has them, whatever the blocks and batches."""

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.reproduction import scores, zero_shot
from benchmarks.reproduction.scores import Gallery
from benchmarks.reproduction.zero_shot import ZeroShot

KS = (1, 2, 5, 10)


def random_features(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_answers(rows: int, classes: int, seed: int, most: int = 4) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.sample(range(classes), draw.randint(0, most)) for _ in range(rows)]


def test_hit_at_k_of_one_label_is_scikit_learns() -> None:
    images, classes = random_features(300, 8, 0), random_features(40, 8, 1)
    labels = torch.randint(40, (300,), generator=torch.Generator().manual_seed(2)).tolist()
    unit = [features / features.norm(dim=1, keepdim=True) for features in (images, classes)]
    cosines = (unit[0] @ unit[1].T).numpy()
    ours = scores.hit_at_k(images, classes, [[label] for label in labels], KS, rows=64, columns=7)
    theirs = {k: 100 * top_k_accuracy_score(labels, cosines, k=k, labels=range(40)) for k in KS}
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert 0 < ours[1] < ours[2] < ours[5] < ours[10] < 100


def test_hit_at_k_of_several_labels_is_that_of_scikit_learns_neighbours() -> None:
    images, classes, answers = random_features(400, 6, 3), random_features(60, 6, 4), random_answers(400, 60, 5)
    neighbours = (
        NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(classes.numpy()).kneighbors(images.numpy())[1]
    )
    theirs = {
        k: 100 * np.mean([bool(set(row[:k]) & set(true)) for row, true in zip(neighbours, answers, strict=True)]) for k in KS
    }
    assert any(not true for true in answers)
    assert scores.hit_at_k(images, classes, answers, KS) == pytest.approx(theirs, rel=1e-12)
    assert (scores.top_k(images, classes, 10).numpy() == neighbours).all()


def test_retrieval_with_several_captions_is_that_of_scikit_learns_neighbours() -> None:
    images, texts = random_features(30, 5, 6), random_features(80, 5, 7)
    owners = [random.Random(8).randrange(29) if i >= 29 else i for i in range(80)]  # the last image has no caption
    found = scores.retrieval(images, texts, owners, ks=(1, 5))
    to_text, to_image = (
        NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(gallery.numpy()).kneighbors(queries.numpy())[1]
        for queries, gallery in ((images, texts), (texts, images))
    )
    for k in (1, 5):
        assert found.image_to_text[k] == pytest.approx(
            100 * np.mean([any(owners[text] == image for text in row[:k]) for image, row in enumerate(to_text)]), rel=1e-12
        )
        assert found.text_to_image[k] == pytest.approx(
            100 * np.mean([owner in row[:k] for owner, row in zip(owners, to_image, strict=True)]), rel=1e-12
        )


def exact_order(query: list[int], gallery: Sequence[list[int]]) -> list[int]:
    """By cosine in exact arithmetic, ties by position."""

    def cosine(entry: list[int]) -> Fraction:
        dot = sum(a * b for a, b in zip(query, entry, strict=True))
        return Fraction(dot * abs(dot), sum(value * value for value in entry))  # monotone in the cosine

    return sorted(range(len(gallery)), key=lambda position: (-cosine(gallery[position]), position))


signs = st.lists(st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4), min_size=1, max_size=12)
"""Vectors of length 2, whose cosines float32 has exactly: among 16 of them ties are the rule."""


@given(queries=signs, gallery=signs, rows=st.integers(1, 13), columns=st.integers(1, 13), data=st.data())
def test_top_k_is_the_exact_order_whatever_the_blocks(
    queries: list[list[int]], gallery: list[list[int]], rows: int, columns: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(gallery)))
    found = scores.top_k(torch.tensor(queries), torch.tensor(gallery), k, rows=rows, columns=columns)
    assert found.tolist() == [exact_order(query, gallery)[:k] for query in queries]


@given(
    of=st.lists(st.integers(0, 5), min_size=6, max_size=20),
    columns=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_entries_that_share_a_feature_tie_to_the_bit(of: list[int], columns: int, seed: int) -> None:
    queries, features = random_features(5, 33, seed), random_features(6, 33, seed + 100)
    found = scores.top_k(queries, Gallery(features, torch.tensor(of)), len(of), rows=2, columns=columns)
    order = scores.top_k(queries, features, 6)
    expected = [[entry for feature in row for entry, own in enumerate(of) if own == feature] for row in order.tolist()]
    assert found.tolist() == expected


@given(seed=st.integers(0, 999), rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_hits_are_equivariant(seed: int, rows: int, columns: int) -> None:
    images, classes, answers = random_features(20, 7, seed), random_features(25, 7, seed + 1), random_answers(20, 25, seed)
    expected = scores.count_hits(images, classes, answers, KS)
    generator = torch.Generator().manual_seed(seed)
    shuffled, renumbered = torch.randperm(20, generator=generator), torch.randperm(25, generator=generator)
    places = renumbered.argsort().tolist()
    lengths = torch.rand(20, 1, generator=generator, dtype=torch.float64) + 0.1
    mixed = scores.count_hits(
        (lengths * images)[shuffled],
        classes[renumbered],
        [[places[true] for true in answers[image]] for image in shuffled.tolist()],
        KS,
        rows=rows,
        columns=columns,
    )
    assert mixed == expected
    assert expected[1] <= expected[2] <= expected[5] <= expected[10] <= sum(bool(true) for true in answers)


def test_negative_scores_and_both_zeros_are_ordered() -> None:
    gallery = torch.tensor([[-1.0, 0.0], [-1.0, 1.0], [0.0, -1.0], [-0.0, 1.0], [1.0, 1.0]])
    assert scores.top_k(torch.tensor([[1.0, 0.0]]), gallery, 5).tolist() == [[4, 2, 3, 1, 0]]


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most numbers that any one result had."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            self.numbers = max(self.numbers, each.numel() if isinstance(each, Tensor) else 0)
        return out


def test_all_similarities_are_never_held() -> None:
    images, classes = random_features(500, 4, 9), random_features(700, 4, 10)
    with Largest() as largest:
        scores.count_hits(images, classes, [[0]] * 500, KS, rows=50, columns=70)
    assert largest.numbers <= 500 * 10 < 500 * 700 / 60  # the answer itself: 10 classes an image


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("side", ["queries", "gallery"])
def test_features_without_a_direction_are_refused(value: float, side: str) -> None:
    features = {"queries": torch.eye(3), "gallery": torch.eye(3)}
    features[side] = torch.tensor([[1.0, 0, 0], [value, value * 0, 0], [0, 1, 0]])
    with pytest.raises(ValueError, match=rf"{side} must be finite and not zero, but 1 of 3 rows are not \(the first: 1\)"):
        scores.top_k(features["queries"], features["gallery"], 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.top_k(torch.eye(2), torch.eye(3), 1), r"\(2, 2\) and \(3, 3\)"),
        (lambda: scores.top_k(torch.eye(2), torch.eye(2), 3), "between 1 and the 2 entries"),
        (lambda: scores.count_hits(torch.eye(2), torch.eye(2), [[0]], (1,)), "got 1 for 2 queries"),
        (lambda: scores.count_hits(torch.eye(2), torch.eye(2), [[0], [2]], (1,)), "name entry 2, but the gallery has 2"),
        (lambda: scores.count_hits(torch.eye(2), torch.eye(2), [[0], [-1]], (1,)), "name entry -1"),
        (lambda: scores.count_hits(torch.eye(2), torch.eye(2), [[0], [1]], (0, 1)), "from 1 on"),
        (lambda: scores.hit_at_k(torch.empty(0, 2), torch.eye(2), [], (1,)), "no query to score"),
        (lambda: scores.retrieval(torch.eye(2), torch.eye(2), [0]), "got 1 for 2 captions"),
        (lambda: scores.retrieval(torch.eye(2), torch.eye(2), [0, 2]), "name image 2 for caption 1"),
    ],
)
def test_bad_questions_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@given(answers=st.lists(st.lists(st.integers(0, 5), max_size=3, unique=True), min_size=1, max_size=10))
def test_the_constant_answer_is_the_best_for_one_and_never_less_than_a_fixed_order(answers: list[list[int]]) -> None:
    found = scores.constant_hits(answers, (1, 3))
    assert found[1] == max(sum(entry in true for true in answers) for entry in range(6))
    assert found[1] <= found[3] <= sum(bool(true) for true in answers)
    if sum(bool(true) for true in answers) and len({entry for true in answers for entry in true}) <= 3:
        assert found[3] == sum(bool(true) for true in answers)


@given(cuts=st.lists(st.integers(0, 30), max_size=5), seed=st.integers(0, 99))
def test_batches_do_not_matter(cuts: list[int], seed: int) -> None:
    images, classes, answers = random_features(30, 6, seed), random_features(12, 6, seed + 1), random_answers(30, 12, seed)
    edges = sorted({0, 30, *cuts})
    batches = [(images[a:b], answers[a:b]) for a, b in pairwise(edges)]
    parts = zero_shot.zero_shot(lambda pixels: pixels, Gallery.plain(classes), batches)
    whole = ZeroShot(Gallery.plain(classes))
    whole.add(images, answers)
    assert (parts.scores, parts.images, parts.labelled) == (whole.scores, 30, sum(bool(true) for true in answers))
