"""The small table on real pairs: its archives, its statistics and its runs; the whole of it is run by hand."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from families import make_features, relative
from scipy.stats import ttest_rel
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from benchmarks.demo.split import plain, role_of
from benchmarks.demo.train import METHODS
from benchmarks.realpairs import __main__ as command
from benchmarks.realpairs import diagonal, encoder, packages, pairs, report, statistics
from benchmarks.realpairs.features import Collection
from benchmarks.realpairs.problem import Problem, build_problem
from benchmarks.realpairs.settings import BASELINE, OURS, PAPER, SETTINGS, SOURCES, TESTS
from benchmarks.realpairs.statistics import Evaluation, collect, compare, count_wins, holm
from benchmarks.realpairs.train import Outcome, Run, score, train
from otter_losses import OTTERLoss

# ---- archives ----


def archive(members: dict[str, bytes], compression: str = "gz", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for info in extra:
            tar.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def deb(data: bytes, compression: str = "xz") -> bytes:
    content = b"!<arch>\n"
    for name, member in (("debian-binary", b"2.0\n"), (f"data.tar.{compression}", data)):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n".encode() + member + b"\n" * (len(member) % 2)
    return content


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_archives_are_read_without_touching_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    hostile = (link("usr/svg/link.svg", "/etc/passwd"), link("usr/svg/up.svg", "../../../up.svg"))
    path.write_bytes(
        deb(archive({"/etc/abs.svg": b"a", "../../out.svg": b"b", "usr/svg/c.svg": b"c", "usr/d.txt": b"d"}, "xz", hostile))
    )
    read = dict(packages.read_debian(path, ".svg"))
    assert read == {"/etc/abs.svg": b"a", "../../out.svg": b"b", "usr/svg/c.svg": b"c"}
    assert [file.name for file in tmp_path.iterdir()] == ["x.deb"]
    assert not (tmp_path.parent.parent / "out.svg").exists()


def test_archives_larger_than_they_can_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(archive({"package/icons.json": b"0" * 1000}))
    assert len(packages.read_npm(path, "icons.json")) == 1000
    monkeypatch.setattr(packages, "LARGEST_MEMBER", 999)
    with pytest.raises(ValueError, match=r"x\.tgz is larger than it can be: package/icons\.json has 1,000 bytes"):
        packages.read_npm(path, "icons.json")


@pytest.mark.parametrize("content", [b"", b"no archive", archive({"package/icons.json": bytes(range(256)) * 64})[:-40]])
def test_damaged_archives_say_what_to_delete(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tgz .*delete it, so that it is fetched again"):
        packages.read_npm(path, "icons.json")
    with pytest.raises(ValueError, match=r"x\.tgz holds no data\.tar; delete it"):
        list(packages.read_debian(path, ".svg"))


def test_a_package_that_cannot_be_fetched_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    fails = r"the package {} could not be fetched: there is no command {} here\. Run `{}` in .*, or where the network is and copy"
    with pytest.raises(RuntimeError, match=fails.format("emojibase-data", "npm", r"npm pack .* emojibase-data@17\.0\.0")):
        packages.npm_archive("emojibase-data", tmp_path / "cache")
    with pytest.raises(RuntimeError, match=fails.format("openclipart-svg", "apt-get", "apt-get download openclipart-svg")):
        packages.debian_archive(tmp_path / "cache")
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'E404 not found' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(RuntimeError, match="the package emojibase-data could not be fetched: E404 not found"):
        packages.npm_archive("emojibase-data", tmp_path / "cache")
    by_hand = tmp_path / "cache" / "emojibase-data-17.0.0.tgz"
    by_hand.write_bytes(b"")
    assert packages.npm_archive("emojibase-data", tmp_path / "cache") == by_hand


# ---- pairs ----

SQUARE = '<path fill="#f00" d="M1 1h2v2H1z"/>'


def named(role: str) -> str:
    return next(name for name in (f"thing {index}" for index in range(99)) if role_of(name) == role)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """A folder with all packages, of a few pictures each."""
    entries: list[dict[str, Any]] = [
        {"label": named("test"), "hexcode": "1F600-FE0F", "group": 0, "tags": ["smile", "face"]},
        {"label": named("training"), "hexcode": "1F601", "group": 1},
        {"label": "flag: Nowhere", "hexcode": "1F602", "group": 9},
        {"label": "light skin tone", "hexcode": "1F3FB", "group": 2},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    names = [entry["label"].replace(" ", "-") for entry in entries]
    for name, version in packages.NPM_VERSIONS.items():
        icons = {"icons": {names[0]: {"body": SQUARE}}, "width": 8, "height": 4}
        icons["aliases"] = {names[1]: {"parent": names[0], "hFlip": True}}
        if name.endswith("game-icons"):
            icons["icons"] = {"big-axe-02": {"body": SQUARE}, "old": {"body": SQUARE, "hidden": True}}
        characters = {"1f600": names[0], "1f601": names[1]} if name.endswith("/openmoji") else {}
        members = {"package/icons.json": icons, "package/chars.json": characters, "package/en/data.json": entries}
        content = archive({path: json.dumps(value).encode() for path, value in members.items()})
        (tmp_path / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz").write_bytes(content)

    def art(title: str, *keywords: str) -> bytes:
        words = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        return f"<svg><dc:title>{title}</dc:title>{words}</svg>".encode()

    drawings = {
        "animals/a.svg": art("Old_Dog", "pet", "hash", "", "Old Dog"),
        "shapes/stars/s.svg": art("star"),
        "x/n.svg": b"<svg/>",
    }
    drawings |= {f"homes/{index}.svg": art("Homes") for index in range(pairs.SERIES + 1)}
    data = archive({f"./usr/share/openclipart/svg/{name}": content for name, content in drawings.items()}, "xz")
    (tmp_path / "openclipart-svg_1_all.deb").write_bytes(deb(data))
    return tmp_path


def test_pairs_are_listed_by_the_rules(registry: Path) -> None:
    listed = pairs.list_pairs(registry)
    by_source: dict[str, list[pairs.Pair]] = {}
    for pair, _ in listed:
        by_source.setdefault(pair.source, []).append(pair)
    assert set(by_source) == {source for kind in SOURCES.values() for source in kind} | set(pairs.UNSEEN_DESIGNS)
    assert [pair.name for pair in by_source["twemoji"]] == [named("test"), named("training")]
    assert {pair.tag for pair in by_source["twemoji"]} <= {"smile", "face", named("training")}
    assert [pair.name for pair in by_source["noto"]] == [named("test")]  # an unseen design has nothing to train on
    assert [(pair.name, pair.concept) for pair in by_source["game-icons"]] == [("big axe", None)]
    art = {pair.key: pair for pair in by_source[pairs.CLIP_ART]}
    assert art["animals/a.svg"].caption == "Old Dog, pet"
    assert art["animals/a.svg"].concept == "old dog"
    assert [pair.concept for key, pair in art.items() if key.startswith("homes/")] == [None] * (pairs.SERIES + 1)
    assert len(art) == pairs.SERIES + 2
    assert listed == pairs.list_pairs(registry)


def test_pictures_are_drawn_mirrored_and_cropped(registry: Path) -> None:
    drawings = {(pair.source, pair.name): drawing for pair, drawing in pairs.list_pairs(registry)}
    picture, mirror = (pairs.draw(drawings["openmoji", named(role)], 64) for role in ("test", "training"))
    assert picture is not None
    assert mirror is not None
    assert picture.getpixel((16, 32)) == mirror.getpixel((47, 32)) == (255, 0, 0)
    assert picture.getpixel((47, 32)) == mirror.getpixel((16, 32)) == (255, 255, 255)
    cropped = pairs.draw(drawings["game-icons", "big axe"], 64)
    assert cropped is not None
    assert np.mean(np.asarray(cropped)[..., 1] == 0) == pytest.approx(0.9**2, abs=0.03)
    assert pairs.draw(pairs.Drawing("<svg"), 64) is None
    assert pairs.draw(drawings[pairs.CLIP_ART, "Homes"], 64) is None


# ---- the problem and its runs ----


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
    monkeypatch.setattr(encoder, "ImageEncoder", TinyEncoder)
    pictures = np.random.default_rng(0).integers(0, 256, (len(problem.images), 6, 6, 3), dtype=np.uint8)
    weights: list[Tensor] = []
    forward = encoder.TrainableEncoder.forward

    def watched(self: encoder.TrainableEncoder, images: Tensor) -> Tensor:
        weights.append(next(self.parameters()).detach().clone())
        return forward(self, images)

    monkeypatch.setattr(encoder.TrainableEncoder, "forward", watched)
    outcome = train(replace(problem, images=pictures), Run("all", BASELINE, 0, epochs=2, finetune=True))
    assert all(len(outcome.test[test]) == len(problem.test[test].pictures) for test in TESTS)
    assert 0 < relative(weights[-1], weights[0]) < 0.1


# ---- statistics ----


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def made_hits(differences: dict[Evaluation, float], seeds: int = 5, pictures: int = 400) -> statistics.Hits:
    """Hits of losses that differ by so many points, with the noise of drawing."""
    generator = np.random.default_rng(0)
    base = dict.fromkeys(METHODS, 30.0)
    return {
        evaluation: {
            method: np.where(generator.random((seeds, pictures)) < (value + (method == OURS) * difference) / 100, 100.0, 0.0)
            for method, value in base.items()
        }
        for evaluation, difference in differences.items()
    }


def test_wins_and_ties_are_counted_in_tenths() -> None:
    def constant(values: dict[str, float]) -> dict[str, np.ndarray]:
        return {method: np.full((2, 3), value) for method, value in values.items()}

    low = dict.fromkeys(PAPER, 1.0)
    hits = {
        Evaluation("a", "t", 1): constant({**low, "OTTER": 2.0}),
        Evaluation("a", "t", 5): constant({**low, "OTTER": 2.04, "KD": 2.03}),
        Evaluation("a", "t", 10): constant({**low, "InfoNCE": 3.0}),
    }
    assert count_wins(hits, PAPER) == {"InfoNCE": (1, 0), "label smoothing": (0, 0), "KD": (0, 1), "OTTER": (1, 1)}


def test_comparison_finds_a_true_difference_and_covers_it() -> None:
    hits = made_hits({Evaluation("a", "t", 1): 15.0, Evaluation("a", "t", 5): 0.0, Evaluation("b", "t", 5): 0.0})
    compared, (mean, (low, high)) = compare(hits, BASELINE, {"t": list(range(400))})
    first, second, third = compared.values()
    ours, theirs = (hits[Evaluation("a", "t", 1)][method].mean(axis=1) for method in (OURS, BASELINE))
    assert first.difference == pytest.approx(ours.mean() - theirs.mean())
    assert first.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert first.holm == pytest.approx(3 * first.p)
    assert first.interval[0] < 15 < first.interval[1]
    assert first.interval[0] > 0
    assert all(one.interval[0] < 0 < one.interval[1] and one.holm > 0.05 for one in (second, third))
    assert mean == pytest.approx(np.mean([one.difference for one in compared.values()]))
    assert low < 5 < high


def test_bootstrap_draws_concepts_whole() -> None:
    hits = made_hits({Evaluation("a", "t", 1): 10.0}, seeds=1)
    repeated = {at: {method: np.repeat(values, 6, axis=1) for method, values in of.items()} for at, of in hits.items()}
    at = Evaluation("a", "t", 1)

    def width(found: statistics.Hits, labels: list[int]) -> float:
        low, high = compare(found, BASELINE, {"t": labels})[0][at].interval
        return high - low

    alone = width(hits, list(range(400)))
    clustered = width(repeated, [index // 6 for index in range(2400)])
    ignorant = width(repeated, list(range(2400)))
    assert clustered == pytest.approx(alone, rel=1e-9)
    assert ignorant < 0.6 * clustered


def test_report_says_what_the_runs_say(tmp_path: Path, problem: Problem) -> None:
    generator = np.random.default_rng(0)

    def ranks(method: str) -> dict[str, np.ndarray]:
        most = 3 if method == OURS else 40
        return {test: generator.integers(1, most, len(problem.test[test].pictures)).astype(np.int32) for test in TESTS}

    outcomes = [
        Outcome(Run(setting, method, seed), ranks(method), ranks(method), 20.0)
        for setting in ("all", "keywords")
        for method in METHODS
        for seed in range(3)
    ]
    found = collect(outcomes)
    assert len(found) == 12
    compared = {
        rival: compare(found, rival, {name: test.labels for name, test in problem.test.items()}, draws=50)
        for rival in METHODS
        if rival != OURS
    }
    facts = {"machine": {"device": "a CPU", "torch": "2", "commit": "c"}, "seconds": {"training": 3.0}, "jobs": 2}
    text = report.write_report(tmp_path, found, compared, outcomes, facts)
    written = json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "table.md").read_text() == text + "\n"
    assert "| OTTER                  | 12 + 0" in text
    assert written["wins_and_ties"]["all losses"]["OTTER"] == [12, 0]
    assert len(written["otter_less"][BASELINE]["evaluations"]) == 12
    assert len(written["runs"]) == len(outcomes)
    first = written["runs"][0]
    expected = 100 * np.mean(outcomes[0].test[TESTS[0]] <= 5)
    assert first["test"][f"{TESTS[0]} hit@5"] == pytest.approx(expected, abs=1e-3)


# ---- the released code's diagonals ----

COUNT, RANKS, WIDTH = 5, 3, 12
SCALES = 20.0, 30.0


def batch() -> tuple[Tensor, ...]:
    return *make_features("clustered", RANKS * COUNT, WIDTH), *make_features("random", RANKS * COUNT, WIDTH, seed=1)


def _rank(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    own = slice(rank * COUNT, (rank + 1) * COUNT)
    x, y, v, t = (each[own] for each in batch())
    leaves = [
        x.clone().requires_grad_(),
        y.clone().requires_grad_(),
        *(torch.tensor(s).double().requires_grad_() for s in SCALES),
    ]
    loss = OTTERLoss.official(rank=rank, world_size=RANKS)
    value = loss(*leaves[:3], distill_logit_scale=leaves[3], dist_image_features=v, dist_text_features=t)
    torch.save([value.detach(), *torch.autograd.grad(value, leaves)], f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_in_one_process_equal_real_ones(tmp_path: Path) -> None:
    spawn(_rank, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=RANKS)  # type: ignore[no-untyped-call]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    x, y, v, t = batch()
    leaves = x, y, scale, second = [each.requires_grad_() for each in (x, y, *(torch.tensor(s).double() for s in SCALES))]
    value = diagonal.official_over_ranks(x, y, scale, second, v, t, (COUNT,) * RANKS)
    gradients = torch.autograd.grad(value, leaves)
    # Under DDP the towers' gradients are the mean over the ranks: each rank's features get a share of 1 / RANKS.
    assert all(relative(found[0], value) < 1e-12 for found in ranks)
    for index, gradient in enumerate(gradients[:2], start=1):
        assert relative(torch.cat([found[index] for found in ranks]) / RANKS, gradient) < 1e-12
    for index, gradient in enumerate(gradients[2:], start=3):
        assert relative(sum(found[index] for found in ranks) / RANKS, gradient) < 1e-12

    right = diagonal.official_over_ranks(x, y, scale, second, v, t, (RANKS * COUNT,))
    alone = OTTERLoss.official()(x, y, scale, distill_logit_scale=second, dist_image_features=v, dist_text_features=t)
    assert relative(right, alone) < 1e-12  # the same value; its gradient lacks what went through the gathering
    assert relative(torch.autograd.grad(right, leaves)[0], torch.autograd.grad(alone, leaves)[0]) > 0.01
    assert relative(right, value) > 1e-4


def test_wrong_diagonals_give_mass_back() -> None:
    v, t = make_features("permutation", 64, 16)
    assert diagonal.given_back(v, v, ranks=8).shape == (56,)
    assert diagonal.given_back(v, v, ranks=8).min() > 0.3
    assert diagonal.given_back(v, t, ranks=1).numel() == 0


@pytest.mark.usefixtures("one_thread")
def test_every_arm_trains(problem: Problem) -> None:
    trained = [diagonal.train_arm(problem, Run(setting, arm, 0, 3)) for setting in diagonal.CHOSEN for arm in diagonal.ARMS]
    tested = [one.test[TESTS[0]] for one in trained]
    assert all(0 < scores[10] < 100 for scores in tested)
    facts = {"seeds": 1, "ranks": 8, "machine": {"device": "a CPU", "torch": "2", "commit": "c"}, "seconds": 3.0, "jobs": 2}
    text = diagonal.report(trained, facts)
    difference = tested[3][10] - tested[2][10]
    assert "the diagonal" in text
    assert f"{difference:+.2f}" in text


# ---- the command ----


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
    from benchmarks.realpairs.train import make_model

    model = make_model(problem, SETTINGS["all"], Run("all", OURS, 0))
    with torch.no_grad():
        for parameter in model.image.parameters():
            parameter.zero_()
        test = problem.test[TESTS[1]]
        assert set(score(model, problem, test).tolist()) == {len(test.names)}
