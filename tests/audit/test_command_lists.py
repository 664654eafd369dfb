"""What the command writes for other programs: keep-lists, uids, tables that a spreadsheet opens, and only whole files."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_losses.audit import PairTrust
from otter_losses.audit.command.lists import LISTS, Names, Selection, uid_pairs, write_lists
from otter_losses.audit.kept import whole_file
from tests.helpers.audits import judged

SCORES = [3.0, -2.0, 0.5, 1.0, -1.0, 2.0]
RESULT = judged(SCORES)
"""Trust .83, 0, .42, .5, .17, .67: from the lowest score to the highest, rows 1, 4, 2, 3, 5, 0."""


@pytest.mark.parametrize(
    ("least", "share", "top", "kept", "suspicious"),
    [
        (0.5, None, 0, [0, 3, 5], [1, 4, 2]),
        (0.5, None, 4, [0, 3, 5], [1, 4, 2, 3]),
        (0.0, None, 2, [0, 1, 2, 3, 4, 5], [1, 4]),
        (1.0, None, 0, [], [1, 4, 2, 3, 5, 0]),
        (0.5, 1 / 3, 0, [0, 5], [1, 4, 2, 3]),
        (0.5, 1.0, 0, [0, 1, 2, 3, 4, 5], []),
        (0.5, 0.0, 9, [], [1, 4, 2, 3, 5, 0]),
    ],
)
def test_kept_and_suspicious(least: float, share: float | None, top: int, kept: Sequence[int], suspicious: Sequence[int]) -> None:
    selection = Selection.of(RESULT, least, share, top)
    assert selection.kept.tolist() == kept
    assert selection.suspicious == suspicious


def written(folder: Path, names: Names, result: PairTrust = RESULT) -> None:
    write_lists(folder, result, Selection.of(result, 0.5, None, 4), names)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_table_brings_back_what_went_in(tmp_path: Path) -> None:
    captions = ["a", "line\nbreak", 'x, "y"', "قطة", "carriage\rreturn", ""]
    written(tmp_path, Names(captions, [f"k{row}" for row in range(6)]))
    header, *table = rows(tmp_path / "suspicious.csv")
    assert header == ["row", "key", "trust", "score", "caption", "best_text", "best_caption", "best_image", "best_image_key"]
    assert [row[:2] for row in table] == [["1", "k1"], ["4", "k4"], ["2", "k2"], ["3", "k3"]]
    assert [row[4] for row in table] == [captions[row] for row in (1, 4, 2, 3)]
    assert [float(row[3]) for row in table] == [-2.0, -1.0, 0.5, 1.0]
    assert table[0][5:] == ["2", captions[2], "0", "k0"]  # of row 1: the next row's text, the image before


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_is_a_formula_and_numbers_stay_numbers(start: str, tmp_path: Path) -> None:
    formula = f"{start}HYPERLINK(0)"
    written(tmp_path, Names([formula] * 6, [formula] * 6))
    for row in rows(tmp_path / "suspicious.csv")[1:]:
        assert [row[1], row[4], row[6], row[8]] == [f"'{formula}"] * 4
    assert rows(tmp_path / "suspicious.csv")[1][3] == "-2.0"
    assert (tmp_path / "keep_keys.txt").read_bytes() == f"{formula}\n".encode() * 3


def test_rows_without_a_better_one_have_none_in_the_table(tmp_path: Path) -> None:
    none = torch.full((6,), -1)
    written(tmp_path, Names(list("abcdef"), list("uvwxyz")), judged(SCORES, best_text=none, best_image=none))
    assert [row[5:] for row in rows(tmp_path / "suspicious.csv")[1:]] == [["-1", "", "-1", ""]] * 4


def test_a_text_that_is_no_unicode_is_replaced(tmp_path: Path) -> None:
    written(tmp_path, Names(["\ud800"] * 6))
    assert rows(tmp_path / "suspicious.csv")[1][4] == "?"


def test_keys_that_are_uids_make_the_subset_file_of_datacomp(tmp_path: Path) -> None:
    uids = [f"{hash_ % 2**128:032x}" for hash_ in (5 << 64, 1, (7 << 100) + 3, 2**128 - 1, 9, (5 << 64) - 1)]
    written(tmp_path, Names(keys=uids))
    subset = np.load(tmp_path / "keep_uids.npy")
    assert subset.dtype == np.dtype("u8,u8")
    expected = sorted((int(uids[row][:16], 16), int(uids[row][16:], 16)) for row in (0, 3, 5))
    assert subset.tolist() == expected
    assert uid_pairs([]).tolist() == []


@pytest.mark.parametrize("odd", ["0" * 31, "0" * 33, "g" * 32, "0" * 31 + " "])
def test_one_key_that_is_no_uid_makes_none(odd: str, tmp_path: Path) -> None:
    written(tmp_path, Names(keys=[*[f"{row:032x}" for row in range(5)], odd]))
    assert not (tmp_path / "keep_uids.npy").exists()


def test_duplicates_are_listed_with_their_keys(tmp_path: Path) -> None:
    written(tmp_path, Names(keys=list("uvwxyz")), judged(SCORES, duplicates=torch.tensor([[0, 3], [2, 5]])))
    assert rows(tmp_path / "duplicates.csv")[1:] == [["0", "u", "3", "x"], ["2", "w", "5", "z"]]


def test_lists_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    written(tmp_path, Names(keys=[f"{row:032x}" for row in range(6)]))
    assert {path.name for path in tmp_path.iterdir()} == set(LISTS)
    written(tmp_path, Names())
    assert {path.name for path in tmp_path.iterdir()} == set(LISTS) - {"alpha.npz", "keep_keys.txt", "keep_uids.npy"}


def test_a_file_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def stopped() -> None:
        with whole_file(path) as file:
            file.write(b"half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_bytes() == b"before"
    with whole_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]
