"""Zero-shot evaluation: scores as scikit-learn has them, official files as they are, a table of nothing but what was run."""

import argparse
import doctest
import json
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.reproduction import banks, checkpoint, config, evaluate, images, models, results, scores, table, tasks, zero_shot
from benchmarks.reproduction.banks import Bank, Labels
from benchmarks.reproduction.evaluate import EvaluationError, Model
from benchmarks.reproduction.scores import Gallery
from benchmarks.reproduction.zero_shot import ZeroShot

KS = (1, 2, 5, 10)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


def random_features(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_answers(rows: int, classes: int, seed: int, most: int = 4) -> list[list[int]]:
    draw = random.Random(seed)
    return [draw.sample(range(classes), draw.randint(0, most)) for _ in range(rows)]


@pytest.mark.parametrize("module", [banks, results, scores, table, zero_shot], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


# ---- scores ----


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


# ---- banks ----


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


CLASSES = 'LabelName,DisplayName \n/m/0a,Sprenger\'s tulip\n/m/0b,Ball\n/m/0c,"Ducks, geese and swans"\n/g/1d,Ball\n'
LABELS = (
    "ImageID,Source,LabelName,Confidence\n"
    "000a,verification,/m/0b,1\n000a,crowdsource-verification,/m/0c,1\n000a,verification,/m/0a,0\n000a,verification,/m/0b,1.0\n"
    "000b,verification,/m/0a,0\n000c,verification,/m/gone,1\n"
)
HIERARCHY = (
    "category_index\tcategory_id\tindex_of_parent_category\tcategory name\n"
    "0\tn00002452\t-1  thing\n1\tn00002684\t-1\tobject, physical object\n"
    "2\tn001\t1\tcat, house cat\n3\tn002\t1\tdog\n4\tn003\t3\tpug\n"
)


def test_open_images_files_are_taken_as_they_are(tmp_path: Path) -> None:
    bank = banks.open_images_bank(write(tmp_path / "oidv6-class-descriptions.csv", CLASSES))
    assert bank.names == ("Sprenger's tulip", "Ball", "Ducks, geese and swans", "Ball")
    assert bank.duplicates == {"Ball": 2}
    labels = banks.open_images_labels(write(tmp_path / "test-annotations-human-imagelabels.csv", LABELS), bank)
    assert labels.of == {"000a": (1, 2), "000b": (), "000c": ()}
    assert labels.unknown == 1


def test_tencents_files_are_taken_as_they_are(tmp_path: Path) -> None:
    hierarchy = write(tmp_path / "dictionary_and_semantic_hierarchy.txt", HIERARCHY)
    bank = banks.tencent_bank(hierarchy)
    assert bank.names == ("thing", "object,or physical object", "cat,or house cat", "dog", "pug")
    theirs = write(tmp_path / "val_image_id_from_imagenet.txt", "n001/n001_7.JPEG\t2:1\t1:1\nn003/n003_8.JPEG\t4:1\t3:1\t1:1\n")
    copied = write(tmp_path / "tencent_val_image_id_from_imagenet.txt", "n001/n001_7.JPEG\t2\t1\nn003/n003_8.JPEG\t4\t3\t1\n")
    labels = banks.tencent_labels(theirs, bank)
    assert labels == banks.tencent_labels(copied, bank) == Labels({"n001_7": (2, 1), "n003_8": (4, 3, 1)})
    leaves, restricted = banks.restrict(bank, labels, banks.tencent_leaves(hierarchy))
    assert leaves.names == ("thing", "cat,or house cat", "pug")
    assert restricted.of == {"n001_7": (1,), "n003_8": (2,)}


def test_ancestors_make_a_constant_answer_score_ninety_per_cent(tmp_path: Path) -> None:
    bank = banks.tencent_bank(write(tmp_path / "hierarchy.txt", HIERARCHY))
    lines = [f"n/{i}.JPEG\t{'2:1' if i % 2 else '4:1 3:1'}\t1:1" if i < 9 else f"n/{i}.JPEG\t0:1" for i in range(10)]
    labels = banks.tencent_labels(write(tmp_path / "labels.txt", "\n".join(lines)), bank)
    assert scores.percentages(scores.constant_hits(labels.of.values(), (1, 2)), 10) == {1: 90.0, 2: 100.0}
    _, leaves = banks.restrict(bank, labels, banks.tencent_leaves(tmp_path / "hierarchy.txt"))
    assert scores.constant_hits(leaves.of.values(), (1,)) == {1: 5}


@pytest.mark.filterwarnings("ignore")  # timm's own imports
def test_the_general_bank_is_imagenet_21k_and_1k() -> None:
    bank = banks.imagenet_bank()
    assert len(bank.names) == len(set(bank.ids)) == 21_842
    assert bank.names[-1000] == "tench,or Tinca tinca"
    assert bank.names[bank.positions["n00015388"]] == "animal,or animate being,or beast,or brute,or creature,or fauna"
    labels = banks.wordnet_labels(["n00015388/x", "val/n01440764_12", "n1/y"], bank)
    assert labels.of["val/n01440764_12"] == (20_842,)
    assert labels.of["n1/y"] == ()
    assert labels.unknown == 1


def test_captions_and_labels_of_a_csv(tmp_path: Path) -> None:
    captions = banks.csv_captions(write(tmp_path / "c.csv", "\ufeffimage,caption\na/1.jpg,one\nb.png,two\na/1.jpg,three\n"))
    assert captions == banks.Captions(("a/1", "b"), ("one", "two", "three"), (0, 1, 0))
    bank = banks.csv_bank(write(tmp_path / "b.csv", "id,name\n1,cat\n2,dog\n"))
    labels = banks.csv_labels(write(tmp_path / "l.csv", "label,image\n2,a.jpg\n1,a.jpg\n,b.jpg\n3,c.jpg\n"), bank)
    assert labels == Labels({"a": (1, 0), "b": (), "c": ()}, unknown=1)


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (banks.open_images_bank, "/m/0a,Tulip\n", "needs the columns LabelName, DisplayName"),
        (banks.open_images_bank, "LabelName,DisplayName\n", "at least one class"),
        (banks.open_images_bank, "LabelName,DisplayName\n/m/0a\n", "line 2: expected 2 fields, got 1; is it cut off"),
        (banks.open_images_bank, "LabelName,DisplayName\n/m/0a,Tulip\n/m/0a,Ball\n", "'/m/0a' is there more than once"),
        (banks.open_images_bank, "LabelName,DisplayName\n/m/0a, \n", "has no name"),
        (banks.tencent_bank, "n00002452\t-1\tthing\n", "in its final version, with a header"),
        (banks.tencent_bank, HIERARCHY.replace("\n3\t", "\n4\t"), "line 5: expected index 3"),
        (banks.tencent_bank, HIERARCHY.replace("n003\t3", "n003\t9"), "class 4 has the parent 9"),
        (banks.csv_captions, "image,caption\na.jpg,\n", "a caption of 'a.jpg' is empty"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, reader: Any, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader(write(tmp_path / "file", text))


def test_wrong_label_files_are_refused(tmp_path: Path) -> None:
    bank = Bank(("cat",), ("0",))
    with pytest.raises(ValueError, match="600 boxable classes only"):
        banks.open_images_labels(tmp_path / "test-annotations-human-imagelabels-boxable.csv", bank)
    with pytest.raises(ValueError, match="Confidence of picture x must be a number, got 'yes'"):
        banks.open_images_labels(write(tmp_path / "a", "ImageID,LabelName,Confidence\nx,0,yes\n"), bank)
    with pytest.raises(ValueError, match="line 2: picture a is there twice"):
        banks.tencent_labels(write(tmp_path / "b", "n1/a.JPEG\t0\nn1/a.JPEG\t0\n"), bank)
    with pytest.raises(ValueError, match="line 1: expected a file name and class indices"):
        banks.tencent_labels(write(tmp_path / "c", "a.JPEG\tcat\n"), bank)


# ---- any model ----


def colour_images(pixels: Tensor) -> Tensor:
    """The mean colour, as far as it differs from grey; a model that needs no training."""
    return torch.cat([pixels.mean(dim=(2, 3)), torch.ones(len(pixels), 1)], dim=1)


def colour_texts(texts: list[str]) -> Tensor:
    every = images.normalize(torch.tensor(list(COLOURS.values()), dtype=torch.uint8).view(-1, 1, 1, 3))
    features = dict(zip(COLOURS, colour_images(every), strict=True))
    return torch.stack([features[next(name for name in COLOURS if name in text)] for text in texts])


MODEL = Model(colour_images, colour_texts, 16, {"sha256": "0" * 64})


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), COLOURS[colour]).save(path, lossless=True)


def options_of(benchmark: str, images: Path, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"benchmark": benchmark, "images": images, "classes": None, "labels": None, **given})


@pytest.fixture
def goi(tmp_path: Path) -> argparse.Namespace:
    """13 pictures: two without a label, one labelled wrongly, one no picture; one more is not there."""
    names = [*COLOURS] * 2
    for number, colour in enumerate(names):
        paint(tmp_path / "test" / f"{number:04x}.png", colour)
    paint(tmp_path / "test" / "0010.png", "red")
    (tmp_path / "test" / "0011.jpg").write_bytes(b"no picture")
    paint(tmp_path / "test" / "0013.png", "red")
    rows = [f"{number:04x},v,/m/{colour},1\n" for number, colour in enumerate(["green", *names[1:]])]
    labels = "ImageID,Source,LabelName,Confidence\n" + "".join(rows) + "0010,v,/m/red,0\n0011,v,/m/red,1\n0012,v,/m/red,1\n"
    classes = "LabelName,DisplayName \n" + "".join(f"/m/{colour},{colour}\n" for colour in COLOURS) + "/m/again,red\n"
    return options_of(
        "goi", tmp_path / "test", classes=write(tmp_path / "classes.csv", classes), labels=write(tmp_path / "labels.csv", labels)
    )


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_pictures_on_disk_are_scored_and_the_others_counted(goi: argparse.Namespace, batch: int) -> None:
    task = tasks.TASKS["goi"](goi)
    with pytest.raises(EvaluationError, match=r"1 of 14 pictures are missing, 0 unreadable, .*: 0012"):
        evaluate.evaluate(MODEL, task, batch=batch)
    with pytest.raises(EvaluationError, match=r"1 of 14 .* 1 unreadable, .*0011 \(corrupt image"):
        evaluate.evaluate(MODEL, task, batch=batch, max_skipped=0.1)
    (found,) = evaluate.evaluate(MODEL, task, batch=batch, max_skipped=0.2)
    assert found["scores"]["hit@1"] == pytest.approx(100 * 9 / 12, rel=1e-12)  # not the unlabelled, not the mislabelled
    (reason,) = found["pictures"].pop("bad_first")
    assert reason.startswith("0011: corrupt image")
    assert found["pictures"] == {"scored": 12, "labelled": 10, "missing": 1, "missing_first": ["0012"], "bad": 1}
    assert set(found["scores"]) == {"hit@1", "hit@2", "hit@5"}  # of 6 classes
    assert found["benchmark"]["duplicate_names"] == {"red": 2}
    assert found["benchmark"]["constant"]["hit@1"] == pytest.approx(100 * 3 / 12, rel=1e-12)
    assert found["benchmark"]["templates"] == ["a photo of {}."]
    assert found["versions"]["torch"] == torch.__version__


def test_workers_change_nothing(goi: argparse.Namespace) -> None:
    task = tasks.TASKS["goi"](goi)
    here, there = (list(tasks.load(task, 16, 5, workers)) for workers in (0, 1))
    assert (
        [batch.positions for batch in here]
        == [batch.positions for batch in there]
        == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 12]]
    )
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(here, there, strict=True))
    assert [[key for key, _ in batch.bad] for batch in there] == [[], [], ["0011"]]


def test_imagenet_10k_asks_two_questions_in_one_pass(tmp_path: Path) -> None:
    rows = ["0\tn0\t-1\tred", "1\tn1\t0\tgreen", "2\tn2\t0\tblue"]
    classes = write(
        tmp_path / "d.txt", "category_index\tcategory_id\tindex_of_parent_category\tcategory name\n" + "\n".join(rows)
    )
    labels = write(tmp_path / "l.txt", "n1/n1_1.JPEG\t1:1\t0:1\nn2/n2_1.JPEG\t2:1\t0:1\nn0/n0_1.JPEG\t0:1\n")
    for name, colour in (("n1_1", "green"), ("n2_1", "green"), ("n0_1", "red"), ("n9_1", "red")):
        paint(tmp_path / "images" / name[:2] / f"{name}.PNG", colour)
    task = tasks.TASKS["in10k"](options_of("in10k", tmp_path / "images", classes=classes, labels=labels))
    every, leaves = evaluate.evaluate(MODEL, task, ks=(1, 2))
    assert every["pictures"]["scored"] == leaves["pictures"]["scored"] == 3
    assert every["scores"]["hit@1"] == pytest.approx(200 / 3)
    assert every["benchmark"]["constant"]["hit@1"] == 100  # "red", the root
    assert leaves["scores"] == {"hit@1": pytest.approx(100 / 3), "hit@2": pytest.approx(200 / 3)}
    assert leaves["pictures"]["labelled"] == 2


def test_folders_csvs_and_retrieval(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        paint(tmp_path / "images" / colour / "1.png", colour)
    paint(tmp_path / "images" / "blue" / "2.png", "green")
    (folder,) = evaluate.evaluate(MODEL, tasks.TASKS["folder"](options_of("folder", tmp_path / "images")), ks=(1, 4))
    assert folder["scores"] == {"hit@1": 75.0}
    classes = write(tmp_path / "c.csv", "id,name\nr,red\ng,green\n")
    labels = write(tmp_path / "l.csv", "image,label\nred/1.png,r\ngreen/1.png,g\nblue/2.png,r\n")
    (listed,) = evaluate.evaluate(
        MODEL, tasks.TASKS["csv"](options_of("csv", tmp_path / "images", classes=classes, labels=labels)), ks=(1,)
    )
    assert listed["scores"]["hit@1"] == pytest.approx(200 / 3)
    captions = write(tmp_path / "t.csv", "image,caption\nred/1.png,so red\nred/1.png,green\ngreen/1.png,green\nblue/1.png,blue\n")
    (both,) = evaluate.evaluate(
        MODEL, tasks.TASKS["retrieval"](options_of("retrieval", tmp_path / "images", labels=captions)), ks=(1, 2)
    )
    assert both["scores"]["image to text R@1"] == pytest.approx(200 / 3)  # of two equal captions the first is the red picture's
    assert both["scores"]["image to text R@2"] == 100
    assert both["scores"]["text to image R@1"] == 75
    with pytest.raises(ValueError, match="benchmark csv needs --classes"):
        tasks.TASKS["csv"](options_of("csv", tmp_path / "images"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no picture"):
        tasks.TASKS["folder"](options_of("folder", tmp_path / "empty"))
    with pytest.raises(ValueError, match="is not there"):
        tasks.TASKS["folder"](options_of("folder", tmp_path / "none"))


def test_retrieval_is_among_the_pictures_that_can_be_read(tmp_path: Path) -> None:
    for colour in ("red", "green", "blue"):
        paint(tmp_path / "images" / f"{colour}.png", colour)
    (tmp_path / "images" / "green.png").write_bytes(b"")
    captions = write(tmp_path / "t.csv", "image,caption\nnone.png,white\nred.png,red\ngreen.png,green\nblue.png,blue\n")
    task = tasks.TASKS["retrieval"](options_of("retrieval", tmp_path / "images", labels=captions))
    (both,) = evaluate.evaluate(MODEL, task, ks=(1, 2, 3), max_skipped=0.5)
    assert both["scores"] == {f"{way} R@{k}": 100.0 for way in ("image to text", "text to image") for k in (1, 2)}
    assert both["benchmark"]["captions"] == both["pictures"]["scored"] == 2
    assert (both["pictures"]["missing_first"], both["pictures"]["bad"]) == (["none"], 1)


def test_templates_are_an_ensemble_of_normalised_features() -> None:
    bank = Bank(("b{}", "a", "b{}"), ("0", "1", "2"))
    asked: list[list[str]] = []

    def encode(texts: list[str]) -> Tensor:
        asked.append(texts)
        return torch.tensor([[float(len(text)), text.count("a"), 1.0] for text in texts])

    gallery = zero_shot.class_gallery(encode, bank, ["{}", "a photo of {}!"], batch=3)
    unit = torch.nn.functional.normalize(encode(["b{}", "a photo of b{}!"]), dim=1)
    assert gallery.of.tolist() == [0, 1, 0]
    assert torch.equal(gallery.features[0], unit.mean(dim=0))
    assert sorted(text for texts in asked[:2] for text in texts) == ["a", "a photo of a!", "a photo of b{}!", "b{}"]
    with pytest.raises(ValueError, match=r"needs \{\} where the name goes, got 'a photo'"):
        zero_shot.class_gallery(encode, bank, ["a photo"])
    with pytest.raises(ValueError, match="at least one prompt"):
        zero_shot.class_gallery(encode, bank, [])
    with pytest.raises(ValueError, match=r"a row per text; got \(1, 3\) for 2 texts"):
        zero_shot.class_gallery(lambda texts: encode(texts)[:1], bank, ["{}"])


def test_a_model_that_gives_nan_has_no_score(goi: argparse.Namespace) -> None:
    broken = Model(lambda pixels: colour_images(pixels) * float("nan"), colour_texts, 16)
    with pytest.raises(ValueError, match="queries must be finite"):
        evaluate.evaluate(broken, tasks.TASKS["goi"](goi), max_skipped=1)


@given(cuts=st.lists(st.integers(0, 30), max_size=5), seed=st.integers(0, 99))
def test_batches_do_not_matter(cuts: list[int], seed: int) -> None:
    images, classes, answers = random_features(30, 6, seed), random_features(12, 6, seed + 1), random_answers(30, 12, seed)
    edges = sorted({0, 30, *cuts})
    batches = [(images[a:b], answers[a:b]) for a, b in pairwise(edges)]
    parts = zero_shot.zero_shot(lambda pixels: pixels, Gallery.plain(classes), batches)
    whole = ZeroShot(Gallery.plain(classes))
    whole.add(images, answers)
    assert (parts.scores, parts.images, parts.labelled) == (whole.scores, 30, sum(bool(true) for true in answers))


# ---- a checkpoint ----


@pytest.mark.filterwarnings("ignore")  # timm's and transformers' own
def test_a_checkpoint_is_scored_on_the_command_line(
    goi: argparse.Namespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config.load(["otter", "dry_run", "tiny"], ["train.seed=3"])
    torch.manual_seed(0)
    model = models.PairModel(settings.model).eval()
    state = {
        "step": 20,
        "config": settings.as_dict(),
        "text_config": settings.model.text_config,
        "pairs": 160,
        "model": model.state_dict(),
        "teacher": None,
    }
    path = checkpoint.save(tmp_path / "run" / "checkpoints", state)
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    given = ["--classes", str(goi.classes), "--labels", str(goi.labels), "--max-skipped", "0.2", "--out", str(tmp_path / "out")]
    arguments = [
        str(tmp_path / "run"),
        "--benchmark",
        "goi",
        "--images",
        str(goi.images),
        *given,
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    evaluate.run(parser.parse_args(arguments))
    (file,) = (tmp_path / "out").iterdir()
    found = results.read(file)
    assert found["model"]["config"] == json.loads(json.dumps(settings.as_dict()))
    assert found["model"]["sha256"].startswith(file.stem.removeprefix("goi-"))
    assert (found["model"]["checkpoint"], found["model"]["step"]) == (path.name, 20)

    tokenize = models.tokenizer(settings.model)
    direct = Model(model.encode_images, lambda texts: model.encode_texts(tokenize(texts)), settings.data.size)
    (again,) = evaluate.evaluate(direct, tasks.TASKS["goi"](goi), max_skipped=0.2)
    assert found["scores"] == again["scores"]
    assert "1 missing and 1 unreadable left out" in (printed := capsys.readouterr().out)
    assert "1 names belong to several classes" in printed

    report = table.report(table.read_all([tmp_path / "out"]))
    assert f"| {found['scores']['hit@1']:.1f} " in report
    assert "NOT the paper's setting" in report
    assert "160 training pairs (paper: 2,911,810)" in report
    with pytest.raises(checkpoint.CheckpointError, match="trained without a teacher"):
        evaluate.run(parser.parse_args([*arguments, "--teacher"]))
    with pytest.raises(EvaluationError, match="there is no checkpoint in"):
        evaluate.run(parser.parse_args([str(tmp_path / "out"), *arguments[1:]]))


# ---- results and table ----


def a_result(
    label: str = "OTTER",
    seed: int = 0,
    benchmark: str = "goi",
    value: float = 10.0,
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """As evaluate writes them; `settings` by full name, `changes` of the result's parts."""
    tables = config.load([{"OTTER": "otter", "InfoNCE": "info_nce"}[label]]).as_dict()
    for key, setting in {"train.seed": seed, **(settings or {})}.items():
        tables[key.split(".")[0]][key.split(".")[1]] = setting
    model = {"checkpoint": "00056870.pt", "sha256": f"{seed}" * 64, "weights": "model", "step": 56_870, "pairs": 2_911_810}
    asked = {"name": benchmark, "classes_sha256": "a", "templates": ["a photo of {}."], "constant": {"hit@1": 1.5}}
    return {
        "benchmark": asked | changes.get("asked", {}),
        "scores": {"hit@1": value, "hit@2": 2 * value},
        "pictures": {"scored": 100, "missing": 0, "bad": 0} | changes.get("pictures", {}),
        "model": model | {"config": tables} | changes.get("model", {}),
        "versions": {},
    }


def saved(folder: Path, *found: dict[str, Any]) -> list[table.Result]:
    for number, result in enumerate(found):
        results.write(folder / f"{number}.json", result)
    return table.read_all([folder])


def rows_of(report: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line.startswith("| ")]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_the_papers_numbers_stand_beside_empty_cells() -> None:
    rows = rows_of(report := table.report([]))
    assert rows["InfoNCE", "paper"] == ["26.8", "55.1", "66.4", "10.9", "29.4", "40.5"]
    assert rows["label smoothing", "paper"] == ["26.3", "55.9", "67.5", "10.1", "29.6", "39.8"]
    assert rows["KD", "paper"] == ["26.7", "55.3", "67.1", "10.0", "27.5", "38.5"]
    assert rows["OTTER", "paper"] == ["29.1", "59.6", "70.9", "12.0", "31.8", "42.1"]
    assert [cells for (_, who), cells in rows.items() if who == "ours"] == [[""] * 6] * 5
    assert report.endswith("Nothing was run.")


def test_ours_are_means_and_deviations_of_what_was_run(tmp_path: Path) -> None:
    found = saved(
        tmp_path,
        a_result(seed=0, value=10),
        a_result(seed=1, value=11),
        a_result(seed=2, value=15),
        a_result("InfoNCE", value=9),
        a_result(benchmark="in10k-leaves", value=3),
    )
    rows = rows_of(report := table.report(found))
    assert rows["OTTER", "ours"] == ["12.0 ± 2.6 (3)", "", "", "", "", ""]
    assert rows["InfoNCE", "ours"] == ["9.0", "", "", "", "", ""]
    assert rows["KD", "ours"] == [""] * 6
    assert rows["one answer for all", "ours"] == ["1.5", "", "", "", "", ""]
    assert rows["goi hit@2", "24.0 ± 5.3 (3)"] == ["18.0", ""]
    assert rows["in10k-leaves hit@1", "3.0"] == ["", "1.5"]
    assert "NOT the paper's setting" not in report
    assert "- OTTER, seed 2, goi: 100 pictures (0 missing, 0 unreadable left out); 00056870.pt (222222222222)" in report


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (a_result(seed=1, settings={"train.epochs": 20}), "trained differently: .* train.epochs is 10 and 20"),
        (a_result("InfoNCE", settings={"model.image": "fbnetc_100"}), "trained differently: .* model.image"),
        (a_result(seed=1, model={"step": 5}), "trained differently: .* step is 56870 and 5"),
        (a_result(seed=1, model={"weights": "teacher"}), "weights is 'model' and 'teacher'"),
        (a_result(seed=1, model={"pairs": 9}), "pairs is 2911810 and 9"),
        (a_result(seed=1, settings={"loss.options": {"alpha": 0.9}}), "two losses called 'OTTER': .* loss.options"),
        (a_result(seed=1, settings={"model.temperatures": 2}), "two losses called 'OTTER'"),
        (a_result("InfoNCE", asked={"classes_sha256": "b"}), "different questions called 'goi': .* classes_sha256"),
        (a_result(seed=1, asked={"templates": ["{}"]}), "different questions called 'goi': .* templates"),
        (a_result("InfoNCE", pictures={"scored": 99}), "different questions called 'goi': .* pictures is 100 and 99"),
        (a_result(seed=0, value=11.0), "are both OTTER, seed 0, on goi: leave one out"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table.report(saved(tmp_path, a_result(), other))


def test_what_changes_no_score_is_not_refused(tmp_path: Path) -> None:
    found = saved(tmp_path, a_result(), a_result(seed=1, settings={"train.log_every": 1, "data.workers": 0}), a_result("InfoNCE"))
    assert "10.0 ± 0.0 (2)" in table.report(found)


def test_only_results_are_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no result file"):
        table.read_all([tmp_path])
    for text in ("{", "[]", '{"format": 1, "scores": {"hit@1": 99}}', json.dumps({**a_result(), "format": 0})):
        with pytest.raises(ValueError, match="result of"):
            table.read_all([write(tmp_path / "a.json", text)])
    foreign = a_result()
    del foreign["model"]["config"]
    with pytest.raises(ValueError, match="only checkpoints of train go into the table"):
        saved(tmp_path / "foreign", foreign)


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    results.write(path, a_result(value=10))
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(path, a_result(value=float("nan")))
    with pytest.raises(ValueError, match="a result needs versions"):
        results.write(path, {key: value for key, value in a_result().items() if key != "versions"})

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        results.write(path, a_result(value=11))
    assert results.read(path)["scores"]["hit@1"] == 10
    assert list(tmp_path.iterdir()) == [path]
