"""The page of a package index: README's links, made to work where there are no files beside it."""

import re

import pytest

from tests.helpers.paths import ROOT

absolute = pytest.importorskip("docs.site.metadata", reason="hatchling is not installed", exc_type=ImportError).absolute


def test_every_link_of_the_readme_leads_somewhere_without_files_beside_it() -> None:
    text = absolute((ROOT / "README.md").read_text(encoding="utf-8"), "https://example.org/o/r")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "https://example.org/o/r/raw/main/docs/pictures/hero.svg" in links
    assert "https://example.org/o/r/blob/main/docs/otter.md" in links
