"""What crosses between ranks, and what no rank holds."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from otter_losses.distributed.shard import BatchShard
from otter_losses.functional import otter_loss
from otter_losses.ops.eager import cross_entropy as eager
from otter_losses.ops.memory import Storage
from tests.helpers.batches import make_features
from tests.helpers.problems import forward_and_backward, make_problem, transported
from tests.helpers.processes import run

RANKS, LOCAL, WIDTH, TEACHER = 3, 24, 6, 9
PAIRS = RANKS * LOCAL


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most numbers in one tensor that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(each.numel() for each in tree_leaves(found) if isinstance(each, Tensor))])
        return found


def step(shard: BatchShard, batch: list[Tensor], **options: Any) -> None:
    x, y, v, t = (each[shard.local_slice(LOCAL)] for each in batch)
    student = x.requires_grad_(), y.requires_grad_()
    value = otter_loss(*student, 10.0, dist_image_features=v, dist_text_features=t, shard=shard, **options)
    assert isinstance(value, Tensor)
    value.backward()  # type: ignore[no-untyped-call]


def sent(shard: BatchShard, batch: list[Tensor], **options: Any) -> dict[str, list[int]]:
    """The numbers in every collective of a forward and backward."""
    found: dict[str, list[int]] = {"all_gather": [], "all_reduce": [], "reduce_scatter": []}
    originals = {name: getattr(dist, name) for name in found}

    def noting(name: str) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            numbers = {"all_gather": arguments[-1], "all_reduce": arguments[0], "reduce_scatter": arguments[0]}[name]
            found[name].append(numbers.numel())
            return originals[name](*arguments, **options)

        return run

    for name in found:
        setattr(dist, name, noting(name))
    try:
        step(shard, batch, **options)
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return found


def largest(shard: BatchShard, batch: list[Tensor], keep: bool) -> int:
    x, y, v, t = batch
    rows = shard.local_slice(LOCAL)
    storage, soft = Storage(torch.float32 if keep else None, keep), transported(v, t, torch.tensor(6.0))
    problem = make_problem(x[rows].clone(), y, torch.tensor(10.0), storage, soft, rows)
    with Largest() as counted:
        forward_and_backward(eager, problem, shard)
    return int(counted.numbers)


def work(rank: int, _: int) -> dict[str, Any]:
    student, teacher = make_features("random", PAIRS, WIDTH, seed=1), make_features("random", PAIRS, TEACHER, seed=2)
    batch = [each.float() for each in (*student, *teacher)]
    shard = BatchShard.of(None, (LOCAL,) * RANKS)
    results: dict[str, Any] = {f"sent {iterations}": sent(shard, batch, iterations=iterations) for iterations in (1, 5)}
    results["sent for given pairs"] = sent(shard, batch, alpha=1.0)
    results["sent locally"] = sent(shard, batch, scope="local")
    results |= {f"largest {keep}": largest(shard, batch, keep) for keep in (False, True)}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(work, RANKS, tmp_path_factory.mktemp("sharding"))


@pytest.mark.parametrize("keep", [False, True])
def test_no_rank_makes_an_n_by_n_matrix(ranks: list[dict[str, Any]], keep: bool) -> None:
    for results in ranks:
        assert results[f"largest {keep}"] == LOCAL * PAIRS


@pytest.mark.parametrize("iterations", [1, 5])
def test_features_cross_once_and_every_sweep_sends_sums(ranks: list[dict[str, Any]], iterations: int) -> None:
    """As docs/distributed.md has it."""
    for results in ranks:
        found = results[f"sent {iterations}"]
        assert found["all_gather"] == [LOCAL * WIDTH, LOCAL * TEACHER, LOCAL * TEACHER, 4 * LOCAL]  # the last: losses' gradients
        sums = [1, PAIRS, *[2 * PAIRS] * iterations]  # the spread, that all may decide alike
        statistics = [PAIRS, PAIRS, PAIRS]  # highest column log-sum-exp so far, their sum, expected logits
        means = [1, 1]
        assert found["all_reduce"] == [*sums, *statistics, *means]
        assert found["reduce_scatter"] == [LOCAL * WIDTH]  # the texts' gradient


@pytest.mark.parametrize("name", ["sent locally", "sent for given pairs"])
def test_nothing_of_the_teacher_crosses_that_is_not_needed(ranks: list[dict[str, Any]], name: str) -> None:
    for results in ranks:
        found = results[name]
        assert found["all_gather"] == [LOCAL * WIDTH, 2 * LOCAL]
        assert found["all_reduce"] == [PAIRS, PAIRS, 1, 1]  # as InfoNCE: column log-sum-exp, means
        assert found["reduce_scatter"] == [LOCAL * WIDTH]
