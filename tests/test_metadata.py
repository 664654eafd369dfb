"""The page of a package index: README's links, made to work where there are no files beside it."""

import importlib.util
import re

import pytest

from tests.helpers.paths import ROOT

pytest.importorskip("hatchling")


def test_every_link_of_the_readme_leads_somewhere_without_files_beside_it() -> None:
    spec = importlib.util.spec_from_file_location("metadata", ROOT / "docs" / "site" / "metadata.py")
    assert spec is not None
    assert spec.loader is not None
    metadata = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(metadata)
    text = metadata.absolute((ROOT / "README.md").read_text(encoding="utf-8"), "https://example.org/o/r")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "https://example.org/o/r/raw/main/docs/pictures/hero.svg" in links
    assert "https://example.org/o/r/blob/main/docs/otter.md" in links
