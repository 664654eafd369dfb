"""The examples in docs/examples, as they stand and with the client's own loss: the pages' diffs undone."""

import re
import types
from pathlib import Path

from tests.helpers.paths import ROOT

DIFF = re.compile(r"^```diff\n--- theirs\n\+\+\+ (docs/examples/\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def diffs(page: Path) -> list[tuple[Path, str]]:
    """A page's changes to examples: the file, and the hunks."""
    return [(ROOT / path, body) for path, body in DIFF.findall(page.read_text(encoding="utf-8"))]


def undo(source: str, body: str) -> str:
    """The source before the change. Hunks are parted by lines of ``@@``; each must stand in the source once, word for word."""
    for hunk in re.split(r"^@@.*\n", body, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        assert all(line[0] in " +-\n" for line in lines), hunk
        after = "".join(line[1:] or "\n" for line in lines if not line.startswith("-"))
        before = "".join(line[1:] or "\n" for line in lines if not line.startswith("+"))
        if hunk:
            assert source.count(after) == 1, f"not in the example: {after}"
            source = source.replace(after, before)
    return source


def theirs(name: str) -> str:
    """The source of an example with the client's own loss, from the one page that shows the change."""
    path = ROOT / "docs" / "examples" / f"{name}.py"
    bodies = [body for page in (ROOT / "docs").glob("*.md") for file, body in diffs(page) if file == path]
    assert len(bodies) == 1, f"{len(bodies)} pages show the change in {path}"
    return undo(path.read_text(encoding="utf-8"), bodies[0])


def load(name: str, source: str | None = None) -> types.ModuleType:
    """An example as a module; with another source where one is given."""
    path = ROOT / "docs" / "examples" / f"{name}.py"
    module = types.ModuleType(f"docs.examples.{name}")
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8") if source is None else source, str(path), "exec"), module.__dict__)
    return module


def check_falls(losses: list[float]) -> None:
    """The last steps' losses are well below the first ones'."""
    assert len(losses) >= 6
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])
