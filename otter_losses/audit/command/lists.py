"""What the command writes for other programs: trust and alphas, the lists of what to keep, and suspicious.csv."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from otter_losses.audit.kept import whole_file
from otter_losses.audit.report import PairTrust

LISTS = (
    "trust.npy",
    "alpha.npy",
    "alpha.npz",
    "suspicious.csv",
    "duplicates.csv",
    "keep_rows.npy",
    "keep_keys.txt",
    "keep_uids.npy",
)
Cell: TypeAlias = int | float | str
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Names:
    """Of the pairs, where they were given; each a list of N texts. Row -1 is none."""

    captions: list[str] | None = None
    keys: list[str] | None = None
    pictures: list[str] | None = None
    picture_folder: Path = Path()
    """Where pictures lie whose paths do not lead from the working directory."""

    def caption(self, row: int) -> str:
        return self.captions[row] if self.captions and row >= 0 else ""

    def key(self, row: int) -> str:
        return self.keys[row] if self.keys and row >= 0 else ""

    def picture(self, row: int) -> str:
        return self.pictures[row] if self.pictures and row >= 0 else ""


@dataclass(frozen=True)
class Selection:
    """Which pairs are kept, and which are suspicious: the most suspicious first."""

    kept: Tensor
    suspicious: list[int]

    @classmethod
    def of(cls, result: PairTrust, least: float, share: float | None, top: int) -> "Selection":
        """Kept are the pairs of at least that trust, or that share of the pairs, best first. All others are suspicious, and at
        least as many as `top`."""
        order = torch.argsort(result.score, stable=True)
        pairs = len(order)
        dropped = int((result.trust < least).sum()) if share is None else pairs - round(share * pairs)
        return cls(order[dropped:].sort().values, order[: max(dropped, top)].tolist())


def write_lists(folder: Path, result: PairTrust, selection: Selection, names: Names) -> None:
    for name in LISTS:
        (folder / name).unlink(missing_ok=True)
    alpha = result.alpha().numpy()
    _save(folder / "trust.npy", result.trust.numpy())
    _save(folder / "alpha.npy", alpha)
    _save(folder / "keep_rows.npy", selection.kept.numpy())
    if names.keys:
        if len(set(names.keys)) == len(names.keys):
            with whole_file(folder / "alpha.npz") as file:
                np.savez(file, keys=np.array(names.keys), alpha=alpha)
        kept = [names.keys[row] for row in selection.kept.tolist()]
        with whole_file(folder / "keep_keys.txt") as file:
            file.write("".join(f"{key}\n" for key in kept).encode(errors="replace"))
        if are_uids(names.keys):
            _save(folder / "keep_uids.npy", uid_pairs(kept))
    _write_table(
        folder / "suspicious.csv",
        ("row", "key", "trust", "score", "caption", "best_text", "best_caption", "best_image", "best_image_key"),
        (
            (
                row,
                names.key(row),
                round(trust, 4),
                round(score, 4),
                names.caption(row),
                text,
                names.caption(text),
                image,
                names.key(image) or names.picture(image),
            )
            for row, trust, score, text, image in zip(
                selection.suspicious,
                *(
                    values[selection.suspicious].tolist()
                    for values in (result.trust, result.score, result.best_text, result.best_image)
                ),
                strict=True,
            )
        ),
    )
    _write_table(
        folder / "duplicates.csv",
        ("row", "key", "other_row", "other_key"),
        ((row, names.key(row), other, names.key(other)) for row, other in result.duplicates.tolist()),
    )


def are_uids(keys: list[str]) -> bool:
    """Whether all keys are DataComp's: 32 hexadecimal digits."""
    return all(re.fullmatch("[0-9a-fA-F]{32}", key) for key in keys)


def uid_pairs(uids: list[str]) -> NDArray[np.void]:
    """Two unsigned 64-bit numbers each, sorted: the subset file of DataComp's resharder.

    >>> uid_pairs(["00000000000000020000000000000001", "00000000000000010000000000000003"]).tolist()
    [(1, 3), (2, 1)]
    """
    words = np.frombuffer(bytes.fromhex("".join(uids)), ">u8").astype("u8")
    return np.sort(words.view("u8,u8"))


def _save(path: Path, array: NDArray[np.generic]) -> None:
    with whole_file(path) as file:
        np.save(file, array, allow_pickle=False)


def _write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[Cell, ...]]) -> None:
    with whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        table = csv.writer(text)
        table.writerow(header)
        table.writerows(map(_cell, row) for row in rows)
        text.detach()


def _cell(value: Cell) -> Cell:
    """A text that a spreadsheet would take for a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
