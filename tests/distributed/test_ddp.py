"""The plain loop under DDP: two processes train the model that one process with the whole batch trains."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from otter_losses import InfoNCELoss, OTTERLoss, RobustLoss
from tests.helpers.carried import Call, Recorder, check_carried
from tests.helpers.checks import relative
from tests.helpers.examples import check_falls, load, theirs
from tests.helpers.loops import Batch, train
from tests.helpers.paths import ROOT
from tests.helpers.processes import run
from tests.helpers.towers import TwoTowers, part_of, whole_batch

WORLD = 2
STEPS = 3
Outcome = tuple[dict[str, Tensor], list[float]]


class Checkpointed(TwoTowers):
    """Computes its features again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, images: Tensor, texts: Tensor) -> Any:
        return checkpoint(super().forward, images.detach().requires_grad_(), texts, use_reentrant=self.use_reentrant)


class Larger(TwoTowers):
    """With a layer that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2, dtype=torch.float64)


class Different(TwoTowers):
    """Starts differently on every rank."""

    def __init__(self) -> None:
        super().__init__()
        if dist.is_initialized():
            with torch.no_grad():
                self.image.weight += dist.get_rank()


def told() -> OTTERLoss:
    return OTTERLoss(rank=dist.get_rank(), world_size=dist.get_world_size())


def compiled() -> Callable[..., Any]:
    whole = not torch.__version__.startswith("2.6.")  # which does not trace context managers
    return torch.compile(OTTERLoss(), fullgraph=whole, backend="aot_eager")


def compiled_uneven() -> Callable[..., Any]:
    return torch.compile(OTTERLoss(uneven=True), backend="eager")


Case = tuple[Callable[[], nn.Module], dict[str, Any], Callable[..., Any], list[list[int]]]
EVEN, UNEVEN = [5, 5], [7, 3]
CASES: dict[str, Case] = {
    "plain": (TwoTowers, {}, OTTERLoss, [EVEN]),
    "told of the ranks": (TwoTowers, {}, told, [EVEN]),
    "uneven": (TwoTowers, {}, OTTERLoss, [UNEVEN]),
    "InfoNCE": (TwoTowers, {}, InfoNCELoss, [EVEN]),
    "robust": (TwoTowers, {}, RobustLoss, [EVEN]),
    "accumulated": (TwoTowers, {}, OTTERLoss, [EVEN, EVEN]),
    "accumulated, uneven": (TwoTowers, {}, OTTERLoss, [UNEVEN, EVEN, [1, 2]]),
    "checkpointed": (lambda: Checkpointed(use_reentrant=False), {}, OTTERLoss, [EVEN]),
    "checkpointed, reentrant": (lambda: Checkpointed(use_reentrant=True), {}, OTTERLoss, [EVEN]),
    "checkpointed, accumulated": (lambda: Checkpointed(use_reentrant=False), {}, OTTERLoss, [EVEN, EVEN]),
    "compiled": (TwoTowers, {}, compiled, [EVEN]),
    "compiled, uneven": (TwoTowers, {}, compiled_uneven, [UNEVEN]),
    "find_unused_parameters": (Larger, {"find_unused_parameters": True}, OTTERLoss, [EVEN]),
    "static_graph": (Larger, {"static_graph": True}, OTTERLoss, [EVEN]),
    "gradient_as_bucket_view": (TwoTowers, {"gradient_as_bucket_view": True}, OTTERLoss, [EVEN, EVEN]),
    "other weights on every rank": (Different, {}, OTTERLoss, [EVEN]),
}
"""Model, options of DDP, loss, and how many pairs each rank has in each of a step's batches."""


def together(parts: list[Batch]) -> Batch:
    images, texts = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(texts)


def batches(sizes: list[list[int]], rank: int | None = None) -> list[list[Batch]]:
    """Those of one rank, or of all together, in every step."""
    flat = [count for _ in range(STEPS) for counts in sizes for count in counts]
    parts = [(part["images"], part["texts"]) for part in (part_of(flat, index) for index in range(len(flat)))]
    shares = [parts[index : index + WORLD] for index in range(0, len(parts), WORLD)]
    mine = [share[rank] if rank is not None else together(share) for share in shares]
    return [mine[index : index + len(sizes)] for index in range(0, len(mine), len(sizes))]


def work(rank: int, world: int) -> dict[str, Outcome]:
    results: dict[str, Outcome] = {}
    for name, (build, options, loss, sizes) in CASES.items():
        model = DistributedDataParallel(build(), **options)
        results[name] = train(model, loss(), batches(sizes, rank))
    results["alone"] = train(DistributedDataParallel(TwoTowers()), OTTERLoss(world_size=1), batches([EVEN], rank))
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    """What each rank came to."""
    return run(work, WORLD, tmp_path_factory.mktemp("ddp"))


def difference(actual: Outcome, expected: Outcome) -> float:
    """The largest relative error of weights, teacher and losses."""
    assert actual[0].keys() == expected[0].keys()
    errors = [relative(actual[0][name], wanted) for name, wanted in expected[0].items()]
    return max(*errors, relative(torch.tensor(actual[1]), torch.tensor(expected[1])))


@pytest.mark.parametrize("name", CASES)
def test_every_rank_trains_as_one_process_with_the_whole_batch(ranks: list[dict[str, Outcome]], name: str) -> None:
    build, _, loss, sizes = CASES[name]
    alone = loss() if loss in (InfoNCELoss, RobustLoss) else OTTERLoss()
    expected = train(build(), alone, batches(sizes))
    assert expected[0]["teacher average.n_averaged"] == 1 + STEPS
    for results in ranks:
        assert difference(results[name], expected) <= 1e-10


def test_a_loss_of_each_ranks_own_pairs_trains_another_model(ranks: list[dict[str, Outcome]]) -> None:
    """So the bound above tells right from wrong."""
    expected = train(TwoTowers(), OTTERLoss(), batches([EVEN]))
    assert difference(ranks[0]["alone"], expected) > 1e-2


def carry(rank: int, world: int, pairs: int) -> list[Call]:
    """What reaches the loss in two shuffled epochs, with the value in the batch."""
    whole = whole_batch(pairs)
    data = TensorDataset(*(whole[name] for name in ("images", "texts", "alpha", "groups")))
    sampler: DistributedSampler[Any] = DistributedSampler(data, world, rank)
    model = DistributedDataParallel(TwoTowers())
    loss = Recorder(TwoTowers()(whole["images"], whole["texts"])[0])
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for images, texts, alpha, groups in DataLoader(data, 5, sampler=sampler):
            loss(*model(images, texts), alpha=alpha, groups=groups).backward()
    return loss.calls


def test_values_in_the_batch_reach_the_loss_with_their_pairs(tmp_path: Path) -> None:
    whole = whole_batch(20)
    first, second = run(carry, WORLD, tmp_path, 20)
    check_carried([*first, *second], alpha=whole["alpha"], groups=whole["groups"])
    assert not set(first[0]["rows"].tolist()) & set(second[0]["rows"].tolist())


# ---- the example ----


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """The example's, in one process."""
    alone: list[float] = load("ddp").main()
    return alone


def test_the_example_trains_with_our_loss_and_with_theirs(losses: list[float]) -> None:
    check_falls(losses)
    check_falls(load("ddp", theirs("ddp")).main())


def test_under_torchrun_every_process_prints_what_one_alone_prints(losses: list[float]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD}"]
    run = subprocess.run([*torchrun, "-m", "docs.examples.ddp"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    printed = re.findall(r"step (\d+): (\d+\.\d{4})", run.stdout)
    assert sorted(int(step) for step, _ in printed) == sorted([*range(1, len(losses) + 1)] * WORLD)
    for step, value in printed:
        assert float(value) == pytest.approx(losses[int(step) - 1], abs=2e-4)
