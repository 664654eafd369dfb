"""What the command reads: features, and captions, keys and paths, from every kind of file, and what it says of a bad one."""

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from otter_losses.audit.command import files
from otter_losses.audit.command.columns import CAPTIONS, KEYS, read_column
from otter_losses.audit.command.feature_files import read_features
from otter_losses.audit.command.files import InputError, in_order

FEATURES: NDArray[np.float32] = np.random.default_rng(3).normal(size=(7, 5)).astype(np.float32)
TEXTS = ["a, b", 'say "x"', "", "قطة", "two\u2028lines", "=1+1", "last"]


def write_npy(path: Path) -> None:
    np.save(path, FEATURES)


def write_columns(path: Path) -> None:
    """In the other order in memory, as a transposed array is saved."""
    np.save(path, np.asfortranarray(FEATURES))


def write_npz(path: Path) -> None:
    np.savez(path, ids=np.arange(7), f=FEATURES)


def write_compressed(path: Path) -> None:
    np.savez_compressed(path, f=FEATURES)


def write_tensors(path: Path) -> None:
    save_file({"f": torch.from_numpy(FEATURES), "other": torch.zeros(1)}, path)


def write_lists(path: Path) -> None:
    pq.write_table(pa.table({"key": list("abcdefg"), "f": FEATURES.tolist()}), path, row_group_size=3)


def write_fixed_lists(path: Path) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), 5)
    pq.write_table(pa.table({"f": column}), path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.npy", write_npy),
        ("x.npy", write_columns),
        ("x.npz:f", write_npz),
        ("x.npz", write_compressed),
        ("x.safetensors:f", write_tensors),
        ("x.parquet", write_lists),
        ("x.parquet:f", write_fixed_lists),
    ],
)
def test_features_are_those_of_the_file(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name.split(":")[0])
    read = read_features("image_features", str(tmp_path / name))
    np.testing.assert_allclose(np.asarray(read), FEATURES, rtol=1e-7)


@pytest.mark.parametrize(("name", "write"), [("x.npy", write_npy), ("x.npz:f", write_npz)])
def test_what_lies_in_one_piece_on_the_disk_is_not_read_into_memory(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / name.split(":")[0])
    assert isinstance(read_features("image_features", str(tmp_path / name)), np.memmap)


def test_half_precision_of_torch_stays_what_it_is(tmp_path: Path) -> None:
    tensor = torch.from_numpy(FEATURES).bfloat16()
    save_file({"only": tensor}, tmp_path / "x.safetensors")
    read = read_features("text_features", str(tmp_path / "x.safetensors"))
    assert isinstance(read, torch.Tensor)
    torch.testing.assert_close(read, tensor, rtol=0, atol=0)


@pytest.mark.parametrize("given", ["img_emb", "img_emb/img_emb_*.npy"])
def test_files_of_a_folder_follow_their_numbers(given: str, tmp_path: Path) -> None:
    """Twelve of them, so that 10 and 11 come after 9 and not after 1."""
    (tmp_path / "img_emb").mkdir()
    for number in range(12):
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", np.full((2, 3), number, np.float16))
    read = np.asarray(read_features("image_features", str(tmp_path / given)))
    assert read[:, 0].tolist() == [number for number in range(12) for _ in range(2)]
    assert read.dtype == np.float16


def test_members_of_several_files_are_read_from_each(tmp_path: Path) -> None:
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", l14_img=np.full((1, 2), number, np.float16), l14_txt=np.zeros((1, 2), np.float16))
        (tmp_path / f"{number}.parquet").write_bytes(b"of no interest here")
    read = np.asarray(read_features("image_features", str(tmp_path / "*.npz:l14_img")))
    assert read[:, 0].tolist() == [0, 1, 2]


def refused(given: str, message: str, reader: Callable[[str, str], Any] = read_features) -> None:
    with pytest.raises(InputError, match=message):
        reader("image_features", given)


def test_features_that_cannot_be_taken_are_refused_by_name(tmp_path: Path) -> None:
    def saved(name: str, array: Any, **options: Any) -> str:
        np.save(tmp_path / name, array, **options)
        return str(tmp_path / name)

    refused(str(tmp_path / "none.npy"), r"image_features is '.*none\.npy'; there is no such file or folder\. Check the path\.")
    refused(str(tmp_path), r"a folder without such files; need one of \.npy, \.npz, \.safetensors, \.parquet")
    refused(saved("flat.npy", np.zeros(4)), r"image_features: .*flat\.npy has shape \(4,\); need \(N, D\), one row a pair\.")
    refused(saved("whole.npy", np.zeros((4, 2), np.int64)), r"has dtype int64; need .* Convert: features\.astype\('float32'\)\.")
    refused(saved("objects.npy", np.array([[None]]), allow_pickle=True), r"objects\.npy cannot be read")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:-9])
    refused(str(tmp_path / "cut.npy"), r"cut\.npy cannot be read \(.*\); need a whole npy file\. Write it again\.")
    (tmp_path / "none.npz").write_bytes(b"")
    refused(str(tmp_path / "none.npz"), r"none\.npz cannot be read \(File is not a zip file\)")
    (tmp_path / "x.csv").write_text("a")
    refused(str(tmp_path / "x.csv"), r"files of kind \.csv; need one of \.npy, .* Convert it\.")


def test_a_member_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz")
    refused(str(tmp_path / "x.npz"), r"holds ids, f; need to know which\. Write FILE:NAME, as in .*x\.npz:ids\.")
    refused(str(tmp_path / "x.npz:g"), r"holds ids, f; need 'g', as it was asked for\. Check the name\.")


def test_a_compressed_member_of_objects_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, archive.open("f.npy", "w") as member:
        np.lib.format.write_array(member, np.array([[None]]), allow_pickle=True)
    refused(str(tmp_path / "x.npz"), r"holds Python objects; need an array of numbers")


def test_a_folder_of_two_kinds_or_widths_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", np.zeros((2, 3)))
    np.save(tmp_path / "1.npy", np.zeros((2, 4)))
    refused(str(tmp_path), r"1\.npy has 4 columns and 0\.npy 3; need one width in all\.")
    np.savez(tmp_path / "2.npz", f=np.zeros((2, 3)))
    refused(str(tmp_path), r"which holds \.npy and \.npz files; need one kind\. Write a pattern: '.*\*\.npy'")


@pytest.mark.parametrize(("row", "came"), [([1.0], "1 numbers"), (None, "null")])
def test_a_list_of_another_length_is_refused_with_its_row(row: list[float] | None, came: str, tmp_path: Path) -> None:
    rows = [[0.0, 1.0]] * 4 + [row]
    pq.write_table(pa.table({"f": rows}), tmp_path / "x.parquet", row_group_size=3)
    refused(str(tmp_path / "x.parquet"), rf"has {came} in row 4 of 'f'; need 2, as in row 0\.")


def write_txt(path: Path) -> None:
    path.write_bytes("".join(f"{text}\r\n" for text in TEXTS).encode("utf-8-sig"))


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writerows([("id", "caption"), *enumerate(TEXTS)])


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"id": 1, "caption": text or None}) + "\n" for text in TEXTS), encoding="utf-8")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"] * 7, "caption": [text or None for text in TEXTS]}), path)


def write_array(path: Path) -> None:
    np.savez(path, caption=np.array(TEXTS), f=FEATURES)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("c.txt", write_txt),
        ("c.csv", write_csv),
        ("c.tsv:caption", write_csv),
        ("c.jsonl", write_jsonl),
        ("c.parquet", write_parquet),
        ("c.npz", write_array),
    ],
)
def test_texts_are_those_of_the_file(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name.split(":")[0])
    assert read_column("--captions", str(tmp_path / name), CAPTIONS, 7) == TEXTS


def test_columns_of_metadata_folders_join_in_numeric_order(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        pq.write_table(pa.table({"key": [number * 10, number * 10 + 1], "caption": ["x", "y"]}), tmp_path / f"m_{number}.parquet")
    assert read_column("--keys", str(tmp_path), KEYS, 6) == ["0", "1", "20", "21", "100", "101"]


def test_a_column_that_cannot_be_taken_is_refused_by_name(tmp_path: Path) -> None:
    def columns(argument: str, given: str) -> list[str]:
        return read_column(argument, given, CAPTIONS, 2)

    def told(name: str, content: str, message: str) -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        refused(str(tmp_path / name), message, columns)

    told("short.txt", "one\n", r"short\.txt has 1 entries and image_features 2 rows; need one a pair, in the order of the rows\.")
    told("other.csv", "a,b\n1,2\n3,4\n", r"other\.csv holds a, b; need to know which\. Write FILE:NAME")
    told("ragged.csv", "caption,b\n1,2\n3\n", r"ragged\.csv has 1 fields in line 3; need 2, as in its header\.")
    told("x.jsonl", '{"caption": "a"}\n{"caption": ["b"]}\n', r"x\.jsonl has list in line 2; need texts or numbers\.")
    told("y.jsonl", '{"caption": "a"}\n{"text', r"y\.jsonl cannot be read")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n\n")
    refused(str(tmp_path / "latin.txt"), r"latin\.txt cannot be read \('utf-8' codec", columns)
    np.save(tmp_path / "real.npy", np.zeros(2))
    refused(str(tmp_path / "real.npy"), r"has shape \(2,\) and dtype float64; need \(N,\) texts or whole numbers\.", columns)


@pytest.mark.parametrize(("name", "package"), [("x.parquet", "pyarrow"), ("x.safetensors", "safetensors")])
def test_a_missing_package_is_answered_with_what_installs_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}")

    (tmp_path / name).touch()
    monkeypatch.setattr(files, "import_module", missing)
    with pytest.raises(ImportError, match=rf"needs {package} to be read.*Install it: pip install 'otter_losses\[audit\]'"):
        read_features("image_features", str(tmp_path / name))


def test_files_come_in_the_order_of_their_numbers_and_hexadecimal_ones_by_name() -> None:
    def ordered(*names: str) -> list[str]:
        return [file.name for file in in_order([Path(name) for name in names])]

    assert ordered("img_10.npy", "img_9.npy", "img_100.npy") == ["img_9.npy", "img_10.npy", "img_100.npy"]
    assert ordered("0000000a.npz", "00000009.npz", "00000010.npz") == ["00000009.npz", "0000000a.npz", "00000010.npz"]
    assert ordered("a1b01.npz", "a01b1.npz") == ["a01b1.npz", "a1b01.npz"]
