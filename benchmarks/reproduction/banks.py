"""Class banks and labels of the zero-shot benchmarks, read from the official files as they are.

A bank is the names a picture is compared with, in order; labels say which of them are true for which picture. A picture is known
by its key: the file name without folder and ending (Google Open Images, ImageNet 10K), or its path below the folder of pictures.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import read_lines, read_table, stem, without_ending

PAPER_TEMPLATE = "a photo of {}."
"""The paper's one prompt a class."""

JOIN = ",or "
"""Between several names of one class, as the authors' evaluation has it."""


@dataclass(frozen=True)
class Bank:
    """The names of the classes and the identifiers by which label files call them, in order.

    Example:
        >>> bank = Bank(("cat", "crane", "crane"), ("n1", "n2", "n3"))
        >>> bank.duplicates
        {'crane': 2}
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"a bank needs one id per name, got {len(self.ids)} ids for {len(self.names)} names")
        if not self.names:
            raise ValueError("a bank needs at least one class: the file of classes is empty")
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise ValueError(
                f"ids of a bank must differ, but {twice[0]!r} is there more than once: the file of classes is damaged"
            )
        if nameless := [number for number, name in enumerate(self.names) if not name.strip()]:
            raise ValueError(f"class {nameless[0]} (id {self.ids[nameless[0]]!r}) has no name: the file of classes is damaged")

    @property
    def duplicates(self) -> dict[str, int]:
        """Names that several classes share: they tie, and the first of them comes first."""
        return {name: count for name, count in Counter(self.names).items() if count > 1}

    @property
    def positions(self) -> dict[str, int]:
        """The position of each id."""
        return {name: position for position, name in enumerate(self.ids)}

    @property
    def digest(self) -> str:
        """SHA-256 of names and ids in order: two banks with the same digest ask the same question."""
        return hashlib.sha256(
            "\n".join(f"{id}\t{name}" for id, name in zip(self.ids, self.names, strict=True)).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Labels:
    """The positions of the true classes of every picture in the label file, and how many labels the bank does not have."""

    of: dict[str, tuple[int, ...]]
    unknown: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 of pictures and positions."""
        return hashlib.sha256("\n".join(f"{key}\t{sorted(true)}" for key, true in sorted(self.of.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Captions:
    """Captions of pictures: ``texts[i]`` belongs to the picture ``keys[owners[i]]``."""

    keys: tuple[str, ...]
    texts: tuple[str, ...]
    owners: tuple[int, ...]


def prompts(name: str, templates: Sequence[str]) -> list[str]:
    """The name in every template.

    Raises:
        ValueError: a template without ``{}``.

    Example:
        >>> prompts("dog,or domestic dog", ["a photo of {}."])
        ['a photo of dog,or domestic dog.']
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"a template needs {{}} where the name goes, got {template!r}")
    return [template.replace("{}", name) for template in templates]  # a name may have braces


def open_images_bank(path: Path) -> Bank:
    """Google Open Images' ``oidv6-class-descriptions.csv``: LabelName, DisplayName; 19,994 rows, all of them, in order."""
    rows = list(read_table(path, ("LabelName", "DisplayName")))
    return Bank(tuple(name for _, name in rows), tuple(id for id, _ in rows))


def open_images_labels(path: Path, bank: Bank) -> Labels:
    """``test-annotations-human-imagelabels.csv``: ImageID, Source, LabelName, Confidence; what people confirmed (Confidence 1).

    A picture of which people only denied labels has none, and stays.

    Raises:
        ValueError: the ``-boxable`` file, which knows 600 of the classes, or a Confidence that is not a number.
    """
    if "boxable" in path.name:
        raise ValueError(f"{path.name} has the labels of 600 boxable classes only; use test-annotations-human-imagelabels.csv")
    positions, found, unknown = bank.positions, dict[str, dict[int, None]](), 0
    for key, label, confidence in read_table(path, ("ImageID", "LabelName", "Confidence")):
        true = found.setdefault(key, {})
        try:
            confirmed = float(confidence) == 1
        except ValueError:
            raise ValueError(f"{path}: Confidence of picture {key} must be a number, got {confidence!r}") from None
        if confirmed and label in positions:
            true[positions[label]] = None
        unknown += confirmed and label not in positions
    return Labels({key: tuple(true) for key, true in found.items()}, unknown)


def tencent_bank(path: Path) -> Bank:
    """Tencent ML-Images' ``dictionary_and_semantic_hierarchy.txt``: index, WordNet id, index of parent, names; 11,166 classes.

    Ids are the indices, which the label files use. Also reads the copy beside the paper's code, where a row has blanks for a tab.
    """
    rows = _hierarchy(path)
    return Bank(
        tuple(JOIN.join(part.strip() for part in name.split(", ")) for _, name in rows), tuple(map(str, range(len(rows))))
    )


def tencent_leaves(path: Path) -> list[int]:
    """Positions of the classes of the same file that no class has as its parent."""
    rows = _hierarchy(path)
    parents = {parent for parent, _ in rows}
    return [position for position in range(len(rows)) if position not in parents]


def tencent_labels(path: Path, bank: Bank) -> Labels:
    """Lines of a file name and its classes, as ``3371`` or as ``3371:1``, ancestors included.

    So are ``val_image_id_from_imagenet.txt`` of Tencent ML-Images and the copy beside the paper's code.
    """
    positions, found, unknown = bank.positions, dict[str, tuple[int, ...]](), 0
    for number, line in enumerate(read_lines(path), 1):
        name, *fields = line.split()
        indices = [field.split(":")[0] for field in fields]
        if not all(index.isdecimal() for index in indices):
            raise ValueError(f"{path}, line {number}: expected a file name and class indices, got {line[:80]!r}")
        key = stem(name)
        if key in found:
            raise ValueError(f"{path}, line {number}: picture {key} is there twice")
        found[key] = tuple(dict.fromkeys(positions[index] for index in indices if index in positions))
        unknown += sum(index not in positions for index in indices)
    return Labels(found, unknown)


def restrict(bank: Bank, labels: Labels, keep: Collection[int]) -> tuple[Bank, Labels]:
    """The classes at the positions `keep` alone; a picture may be left without a label.

    Example:
        >>> restrict(Bank(("thing", "cat"), ("0", "1")), Labels({"a": (0, 1), "b": (0,)}), [1])[1].of
        {'a': (0,), 'b': ()}
    """
    kept = sorted(keep)
    new = {position: number for number, position in enumerate(kept)}
    smaller = Bank(tuple(bank.names[position] for position in kept), tuple(bank.ids[position] for position in kept))
    return smaller, Labels({key: tuple(new[p] for p in true if p in new) for key, true in labels.of.items()}, labels.unknown)


def imagenet_bank() -> Bank:
    """General zero-shot: the WordNet synsets of ImageNet 21k that are not in 1k, then those of 1k; 21,842 in all.

    Ids are WordNet ids, names all lemmas, from timm. The 1k classes are those an encoder pretrained on ImageNet has seen.
    """
    from timm.data import ImageNetInfo

    every, seen = (
        {id: info.label_name_to_description(id).replace(", ", JOIN) for id in info.label_names()}
        for info in (ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k"))
    )
    names = {**{id: name for id, name in every.items() if id not in seen}, **seen}
    return Bank(tuple(names.values()), tuple(names))


def wordnet_labels(keys: Iterable[str], bank: Bank) -> Labels:
    """Labels of pictures whose folder is, or whose name begins with, their class's WordNet id.

    Example:
        >>> wordnet_labels(["n1/a", "x/n2_7"], Bank(("cat", "dog"), ("n1", "n2"))).of
        {'n1/a': (0,), 'x/n2_7': (1,)}
    """
    positions, found, unknown = bank.positions, dict[str, tuple[int, ...]](), 0
    for key in keys:
        names = re.findall(r"(?:^|/)(n\d+)(?=[/_]|$)", key)
        true = next((positions[name] for name in reversed(names) if name in positions), None)
        found[key] = () if true is None else (true,)
        unknown += true is None
    return Labels(found, unknown)


def folder_bank(folder: Path) -> Bank:
    """An ImageFolder: one folder a class, sorted; its name is the class's, blanks for underscores."""
    ids = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return Bank(tuple(id.replace("_", " ") for id in ids), tuple(ids))


def folder_labels(keys: Iterable[str], bank: Bank) -> Labels:
    """The first folder of each picture's path is its class; a picture outside of all is left out."""
    positions = bank.positions
    return Labels({key: (positions[first],) for key in keys if "/" in key and (first := key.split("/")[0]) in positions})


def csv_bank(path: Path) -> Bank:
    """A CSV with columns id and name."""
    rows = list(read_table(path, ("id", "name")))
    return Bank(tuple(name for _, name in rows), tuple(id for id, _ in rows))


def csv_labels(path: Path, bank: Bank) -> Labels:
    """A CSV with columns image (path below the folder of pictures) and label (an id); a row per label, an empty one for none."""
    positions, found, unknown = bank.positions, dict[str, dict[int, None]](), 0
    for name, label in read_table(path, ("image", "label")):
        true = found.setdefault(without_ending(name), {})
        if label in positions:
            true[positions[label]] = None
        unknown += bool(label) and label not in positions
    return Labels({key: tuple(true) for key, true in found.items()}, unknown)


def csv_captions(path: Path) -> Captions:
    """A CSV with columns image (path below the folder of pictures) and caption; a row per caption, several per picture."""
    keys, texts, owners = dict[str, int](), list[str](), list[int]()
    for name, caption in read_table(path, ("image", "caption")):
        if not caption:
            raise ValueError(f"{path}: a caption of {name!r} is empty; leave the row out")
        owners.append(keys.setdefault(without_ending(name), len(keys)))
        texts.append(caption)
    return Captions(tuple(keys), tuple(texts), tuple(owners))


def _hierarchy(path: Path) -> list[tuple[int, str]]:
    """The parent and the name of every class."""
    rows: list[tuple[int, str]] = []
    for number, line in enumerate(read_lines(path)):
        fields = re.split(r"\t|  +", line, maxsplit=3)
        if number == 0 and fields[0] == "category_index":
            continue
        if len(fields) != 4 or fields[0] != str(len(rows)) or not re.fullmatch(r"-1|\d+", fields[2]):
            raise ValueError(
                f"{path}, line {number + 1}: expected index {len(rows)}, WordNet id, parent's index, names, got {line[:80]!r}; "
                "use dictionary_and_semantic_hierarchy.txt of Tencent ML-Images in its final version, with a header"
            )
        rows.append((int(fields[2]), fields[3]))
    wrong = next((position for position, (parent, _) in enumerate(rows) if parent >= len(rows)), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: class {wrong} has the parent {rows[wrong][0]}, but there are {len(rows)} classes; is it cut off?"
        )
    return rows
