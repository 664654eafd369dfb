"""A rank that goes astray: an error on the others within the group's timeout, which names it, and never a wrong number."""

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from otter_losses import OTTERLoss, SigLIPLoss
from otter_losses.distributed import agreement, failures
from tests.helpers.batches import make_features
from tests.helpers.processes import join, saved, start

RANKS, LAST = 3, 2
TIMEOUT_S, PATIENCE_S = 1.5, 1.0
DOOMED = RANKS
"""One more rank, which dies first."""


class Rank:
    """One of a group that has lost nobody yet."""

    def __init__(self, rank: int, group: Any, other: Any) -> None:
        self.rank, self.astray, self.group, self.other = rank, rank == LAST, group, other
        image, text = (each[5 * rank : 5 * rank + 5] for each in make_features("random", 5 * RANKS, 6, seed=1))
        self.image, self.text = image.clone().requires_grad_(), text.clone().requires_grad_()

    def loss(self, scale: Any = 5.0, bias: Any = None, kind: Any = OTTERLoss, call: Any = None, **options: Any) -> Tensor:
        found: Tensor = kind(rank=self.rank, world_size=RANKS, **{"group": self.group, **options})(
            self.image, self.text, scale, bias, **(call or {})
        )
        return found


def _backward(value: Tensor) -> None:
    value.backward()  # type: ignore[no-untyped-call]


def outlast() -> None:
    """Stay alive, elsewhere, until the others have given up."""
    time.sleep(TIMEOUT_S + PATIENCE_S + 0.5)


def never_calls(rank: Rank) -> None:
    if rank.astray:
        return outlast()  # its data loader raised, say
    rank.loss()


def calls_once_more(rank: Rank) -> None:
    rank.loss()
    if not rank.astray:
        return outlast()
    rank.loss()


def in_another_group(rank: Rank) -> None:
    rank.loss(group=rank.other if rank.astray else rank.group)


def raises_in_backward(rank: Rank) -> None:
    def spoil(_: Tensor) -> None:
        raise ZeroDivisionError("spoilt")

    value = rank.loss()
    if not rank.astray:
        return _backward(value)
    value.register_hook(spoil)  # type: ignore[no-untyped-call]
    try:
        _backward(value)
    except ZeroDivisionError:
        outlast()


def gathers_something_else(rank: Rank) -> None:
    if not rank.astray:
        rank.loss()
        return
    metrics = torch.ones(agreement.MESSAGE_BYTES // 4)
    dist.all_gather([torch.empty_like(metrics) for _ in range(RANKS)], metrics, group=rank.group)


def without_gradients(rank: Rank) -> None:
    with torch.set_grad_enabled(not rank.astray):
        rank.loss()


def other_scale(rank: Rank) -> None:
    rank.loss(torch.tensor(6.0 if rank.astray else 5.0))


def rounded_scale(rank: Rank) -> None:
    rank.loss(torch.tensor(5.0).bfloat16() * (1 + 2**-8 * rank.astray))


def scale_learned_by_one(rank: Rank) -> None:
    rank.loss(torch.tensor(5.0, requires_grad=rank.astray))


def other_bias(rank: Rank) -> None:
    rank.loss(bias=-9.0 if rank.astray else -10.0, kind=SigLIPLoss)


def other_alpha(rank: Rank) -> None:
    rank.loss(alpha=1.0 if rank.astray else 0.5)


def other_alpha_in_the_call(rank: Rank) -> None:
    rank.loss(call={"alpha": 1.0} if rank.astray else None)


def other_teacher(rank: Rank) -> None:
    teacher = make_features("random", 5, 7 if rank.astray else 9)[0]
    rank.loss(call={"dist_image_features": teacher, "dist_text_features": teacher})


def other_backend(rank: Rank) -> None:
    rank.loss(backend="torch" if rank.astray else "auto")


def other_memory(rank: Rank) -> None:
    _backward(rank.loss(max_memory=0 if rank.astray else None))


def dies_in_backward(rank: Rank) -> None:
    value = rank.loss()
    if rank.astray:
        value.register_hook(lambda _: os._exit(0))  # type: ignore[no-untyped-call]
    _backward(value)


def died_before(rank: Rank) -> None:
    kind = OTTERLoss(rank=rank.rank, world_size=RANKS + 1, group=rank.group)
    kind(rank.image, rank.text, 5.0)


STORIES: list[Callable[[Rank], None]] = [
    never_calls,
    calls_once_more,
    in_another_group,
    raises_in_backward,
    gathers_something_else,
    without_gradients,
    other_scale,
    rounded_scale,
    scale_learned_by_one,
    other_bias,
    other_alpha,
    other_alpha_in_the_call,
    other_teacher,
    other_backend,
    other_memory,
    died_before,
    dies_in_backward,
]


def work(rank: int, folder: str) -> None:
    join(rank, RANKS + 1, folder)
    failures.PATIENCE_SECONDS = PATIENCE_S
    timeout = timedelta(seconds=TIMEOUT_S)
    groups = [
        dist.new_group(None if story is died_before else list(range(RANKS)), timeout=timeout) for story in (*STORIES, never_calls)
    ]
    dist.barrier()
    if rank == DOOMED:
        os._exit(0)
    told: dict[str, tuple[float, str]] = {}
    together = dist.new_group(list(range(RANKS)), use_local_synchronization=True)
    _backward(Rank(rank, together, None).loss())  # a process's first takes longer than the stories' groups wait
    for story, group in zip(STORIES, groups, strict=False):
        dist.barrier(together)
        start, text = time.monotonic(), "nothing"
        try:
            story(Rank(rank, group, groups[-1]))
        except (RuntimeError, ValueError) as error:
            text = f"{type(error).__name__}: {error}"
        told[story.__name__] = time.monotonic() - start, text
        torch.save(told, f"{folder}/{rank}.pt")
    os._exit(0)  # leaving a group that lost a rank can wait for it


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[float, str]]]:
    """Of every rank and story: for how many seconds it lasted, and what the rank was told."""
    folder = tmp_path_factory.mktemp("lost")
    start(work, RANKS + 1, str(folder))
    return saved(folder, RANKS)


def lost(text: str) -> set[int]:
    """The ranks named as those that give no sign."""
    found = re.match(r"RuntimeError: the ranks could not be gathered: rank ([\d, ]+) of \d gave no sign", text)
    assert found, text
    return set(map(int, found[1].split(", ")))


@pytest.mark.parametrize(
    ("story", "named"),
    [
        (never_calls, {LAST}),
        (in_another_group, {LAST}),
        (raises_in_backward, {LAST}),
        (dies_in_backward, {LAST}),
        (died_before, {DOOMED}),
    ],
)
def test_the_others_name_the_rank_that_is_missing(
    ranks: list[dict[str, tuple[float, str]]], story: Callable[[Rank], None], named: set[int]
) -> None:
    for rank in range(LAST):
        seconds, text = ranks[rank][story.__name__]
        assert named <= lost(text)
        assert rank not in lost(text)
        assert seconds < TIMEOUT_S + 2 * PATIENCE_S + 3


@pytest.mark.parametrize("story", [calls_once_more, in_another_group])
def test_the_rank_that_waits_alone_names_all_others(
    ranks: list[dict[str, tuple[float, str]]], story: Callable[[Rank], None]
) -> None:
    """Signs that they gave in earlier failures, of other groups, do not count."""
    assert lost(ranks[LAST][story.__name__][1]) == {0, 1}


def test_a_rank_in_another_collective_is_named(ranks: list[dict[str, tuple[float, str]]]) -> None:
    for results in ranks[:LAST]:
        assert f"RuntimeError: rank {LAST} was in another collective" in results["gathers_something_else"][1]


@pytest.mark.parametrize(
    ("story", "here", "there"),
    [
        (without_gradients, "image_features is torch.float64 of shape (5, 6), with a gradient", "torch.float64 of shape (5, 6)"),
        (other_scale, "logit_scale is 5", "6"),
        (scale_learned_by_one, "logit_scale is 5", "5, with a gradient"),
        (other_bias, "logit_bias is -10", "-9"),
        (other_teacher, "dist_image_features is torch.float64 of shape (5, 9)", "torch.float64 of shape (5, 7)"),
    ],
)
def test_what_differs_on_one_rank_is_named_on_all(
    ranks: list[dict[str, tuple[float, str]]], story: Callable[[Rank], None], here: str, there: str
) -> None:
    for results in ranks:
        assert f"ValueError: {here} on rank 0 and {there} on rank {LAST};" in results[story.__name__][1]


@pytest.mark.parametrize(
    ("story", "here", "there"),
    [
        (other_alpha, "'alpha': 0.5", "'alpha': 1.0"),
        (other_alpha_in_the_call, "'alpha': 0.5", "'alpha': 1.0"),
        (other_backend, "'backend': 'auto'", "'backend': 'torch'"),
    ],
)
def test_another_option_on_one_rank_is_named_on_all(
    ranks: list[dict[str, tuple[float, str]]], story: Callable[[Rank], None], here: str, there: str
) -> None:
    for results in ranks:
        said = rf"ValueError: loss is OTTERLoss\(.*{here}.*\) on rank 0 and OTTERLoss\(.*{there}.*\) on rank {LAST};"
        assert re.match(said, results[story.__name__][1])


@pytest.mark.parametrize("story", [rounded_scale, other_memory])
def test_what_makes_no_difference_may_differ(ranks: list[dict[str, tuple[float, str]]], story: Callable[[Rank], None]) -> None:
    for results in ranks:
        assert results[story.__name__][1] == "nothing"
