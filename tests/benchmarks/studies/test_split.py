"""The split by concept, and captions that went to another picture."""

import pytest
import torch

from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.data.split import MAX_COSINE, largest_cosine, role_of, split_by_concept

NAMES = [f"thing {index}" for index in range(2000)]


def names_of(role: str) -> list[str]:
    return [name for name in NAMES if role_of(name) == role]


def test_split_has_the_stated_shares_and_every_design_of_a_concept_on_one_side() -> None:
    concepts = [name for name in NAMES for _ in range(2)]
    split = split_by_concept(concepts, concepts, torch.eye(len(concepts)))
    assert len(split.training) + len(split.validation) + len(split.test) == len(concepts)
    assert len(split.test) / len(concepts) == pytest.approx(0.3, abs=0.04)
    assert len(split.validation) / len(concepts) == pytest.approx(0.1, abs=0.03)
    sides = [{concepts[index] for index in side} for side in (split.training, split.validation, split.test)]
    assert sides[0].isdisjoint(sides[1] | sides[2])
    assert sides[1].isdisjoint(sides[2])


def test_split_of_a_concept_does_not_depend_on_the_others() -> None:
    assert [role_of(name) for name in ("grinning face", "panda", "robot")] == ["validation", "training", "test"]


def test_split_drops_held_out_names_whatever_their_spelling() -> None:
    test_name, training_name = names_of("test")[0], names_of("training")[0]
    captions = [test_name, training_name, test_name.upper(), test_name.replace(" ", "-"), "an icon"]
    split = split_by_concept([test_name, training_name, None, None, None], captions, torch.eye(5))
    assert split.test == [0]
    assert split.training == [1, 4]
    assert (split.dropped_by_name, split.dropped_by_picture) == (2, 0)


@pytest.mark.parametrize("role", ["test", "validation"])
def test_split_drops_training_pictures_like_a_held_out_one(role: str) -> None:
    held_out = names_of(role)[0]
    near, far = MAX_COSINE + 0.01, MAX_COSINE - 0.01
    images = torch.tensor([[3.0, 0.0], [near, (1 - near**2) ** 0.5], [far, (1 - far**2) ** 0.5]])
    split = split_by_concept([held_out, None, None], [held_out, "near", "far"], images)
    assert split.training == [2]
    assert (split.dropped_by_name, split.dropped_by_picture) == (0, 1)


def test_largest_cosine_ignores_lengths() -> None:
    images, others = torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([[10.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(largest_cosine(images, others), torch.tensor([1.0, 0.8]))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 1.0])
def test_exactly_the_stated_share_of_captions_goes_to_another_pair(share: float) -> None:
    given = shuffle_captions(1001, share, seed=3)
    assert sorted(given) == list(range(1001))
    assert sum(pair != own for own, pair in enumerate(given)) == round(share * 1001)


def test_wrong_captions_stay_within_a_source_where_it_is_given() -> None:
    sources = ["a", "b", "b"] * 300 + ["c"]
    given = shuffle_captions(901, 0.4, seed=5, sources=sources)
    assert sorted(given) == list(range(901))
    assert all(sources[pair] == sources[own] for own, pair in enumerate(given))
    assert given[900] == 900
    assert sum(pair != own for own, pair in enumerate(given)) in (359, 360)


def test_shuffling_depends_on_the_seed_alone() -> None:
    assert shuffle_captions(100, 0.4, seed=1) == shuffle_captions(100, 0.4, seed=1)
    assert shuffle_captions(100, 0.4, seed=1) != shuffle_captions(100, 0.4, seed=2)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shuffling_rejects_a_share_outside_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is -?\d\.1; it must lie between 0 and 1"):
        shuffle_captions(10, share, seed=0)
