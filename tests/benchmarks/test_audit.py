"""The audit's benchmark at a size where its numbers mean nothing, and the law it fits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import audit
from benchmarks.studies.found import auc


def test_report_of_a_small_audit(tmp_path: Path) -> None:
    audit.write_pairs(tmp_path, 400)
    found = audit.audit(str(tmp_path), 300, 2, "exact", torch.get_num_threads())
    assert (found.pairs, found.shards) == (300, 2)
    assert sum(count for count, _, _ in found.bands) == 300
    assert 0 < found.search_seconds + found.score_seconds < found.seconds
    text = audit.report([found, replace(found, pairs=600)], [found])
    assert "| 300 |" in text
    assert "| 2 shards |" in text
    assert "derived" in text


def test_law_of_exact_times(tmp_path: Path) -> None:
    audit.write_pairs(tmp_path, 300)
    one = audit.audit(str(tmp_path), 300, 1, "exact", torch.get_num_threads())
    rows = [replace(one, pairs=pairs, seconds=2e-4 * pairs + 3e-9 * pairs**2) for pairs in (1000, 30_000, 70_000)]
    assert audit.law(rows) == pytest.approx((2e-4, 3e-9), rel=1e-6)


def test_work_and_time_on_paper() -> None:
    assert audit.search_work(1000) == 2 * (2 * 1000 * 1000 * 256)  # a product of N x C and C x N for each modality
    assert audit.duration(3_000_000, 1, 1) == "0.8 min"
    assert audit.duration(100_000_000, 1, 1) == "14.2 h"
    assert audit.duration(100_000_000, 64, 1) == "13.3 min"
    assert audit.duration(100_000_000, 1, 100) == "8.5 min"


def test_area_counts_pairs_in_order() -> None:
    score, wrong = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([False, True, True, False])
    assert auc(score, ~wrong) == 0.5
