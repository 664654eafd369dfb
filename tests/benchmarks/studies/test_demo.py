"""The demo's own arithmetic; its pictures and encoders are tried by ``benchmarks/demo.sh --quick``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.demo import __main__ as command
from benchmarks.demo import report
from benchmarks.demo.cache import Arrays, load_or_make
from benchmarks.demo.evaluate import hit_at_k
from benchmarks.demo.noise import shuffle_captions
from benchmarks.demo.problem import Features, Problem, build_problem
from benchmarks.demo.split import MAX_COSINE, largest_cosine, role_of, split_by_concept
from benchmarks.demo.train import METHODS, Outcome, Run, train

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


def test_shuffling_depends_on_the_seed_alone() -> None:
    assert shuffle_captions(100, 0.4, seed=1) == shuffle_captions(100, 0.4, seed=1)
    assert shuffle_captions(100, 0.4, seed=1) != shuffle_captions(100, 0.4, seed=2)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shuffling_rejects_a_share_outside_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is -?\d\.1; it must lie between 0 and 1"):
        shuffle_captions(10, share, seed=0)


def test_hit_at_k_by_hand() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # the true name 0 ranks first
            [0.9, 0.1, 0.2, 0.3],  # 3 ranks second
            [0.9, 0.1, 0.2, 0.3],  # 1 ranks last
            [0.5, 0.5, 0.5, 0.5],  # all tie: 2 ranks last
        ]
    )
    assert hit_at_k(similarity, torch.tensor([0, 3, 1, 2]), ks=(1, 2, 3, 4)) == {1: 25.0, 2: 50.0, 3: 50.0, 4: 100.0}


@pytest.fixture(scope="module")
def toy() -> Problem:
    """Pictures that are a linear map of their captions, two of each of 100 concepts, and 20 icons."""
    generator = torch.Generator().manual_seed(0)
    concepts = [name for name in NAMES[:100] for _ in range(2)] + [None] * 20
    captions = [concept or f"icon {index}" for index, concept in enumerate(concepts)]
    word = {caption: torch.randn(24, generator=generator) for caption in captions}
    texts = torch.stack([word[caption] for caption in captions])
    texts /= texts.norm(dim=1, keepdim=True)
    images = texts @ torch.randn(24, 40, generator=generator) + 0.05 * torch.randn(len(texts), 40, generator=generator)
    padded = torch.nn.functional.pad(texts, (0, 384 - 24))
    return build_problem(Features(images.numpy(), padded.numpy()), captions, concepts)


def test_problem_labels_each_picture_with_the_features_of_its_name(toy: Problem) -> None:
    held_out = toy.split.validation + toy.split.test
    assert len(toy.names) == 100
    np.testing.assert_array_equal(toy.names[[toy.labels[index] for index in held_out]], toy.features.texts[held_out])
    assert set(toy.labels[200:]) == {-1}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", METHODS)
def test_training_learns_unseen_names_and_repeats_itself(toy: Problem, method: str) -> None:
    run = Run(method, 0.2, 0, epochs=25, probe=(0, 5, 9))
    first, second = train(toy, run), train(toy, run)
    assert first.test == second.test
    assert first.test[10] > 40  # chance: 10
    if METHODS[method].teacher:
        assert first.probe_features is not None
        assert [features.shape for features in first.probe_features] == [(3, 384), (3, 384)]
    else:
        assert first.probe_features is None


def test_tables_by_hand() -> None:
    def outcome(method: str, seed: int, score: float) -> Outcome:
        return Outcome(Run(method, 0.4, seed), {}, dict.fromkeys((1, 5, 10), score), 14.3)

    values = {"InfoNCE": [10.0, 14.0], "OTTER": [13.0, 15.0]}
    scores = report.by_cell([outcome(method, seed, value) for method, row in values.items() for seed, value in enumerate(row)])
    assert "| 40%      | InfoNCE | 12.0 ± 2.8 | 12.0 ± 2.8 | 12.0 ± 2.8 |" in report.score_table(scores)
    assert "| 40%      | OTTER        | +2.0 ± 1.0 (2/2) |" in report.difference_table(scores)
    assert report.sampling_error(scores, 100) == pytest.approx(100 * (0.14 * 0.86 / 100) ** 0.5)


def test_json_holds_every_run(tmp_path: Path) -> None:
    outcomes = [Outcome(Run("KD", 0.2, seed), {1: 3.0}, {1: 2.0}, 15.0) for seed in range(2)]
    report.write_json(tmp_path / "results.json", outcomes, {"names": 7})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["names"] == 7
    assert [run["seed"] for run in written["runs"]] == [0, 1]
    assert written["runs"][0]["test"] == {"hit@1": 2.0}


def test_cache_is_used_when_intact_and_made_anew_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "features.npz"
    made: list[int] = []

    def make() -> Arrays:
        made.append(len(made) + 1)
        return {"images": np.full((4, 3), made[-1], dtype=np.float16)}

    def load(fingerprint: str = "a") -> tuple[float, bool]:
        arrays, cached = load_or_make(path, fingerprint, make)
        return float(arrays["images"].mean()), cached

    assert load() == (1.0, False)
    assert load() == (1.0, True)
    intact = path.read_bytes()
    middle = len(intact) // 2
    flipped = intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :]
    for number, damaged in enumerate((b"", b"no archive", intact[:-5], flipped), start=2):
        path.write_bytes(damaged)
        assert load() == (number, False)
        assert load() == (number, True)
    assert load("b") == (6.0, False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "MODULES", ("torch", "no_such_module"))
    with pytest.raises(SystemExit, match=r"^The demo needs no_such_module; install with: pip install -e \.\[demo\]$"):
        command.main(["--output", str(tmp_path), "--cache", str(tmp_path)])


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--noise", "1.5"], ["--jobs", "-1"]])
def test_command_rejects_what_makes_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--seeds", "--noise", "--output", "--cache", "--jobs", "--quick", "--epochs"))
