"""Class banks and labels: official files as they are."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.hit_at_k import percentages
from benchmarks.reproduction import banks, scores
from benchmarks.reproduction.banks import Bank, Labels

from .files import write

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
    assert percentages(scores.constant_hits(labels.of.values(), (1, 2)), 10) == {1: 90.0, 2: 100.0}
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
