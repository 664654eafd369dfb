"""Zero-shot evaluation of any model, and of a checkpoint."""

import argparse
import doctest
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.reproduction import banks, checkpoint, config, evaluate, images, models, results, scores, table, tasks, zero_shot
from benchmarks.reproduction.banks import Bank
from benchmarks.reproduction.evaluate import EvaluationError, Model

from .files import write

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


@pytest.mark.parametrize("module", [banks, results, scores, table, zero_shot], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_hold(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


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
