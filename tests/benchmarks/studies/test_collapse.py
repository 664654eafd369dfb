"""The collapse study: its guard is the library's, and every change trains and is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.studies.collapse.arms import ARMS, GUARDED, SEEN, UNGUARDED, Changed
from benchmarks.studies.collapse.pipeline import WHERE
from benchmarks.studies.collapse.report import report
from benchmarks.studies.collapse.run import CONDITIONS, train
from benchmarks.studies.data.fetched.features import Collection
from benchmarks.studies.registered.arms import HIGH, LOW, Q
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run
from otter_losses import RobustLoss
from tests.helpers.checks import relative


def test_the_guard_is_that_of_robust_loss() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y, v, t = normalize(torch.randn(4, 12, 8, generator=generator, dtype=torch.float64), dim=-1)
    trust, right = torch.rand(12, generator=generator, dtype=torch.float64), torch.arange(12) % 3 > 0
    x.requires_grad_()
    teacher = {"dist_image_features": v, "dist_text_features": t, "dist_logit_scale": torch.tensor(30.0).double()}

    def gradient(loss: Changed) -> Tensor:
        value = loss(x, y, torch.tensor(30.0).double(), trust=trust, right=right, **teacher)
        found: Tensor = torch.autograd.grad(value, x)[0]
        return found

    alpha = LOW + (HIGH - LOW) * trust
    (expected,) = torch.autograd.grad(RobustLoss(q=Q)(x, y, torch.tensor(30.0).double(), **teacher, alpha=alpha), x)
    guard = Changed(guard=True)
    given, both, guarded = (gradient(loss) for loss in (Changed(teacher=False), Changed(), guard))
    share = guard.seen[0][SEEN.index("share")]
    assert 0 < share < 0.9
    assert relative(guarded, given + share * (both - given)) < 1e-12
    assert relative(guarded, expected) < 1e-12


@pytest.mark.usefixtures("one_thread")
def test_every_change_trains_and_is_told(collection: Collection, tmp_path: Path) -> None:
    problem = build_problem(collection, CONDITIONS.values())
    watched = [train(problem, Run(WHERE, arm, 0, epochs=3), tmp_path) for arm in ARMS]
    checked = [train(problem, Run("all", arm, 1, epochs=3), tmp_path) for arm in (UNGUARDED, GUARDED)]
    assert all(len(one.epochs) == 3 and len(one.epochs[0]) == len(SEEN) for one in (*watched, *checked))
    assert checked[0].epochs[0][SEEN.index("shuffled: p^q")] is None
    facts = {"machine": {"device": "a CPU", "torch": "2", "commit": "c"}}
    assert "The guard" not in report(watched, [], facts)
    text = report(watched, checked, facts)
    assert all(f"| {arm}" in text for arm in ARMS)
    assert f"{checked[1].validation - checked[0].validation:+.2f}" in text
