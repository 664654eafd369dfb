"""The documentation's site: it is built without a warning, and everything public is found in it."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.test_api import MODULES

sphinx_inventory = pytest.importorskip("sphinx.util.inventory")
pytest.importorskip("furo")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-c", str(ROOT / "docs" / "site")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *options, str(ROOT), str(built)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    with open(site / "objects.inv", "rb") as file:
        inventory = sphinx_inventory.InventoryFile.load(file, "", lambda base, page: page)
    entries = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    public = {f"{module}.{name}" for module in MODULES for name in import_module(module).__all__}
    assert public <= entries


def test_the_start_page_leads_to_every_page_of_the_docs(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT).with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert pages
    assert [page for page in pages if f'href="{page}"' not in start and page.name != "README.html"] == []


def test_equations_and_pictures_need_no_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert '<script src="http' not in text
        assert '<img src="http' not in text
    assert "<math" in (site / "docs" / "method.html").read_text(encoding="utf-8")
