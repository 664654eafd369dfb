"""An index finds nearly what the exact search does."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from otter_losses.audit import pair_trust
from otter_losses.audit.approximate import IndexSearch
from otter_losses.audit.kept import Kept
from otter_losses.audit.neighbours import Search
from otter_losses.audit.projection import whole
from otter_losses.distributed.shard import WHOLE_BATCH
from tests.audit.test_pair_trust import same
from tests.helpers.mismatched import area_under_curve, mismatched

needs_faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")


@needs_faiss
@pytest.mark.parametrize("pairs", [400, 6000])
def test_recall(pairs: int) -> None:
    projected = whole(mismatched(pairs, 0.0).images.double())
    exact = Search(20, 4096, WHOLE_BATCH, (), Kept(None, {}))("images", projected, lambda _: None)
    found = IndexSearch(20, Kept(None, {}))("images", projected, lambda _: None)
    assert found.dtype == exact.dtype
    assert (found != torch.arange(pairs)[:, None]).all()
    recall = (found[:, :, None] == exact[:, None, :]).any(2).float().mean()
    assert recall > (0.9 if pairs > 1024 else 0.999)


@needs_faiss
def test_trust_by_an_index(tmp_path: Path) -> None:
    images, texts, wrong = mismatched(5000, 0.3)
    exact, found = pair_trust(images, texts), pair_trust(images, texts, search="faiss", resume=tmp_path)
    assert area_under_curve(found.score, wrong) > area_under_curve(exact.score, wrong) - 0.01
    assert same(pair_trust(images, texts, search="faiss", resume=tmp_path), found)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    images, texts, _ = mismatched(300, 0.3)
    with pytest.raises(ImportError, match=r"search is 'faiss', which cannot be imported; need faiss.*otter-losses\[faiss\]"):
        pair_trust(images, texts, search="faiss")
