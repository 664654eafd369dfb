"""Files that arguments of the command name: one file, a folder of numbered ones or a pattern, and a member of theirs."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

INSTALL = "pip install 'otter_losses[audit]'"


class InputError(ValueError):
    """What a user gave cannot be taken; says which argument, what came, what is needed and the fix."""


@dataclass(frozen=True)
class Source:
    """What an argument names: files of one kind, in numeric order, and an array, tensor or column in each."""

    argument: str
    files: list[Path]
    member: str | None

    @property
    def kind(self) -> str:
        return self.files[0].suffix.lower()

    def refuse(self, file: Path, came: str, needed: str) -> InputError:
        return InputError(f"{self.argument}: {file} {came}; need {needed}")

    def choose(self, file: Path, members: Sequence[str], usual: Sequence[str] = ()) -> str:
        """The member that was named, or else a usual one, or the only one."""
        if self.member in members:
            return str(self.member)
        found = [name for name in usual if name in members] or list(members)
        if self.member is None and (len(found) == 1 or (found and found[0] in usual)):
            return found[0]
        came = f"holds {', '.join(members[:20]) or 'nothing that fits'}"
        if self.member is not None:
            raise self.refuse(file, came, f"{self.member!r}, as it was asked for. Check the name.")
        raise self.refuse(file, came, f"to know which. Write FILE:NAME, as in {file}:{members[0] if members else 'features'}.")

    @contextmanager
    def reading(self, file: Path) -> Iterator[None]:
        """What a reader makes of a file that is cut off or of another kind, as an error that names the file."""
        try:
            yield
        except (InputError, ImportError):
            raise
        except Exception as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            kind = file.suffix.removeprefix(".")
            raise self.refuse(file, f"cannot be read ({cause})", f"a whole {kind} file. Write it again.") from error


def find(argument: str, given: str, kinds: Sequence[str]) -> Source:
    """``PATH`` or ``PATH:NAME``, where PATH is a file, a folder or a pattern such as ``'metadata/*.parquet'``.

    Raises:
        InputError: there is no such file, or none of a kind that can be read, or several kinds.
    """
    path, member = given, None
    if not Path(given).exists() and re.search(r":[^:/\\]+$", given):
        path, member = given.rsplit(":", 1)
    if Path(path).is_dir():
        files = [file for file in Path(path).iterdir() if file.suffix.lower() in kinds and not file.name.startswith(".")]
    elif Path(path).is_file():
        files = [Path(path)]
    else:
        files = [Path(file) for file in glob.glob(path) if Path(file).is_file()]
        if not files:
            raise InputError(f"{argument} is {given!r}; there is no such file or folder. Check the path.")
    found = sorted({file.suffix.lower() for file in files})
    listed = ", ".join(kinds)
    if not files or not set(found) <= set(kinds):
        came = f"files of kind {', '.join(found)}" if files else "a folder without such files"
        raise InputError(f"{argument} is {given!r}, {came}; need one of {listed}. Convert it.")
    if len(found) > 1:
        raise InputError(
            f"{argument} is {given!r}, which holds {' and '.join(found)} files; need one kind. "
            f"Write a pattern: '{Path(path) / ('*' + found[0])}'."
        )
    return Source(argument, in_order(files), member)


def in_order(files: Sequence[Path]) -> list[Path]:
    """By name; where names are not of one length, by the numbers in them, ``img_emb_10.npy`` after ``img_emb_9.npy``.

    Names of one length may be hexadecimal, as DataComp's are.
    """

    def numbered(file: Path) -> list[int | str]:
        return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", file.name))]

    by_name = sorted(files)
    return by_name if len({len(file.name) for file in files}) == 1 else sorted(by_name, key=numbered)


def optional(module: str, file: Path) -> Any:
    """A module that is not installed with this library.

    Raises:
        ImportError: which says what installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{file} needs {package} to be read, which cannot be imported ({error}). Install it: {INSTALL}."
        ) from error
