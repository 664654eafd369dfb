"""The released code's diagonals: ranks in one process as in many, and every arm's run."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.studies.diagonal.arms import ARMS, given_back, official_over_ranks
from benchmarks.studies.diagonal.report import report
from benchmarks.studies.diagonal.run import CHOSEN, train_arm
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import Run
from benchmarks.studies.table.settings import TESTS
from otter_losses import OTTERLoss
from tests.helpers.batches import make_features
from tests.helpers.checks import relative

COUNT, RANKS, WIDTH = 5, 3, 12
SCALES = 20.0, 30.0


def batch() -> tuple[Tensor, ...]:
    return *make_features("clustered", RANKS * COUNT, WIDTH), *make_features("random", RANKS * COUNT, WIDTH, seed=1)


def _rank(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    own = slice(rank * COUNT, (rank + 1) * COUNT)
    x, y, v, t = (each[own] for each in batch())
    leaves = [
        x.clone().requires_grad_(),
        y.clone().requires_grad_(),
        *(torch.tensor(s).double().requires_grad_() for s in SCALES),
    ]
    loss = OTTERLoss.official(rank=rank, world_size=RANKS)
    value = loss(*leaves[:3], distill_logit_scale=leaves[3], dist_image_features=v, dist_text_features=t)
    torch.save([value.detach(), *torch.autograd.grad(value, leaves)], f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_ranks_in_one_process_equal_real_ones(tmp_path: Path) -> None:
    spawn(_rank, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=RANKS)  # type: ignore[no-untyped-call]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    x, y, v, t = batch()
    leaves = x, y, scale, second = [each.requires_grad_() for each in (x, y, *(torch.tensor(s).double() for s in SCALES))]
    value = official_over_ranks(x, y, scale, second, v, t, (COUNT,) * RANKS)
    gradients = torch.autograd.grad(value, leaves)
    # Under DDP the towers' gradients are the mean over the ranks: each rank's features get a share of 1 / RANKS.
    assert all(relative(found[0], value) < 1e-12 for found in ranks)
    for index, gradient in enumerate(gradients[:2], start=1):
        assert relative(torch.cat([found[index] for found in ranks]) / RANKS, gradient) < 1e-12
    for index, gradient in enumerate(gradients[2:], start=3):
        assert relative(sum(found[index] for found in ranks) / RANKS, gradient) < 1e-12

    right = official_over_ranks(x, y, scale, second, v, t, (RANKS * COUNT,))
    alone = OTTERLoss.official()(x, y, scale, distill_logit_scale=second, dist_image_features=v, dist_text_features=t)
    assert relative(right, alone) < 1e-12  # the same value; its gradient lacks what went through the gathering
    assert relative(torch.autograd.grad(right, leaves)[0], torch.autograd.grad(alone, leaves)[0]) > 0.01
    assert relative(right, value) > 1e-4


def test_wrong_diagonals_give_mass_back() -> None:
    v, t = make_features("permutation", 64, 16)
    assert given_back(v, v, ranks=8).shape == (56,)
    assert given_back(v, v, ranks=8).min() > 0.3
    assert given_back(v, t, ranks=1).numel() == 0


@pytest.mark.usefixtures("one_thread")
def test_every_arm_trains(problem: Problem) -> None:
    trained = [train_arm(problem, Run(setting, arm, 0, 3)) for setting in CHOSEN for arm in ARMS]
    tested = [one.test[TESTS[0]] for one in trained]
    assert all(0 < scores[10] < 100 for scores in tested)
    facts = {"seeds": 1, "ranks": 8, "machine": {"device": "a CPU", "torch": "2", "commit": "c"}, "seconds": 3.0, "jobs": 2}
    text = report(trained, facts)
    difference = tested[3][10] - tested[2][10]
    assert "the diagonal" in text
    assert f"{difference:+.2f}" in text
