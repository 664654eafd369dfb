"""The code in README and docs runs as it stands there, and the links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_losses import OTTERLoss
from tests.helpers.audits import save_topics
from tests.helpers.examples import diffs, undo
from tests.helpers.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "studies" / "demo" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(5, 6), nn.Linear(7, 6)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1), torch.tensor(14.3)


def names() -> dict[str, Any]:
    """What the pages take for granted."""
    torch.manual_seed(0)
    model = Model()
    image_features, text_features, v, t = F.normalize(torch.randn(4, 8, 6), dim=-1)
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": [(torch.randn(8, 5), torch.randn(8, 7))],
        "loss": OTTERLoss(),
        "image_features": image_features,
        "text_features": text_features,
        "held_out_image_features": torch.eye(8),
        "held_out_text_features": torch.eye(8),
        "v": v,
        "t": t,
        "trust": torch.linspace(0, 1, 8),
        "logit_scale": torch.tensor(14.3),
        "logit_bias": torch.tensor(-10.0),
        "teacher_scale": torch.tensor(20.0),
        "scores": v @ t.T,
        "a": torch.full((8,), 1 / 8),
        "b": torch.full((8,), 1 / 8),
    }


@pages
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an error; what it computes is the other tests' business. Features of pairs lie in the working directory."""
    save_topics(tmp_path)
    monkeypatch.chdir(tmp_path)
    known = names()
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), known)


@pages
def test_changes_shown_are_those_of_the_examples(page: Path) -> None:
    for path, body in diffs(page):
        assert undo(path.read_text(encoding="utf-8"), body) != path.read_text(encoding="utf-8")


@pages
def test_links_lead_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.name != "README.md")


def test_every_report_is_linked_from_the_benchmarks_page() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    reports = [*(ROOT / "benchmarks" / "results").rglob("*.md"), *(ROOT / "benchmarks" / "studies").rglob("README.md")]
    assert [report for report in reports if f"(../{report.relative_to(ROOT)})" not in page] == []
