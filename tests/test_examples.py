"""The examples say what installs them, and the extra that they name brings what they import, no less and no more."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.studies.data.installed import pairs
from tests.helpers.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXTRAS = {
    "ddp": "pictures",
    "lightning": "lightning",
    "open_clip": "open-clip",
    "sentence_transformers": "sentence-transformers",
    "transformers": "transformers",
}
"""Of each example that is run."""
UNSEEN = {"accelerate"}
"""What transformers' Trainer asks for when it is built."""

examples = pytest.mark.parametrize("name", EXTRAS)


def source(name: str) -> Path:
    return ROOT / "docs" / "examples" / f"{name}.py"


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def brought(extra: str) -> set[str]:
    """By an extra, and by those that it consists of, without what these depend on in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {canonical(re.match(r"[\w.-]+", line)[0]) for line in project["dependencies"]}  # type: ignore[index]
    for line in project["optional-dependencies"][extra]:
        name, parts = re.match(r"([\w.-]+)(?:\[(.*?)\])?", line).groups()  # type: ignore[union-attr]
        found |= set().union(*map(brought, parts.split(","))) if name == "otter-losses" else {canonical(name)}
    return found


def modules_of(node: ast.AST) -> list[str]:
    """What a statement imports; of ``from a import b`` also a.b, which may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imported(path: Path, seen: set[Path]) -> Iterator[str]:
    """Top-level modules of other projects that a file of ours needs, with the files of ours that it imports."""
    if path in seen:
        return
    seen.add(path)
    for module in [name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for name in modules_of(node)]:
        top = module.split(".")[0]
        if module.startswith(("docs.", "benchmarks.", "otter_losses.integrations.")):
            file = (ROOT / module.replace(".", "/")).with_suffix(".py")
            yield from imported(file, seen) if file.is_file() else ()
        elif top not in {*sys.stdlib_module_names, "otter_losses"}:
            yield top
    if path == Path(pairs.__file__):  # found by their folders
        yield from [package for package, _ in pairs.SVG_FOLDERS.values()]
        yield "manimgx_fonts"


@examples
def test_the_extra_brings_what_the_example_imports_and_no_more(name: str) -> None:
    distributions = packages_distributions()
    needed = {canonical(distributions[module][0]) for module in imported(source(name), set())}
    assert needed <= brought(EXTRAS[name])
    assert brought(EXTRAS[name]) - needed <= UNSEEN | {"torch", "numpy"}


def test_the_tests_have_all_extras() -> None:
    assert all(brought(extra) <= brought("test") for extra in EXTRAS.values())


@examples
def test_the_page_and_the_example_say_how_to_install_and_run_it(name: str) -> None:
    install, run = f"pip install -e '.[{EXTRAS[name]}]'", f"python -m docs.examples.{name}"
    text = ast.get_docstring(ast.parse(source(name).read_text(encoding="utf-8"))) or ""
    assert f"\n{install}\n{run}" in text
    blocks = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert [re.sub(r" +#.*", "", block)[: len(install) + len(run) + 1] for block in blocks if run in block] == [
        f"{install}\n{run}"
    ]


@pytest.mark.parametrize(
    ("name", "missing"),
    [("ddp", "emoji"), ("lightning", "lightning"), ("sentence_transformers", "datasets"), ("transformers", "accelerate")],
)
def test_a_missing_package_is_answered_with_the_command_that_installs_it(name: str, missing: str, tmp_path: Path) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", f"docs.examples.{name}"]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert missing in ended.stderr
    assert ended.stderr.splitlines()[-1].endswith(f"From the root of a clone: pip install -e '.[{EXTRAS[name]}]'")


def test_every_example_that_runs_is_here() -> None:
    assert {path.stem for path in source("").parent.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")} == {
        *EXTRAS,
        "__init__",
    }
