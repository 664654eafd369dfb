"""The study of trust: what it counts, and that it finds shuffled captions."""

import pytest
import torch

from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.found import auc, recall
from benchmarks.studies.registered.conditions import CONDITIONS
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.trust.pipeline import CHOSEN
from benchmarks.studies.trust.report import report
from benchmarks.studies.trust.run import Audit, judge


def test_auc_counts_ties_half() -> None:
    right = torch.tensor([True, True, False, False, True])
    assert auc(torch.tensor([3.0, 2.0, 2.0, 0.0, 1.0]), right) == (2 + 1.5 + 1) / 6
    assert auc(torch.arange(5.0), torch.tensor([False, False, True, True, True])) == 1
    assert auc(torch.rand(4), torch.ones(4, dtype=torch.bool)) is None


def test_recall_looks_at_as_many_pairs_as_are_wrong() -> None:
    right = torch.tensor([True, False, True, False, True, False])
    assert recall(torch.tensor([0.1, 0.2, 0.9, 0.3, 0.8, 0.7]), right) == 2 / 3
    assert recall(right.float(), right) == 1
    assert recall(torch.rand(4), torch.ones(4, dtype=torch.bool)) is None


@pytest.mark.usefixtures("one_thread")
def test_shuffled_captions_are_found_and_told(collection: Collection) -> None:
    problem = build_problem(collection, CONDITIONS.values())
    judged = [judge(problem, Audit(name, 7)) for name in CHOSEN]
    clean, *shuffled = judged
    assert clean.auc is clean.trust_wrong is None
    assert clean.wrong_share < min(one.wrong_share for one in shuffled)
    text = report(judged, {"seeds": 1, "machine": {"device": "a CPU", "torch": "2", "commit": "c"}})
    for one in shuffled:
        assert one.auc is not None
        assert one.trust_wrong is not None
        assert one.auc > 0.7
        assert one.trust_right > one.trust_wrong
        assert f"| {one.audit.condition}" in text
        assert f"{one.auc:.3f}" in text
