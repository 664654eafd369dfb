"""The table's problem, its runs and its command; the whole of it is run by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.studies.data import encoders
from benchmarks.studies.data.fetched import pairs
from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.data.split import plain, role_of
from benchmarks.studies.table import __main__ as command
from benchmarks.studies.table.problem import Problem, build_problem
from benchmarks.studies.table.run import Run, make_model, score, train
from benchmarks.studies.table.settings import SETTINGS, SOURCES, TESTS
from benchmarks.studies.training.losses import BASELINE, OURS
from tests.helpers.checks import relative


def test_nothing_of_the_held_out_concepts_is_trained_on(collection: Collection, problem: Problem) -> None:
    listed = collection.pairs
    held_out = {index for tests in (problem.validation, problem.test) for test in tests.values() for index in test.pictures}
    names = {plain(listed[index].name) for index in held_out}
    shown = normalize(torch.from_numpy(collection.images[sorted(held_out)]), dim=1)
    assert set(problem.training) == set(SETTINGS)
    for name, training in problem.training.items():
        trained = [listed[index] for index in training]
        assert {pair.source for pair in trained} == {source for kind in SETTINGS[name].sources for source in SOURCES[kind]}
        assert names.isdisjoint(plain(pair.name) for pair in trained)
        assert names.isdisjoint(plain(pair.tag if SETTINGS[name].keywords else pair.caption) for pair in trained)
        assert (normalize(torch.from_numpy(collection.images[training]), dim=1) @ shown.T).max() <= 0.9
    twin = Collection(
        [*listed, listed[problem.training["all"][0]]._replace(concept=None)],
        np.concatenate([collection.images, collection.images[[problem.test[TESTS[0]].pictures[0]]]]),
        collection.texts,
        collection.rows,
        {},
    )
    assert len(listed) not in build_problem(twin).training["all"]


def test_tests_have_the_stated_names(collection: Collection, problem: Problem) -> None:
    emoji, art = (problem.test[test] for test in TESTS)
    assert len(emoji.names) == 60
    assert {collection.pairs[index].source for index in emoji.pictures} == {*pairs.TRAINING_DESIGNS, *pairs.UNSEEN_DESIGNS}
    assert len(art.names) == len(art.pictures) == sum(role_of(f"art {index}") == "test" for index in range(60))
    for test in (emoji, art):
        own = collection.of_texts([collection.pairs[index].name for index in test.pictures])
        np.testing.assert_array_equal(test.names[test.labels], own)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("setting", "method"), [("all", BASELINE), ("40 % shuffled, 2 layers", OURS), ("keywords", OURS)])
def test_a_run_learns_and_repeats_itself(problem: Problem, setting: str, method: str) -> None:
    run = Run(setting, method, 0, epochs=10, learning_rate=3e-3)
    outcome = train(problem, run)
    for test in TESTS:
        np.testing.assert_array_equal(outcome.test[test], train(problem, run).test[test])
        chance = (len(problem.test[test].names) + 1) / 2
        assert outcome.test[test].mean() < (0.5 if setting == "all" else 0.9) * chance


class TinyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 1280, 4)

    def extract_features(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.convolution(pictures)
        return features


class TinyEncoder:
    """Stands in for the pretrained encoder, whose package the tests do without."""

    def __init__(self) -> None:
        self.module = TinyNetwork()


@pytest.mark.usefixtures("one_thread")
def test_fine_tuning_trains_the_image_encoder(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "ImageEncoder", TinyEncoder)
    pictures = np.random.default_rng(0).integers(0, 256, (len(problem.images), 6, 6, 3), dtype=np.uint8)
    weights: list[Tensor] = []
    forward = encoders.TrainableImageEncoder.forward

    def watched(self: encoders.TrainableImageEncoder, images: Tensor) -> Tensor:
        weights.append(next(self.parameters()).detach().clone())
        return forward(self, images)

    monkeypatch.setattr(encoders.TrainableImageEncoder, "forward", watched)
    outcome = train(replace(problem, images=pictures), Run("all", BASELINE, 0, epochs=2, finetune=True))
    assert all(len(outcome.test[test]) == len(problem.test[test].pictures) for test in TESTS)
    assert 0 < relative(weights[-1], weights[0]) < 0.1


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MODULES", ("torch", "no_such_module"))
    with pytest.raises(
        SystemExit, match=r"^benchmarks\.realpairs needs no_such_module; install with: pip install -e \.\[realpairs\]$"
    ):
        command.main([])


def test_unknown_setting_is_an_error_that_lists_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "MODULES", ("torch",))
    with pytest.raises(SystemExit):
        command.main(["--settings", "all", "nothing"])
    assert "there is no nothing; choose from: all, all, 2 layers, emoji + icons" in capsys.readouterr().err


def test_settings_make_42_evaluations() -> None:
    assert len(SETTINGS) * len(TESTS) * 3 == 42


def test_score_counts_a_tie_against_the_method(problem: Problem) -> None:
    model = make_model(problem, SETTINGS["all"], Run("all", OURS, 0))
    with torch.no_grad():
        for parameter in model.image.parameters():
            parameter.zero_()
        test = problem.test[TESTS[1]]
        assert set(score(model, problem, test).tolist()) == {len(test.names)}
