"""A loss that is told of no ranks takes those of its process group; copies of one batch are seen; groups outlive a copy."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from otter_losses import EMATeacher, InfoNCELoss, OTTERLoss, SigLIPLoss, checks
from otter_losses.distributed import agreement
from otter_losses.losses import world
from otter_losses.losses.base import PairLoss
from tests.helpers.checks import relative
from tests.helpers.losses import MODULES
from tests.helpers.processes import join, saved, start
from tests.helpers.towers import TwoTowers, part_of, whole_batch

RANKS, LOCAL = 3, 4
SOME = [0, 2]
"""The ranks of a smaller group."""
COUNTS = [LOCAL] * RANKS


class Holder(nn.Module):
    """A model with its loss."""

    def __init__(self, loss: PairLoss) -> None:
        super().__init__()
        self.tower, self.loss = nn.Linear(2, 2), loss


def value_of(loss: Any, part: dict[str, Tensor]) -> float:
    return float(loss(part["v"], part["t"], 5.0))


def told_by(call: Callable[[], Any]) -> list[str]:
    """The error and the warnings of a call, in words; a warning is said once in all of this process."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except (RuntimeError, ValueError) as error:
            said = [f"{type(error).__name__}: {error}"]
    return said + [str(each.message) for each in caught]


def built_anyhow(early: PairLoss, group: Any, part: dict[str, Tensor]) -> dict[str, Any]:
    torch.compiler.reset()
    results: dict[str, Any] = {
        "before": value_of(early, part),
        "after": value_of(OTTERLoss(), part),
        "compiled": value_of(torch.compile(OTTERLoss(), fullgraph=True, backend="aot_eager"), part),
        "compiled before": value_of(torch.compile(early, fullgraph=True, backend="aot_eager"), part),
        "world size alone": value_of(OTTERLoss(world_size=RANKS), part),
        "numbers": [early.rank, early.world_size],
    }
    if group is not None:
        results["in a group"] = value_of(OTTERLoss(group=group), part)
        results["compiled in a group"] = value_of(
            torch.compile(OTTERLoss(group=group), fullgraph=True, backend="aot_eager"), part
        )
        results["numbers in a group"] = [OTTERLoss(group=group).rank, OTTERLoss(group=group).world_size]
    loss = OTTERLoss(world_size=1)
    results["alone"] = value_of(loss, part)
    loss.world_size = None
    results["no longer alone"] = value_of(loss, part)
    loss.rank, loss.world_size = 1, RANKS
    results["numbers set"] = [loss.rank, loss.world_size]
    return results


def told_of_one(part: dict[str, Tensor]) -> dict[str, Any]:
    """What is said to a loss of one process."""
    world._warn.cache_clear()
    torch.compiler.reset()
    of_one = OTTERLoss(rank=0, world_size=1)
    compiled = torch.compile(of_one, fullgraph=True, backend="aot_eager")
    results = {
        "meant": told_by(lambda: value_of(OTTERLoss(world_size=1), part)),
        "compiled": told_by(lambda: value_of(compiled, part)),
        "again": told_by(lambda: value_of(of_one, part)),
    }
    world._warn.cache_clear()
    return {**results, "eager": told_by(lambda: value_of(of_one, part))}


def copies(rank: int, part: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Any]:
    """Every rank with the pairs of the first, and with all of them but for one number."""
    results: dict[str, Any] = {}
    world._warn.cache_clear()
    results["said"] = told_by(lambda: value_of(OTTERLoss(), others))
    results["said again"] = told_by(lambda: value_of(InfoNCELoss(), others))
    results["values"] = {name: value_of(build(), others) for name, build in MODULES.items()}
    results["told of the ranks"] = value_of(OTTERLoss(world_size=RANKS), others)
    other_texts = {**others, "t": others["t"].clone()}
    other_texts["t"][-1, -1] += 1e-12 * (rank == 1)
    results["one bit"] = value_of(OTTERLoss(), other_texts)
    model = DistributedDataParallel(TwoTowers())
    OTTERLoss()(*model(others["images"], others["texts"])).backward()
    results["gradients"] = {name.removeprefix("module."): each.grad for name, each in model.named_parameters()}
    world._warn.cache_clear()
    some = others if rank in SOME else part
    results["some said"] = [
        told_by(partial(value_of, loss, some)) for loss in (OTTERLoss(world_size=RANKS), SigLIPLoss(), OTTERLoss())
    ]
    results["some"] = value_of(OTTERLoss(), some)
    results["none said"] = told_by(lambda: value_of(OTTERLoss(), part))
    loss = OTTERLoss()
    results["in turn"] = [value_of(loss, each) for each in (others, part, others)]
    return results


def where_ranks_do_not_talk(part: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Any]:
    """As on a GPU: the values, and how often something was exchanged."""
    results: dict[str, Any] = {}
    silent = patch.object(checks, "ranks_may_talk", lambda features: False)
    for name, loss in {"told": OTTERLoss(world_size=RANKS), "default": OTTERLoss()}.items():
        results[name] = []
        for each in (others, others, part, part, others):
            with silent, patch.object(agreement, "_exchanged", wraps=agreement._exchanged) as exchanged:
                results[name].append((value_of(loss, each), exchanged.call_count))
    return results


def copied(group: Any, part: dict[str, Tensor]) -> dict[str, Any]:
    loss = SigLIPLoss(group=group)
    holder = Holder(loss)
    memo: dict[int, Any] = {}
    deep = copy.deepcopy(nn.ModuleList([holder, loss]), memo)
    losses = {
        "copy": copy.copy(loss),
        "deepcopy": copy.deepcopy(loss),
        "in a model": copy.deepcopy(holder).loss,
        "in a teacher": EMATeacher(holder).module.loss,
    }
    results: dict[str, Any] = {name: value_of(each, part) for name, each in losses.items()}
    results["one copy"] = deep[0].loss is deep[1] and deep[1] is not loss and deep[1].group is group
    saved = io.BytesIO()
    torch.save(holder, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False).loss
    again = pickle.loads(pickle.dumps(copy.deepcopy(loaded)))
    results["refused"] = [told_by(partial(value_of, each, part)) for each in (loaded, again)]
    loaded.group = group
    results["given again"] = value_of(loaded, part)
    return results


def work(rank: int, folder: str) -> None:
    early = OTTERLoss()
    alone = value_of(early, whole_batch(LOCAL * RANKS))
    join(rank, RANKS, folder)
    part = part_of(COUNTS, rank)
    some = dist.new_group(SOME)
    group = some if rank in SOME else None
    results: dict[str, Any] = {
        "alone": alone,
        "built": built_anyhow(early, group, part),
        "of one": told_of_one(part),
        "copies": copies(rank, part, part_of(COUNTS, 0)),
        "silent": where_ranks_do_not_talk(part, part_of(COUNTS, 0)),
    }
    everybody = InfoNCELoss(group=dist.group.WORLD)
    results["all processes"] = value_of(pickle.loads(pickle.dumps(everybody)), part)
    results["pickled early"] = value_of(pickle.loads(pickle.dumps(InfoNCELoss())), part)
    if group is not None:
        results["copied"] = copied(group, part)
    else:
        results["stranger"] = told_by(partial(value_of, OTTERLoss(group=some), part))
        lost = pickle.loads(pickle.dumps(OTTERLoss(group=dist.new_group([rank], use_local_synchronization=True))))
        lost.world_size = 1
        results["lost and alone"] = value_of(lost, part)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder: Path = tmp_path_factory.mktemp("world")
    start(work, RANKS, str(folder))
    return saved(folder, RANKS)


def expected_of(loss: PairLoss, *shares: int) -> float:
    """Of the pairs of some ranks, by one process."""
    parts = [part_of(COUNTS, rank) for rank in shares]
    return value_of(loss, {name: torch.cat([part[name] for part in parts]) for name in ("v", "t")})


# ---- rank and world size ----


@pytest.mark.parametrize("how", ["before", "after", "compiled", "compiled before", "world size alone", "no longer alone"])
def test_the_batch_is_shared_by_all_ranks_unless_told_otherwise(ranks: list[dict[str, Any]], how: str) -> None:
    expected = expected_of(OTTERLoss(), *range(RANKS))
    for results in ranks:
        assert results["alone"] == expected
        assert results["built"][how] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("how", ["in a group", "compiled in a group"])
def test_or_by_those_of_the_group(ranks: list[dict[str, Any]], how: str) -> None:
    for place, rank in enumerate(SOME):
        assert ranks[rank]["built"][how] == pytest.approx(expected_of(OTTERLoss(), *SOME), rel=1e-12)
        assert ranks[rank]["built"]["numbers in a group"] == [place, len(SOME)]


def test_rank_and_world_size_are_numbers_to_read_and_to_set(ranks: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(ranks):
        assert results["built"]["numbers"] == [rank, RANKS]
        assert results["built"]["numbers set"] == [1, RANKS]
    assert (OTTERLoss().rank, OTTERLoss().world_size) == (0, 1)


def test_a_world_of_one_is_each_ranks_own(ranks: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(ranks):
        assert results["built"]["alone"] == pytest.approx(expected_of(OTTERLoss(), rank), rel=1e-12)


def test_a_loss_told_of_one_process_among_several_says_so_once(ranks: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(ranks):
        said = results["of one"]
        assert (said["meant"], said["again"]) == ([], [])
        for (message,) in (said["compiled"], said["eager"]):
            assert message.startswith(f"rank=0, world_size=1 were given, but this process is rank {rank} of {RANKS}: ")
            assert "leave rank and world_size out; if this is meant, say world_size=1 alone" in message


def test_a_process_outside_the_group_is_told(ranks: list[dict[str, Any]]) -> None:
    (message,) = ranks[1]["stranger"]
    assert message.startswith("ValueError: group does not hold this process, rank 1 of all; need a group that does.")


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_a_rank_without_a_process_group_is_refused(build: Callable[..., PairLoss]) -> None:
    part = part_of(COUNTS, 0)
    with pytest.raises(RuntimeError, match=r"^rank is 2 but torch\.distributed is not initialised; .*, or leave rank out\."):
        value_of(build(rank=2), part)
    assert value_of(build(rank=0), part) == value_of(build(), part)


def test_or_in_a_group_of_one(tmp_path: Path) -> None:
    part = part_of(COUNTS, 0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"^rank=2, world_size=1 were given, but this process is rank 0 of 1"):
            value_of(OTTERLoss(rank=2), part)
        assert told_by(lambda: value_of(OTTERLoss(rank=0), part)) == []
    finally:
        dist.destroy_process_group()


def test_a_process_launched_among_others_without_a_process_group_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_of(COUNTS, 0)
    world._warn.cache_clear()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert told_by(lambda: value_of(OTTERLoss(), part)) == []
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert told_by(lambda: value_of(OTTERLoss(world_size=1), part)) == []
    compiled = torch.compile(OTTERLoss(), fullgraph=True, backend="aot_eager")
    assert told_by(lambda: value_of(compiled, part)) == []
    (message,) = told_by(lambda: value_of(OTTERLoss(), part))
    assert message.startswith("this process was launched as rank 1 of 4, but torch.distributed is not initialised: ")
    assert "init_process_group first; if this is meant, say world_size=1" in message
    assert told_by(lambda: value_of(SigLIPLoss(), part)) == []
    monkeypatch.delenv("RANK")
    world._warn.cache_clear()
    assert told_by(lambda: value_of(OTTERLoss(), part)) == []


# ---- copies of one batch ----


@pytest.mark.parametrize("name", MODULES)
def test_ranks_with_copies_of_one_batch_compute_it_alone(ranks: list[dict[str, Any]], name: str) -> None:
    for results in ranks:
        assert results["copies"]["values"][name] == pytest.approx(expected_of(MODULES[name](), 0), rel=1e-12)


def test_and_train_as_one_process_with_it(ranks: list[dict[str, Any]]) -> None:
    model, part = TwoTowers(), part_of(COUNTS, 0)
    torch.autograd.backward(OTTERLoss()(*model(part["images"], part["texts"])))
    for results in ranks:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert relative(results["copies"]["gradients"][name], parameter.grad) <= 1e-12


def test_copies_are_warned_about_once(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        (message,) = results["copies"]["said"]
        assert message.startswith(f"all {RANKS} ranks bring the very same pairs, so each computes their loss alone.")
        assert "DistributedSampler" in message
        assert "pass group= the data-parallel ranks" in message
        assert results["copies"]["said again"] == []


def test_ranks_that_were_told_share_copies_too(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["copies"]["told of the ranks"] == pytest.approx(expected_of(OTTERLoss(), 0, 0, 0), rel=1e-12)


def test_one_other_bit_on_one_rank_makes_the_batch_a_shared_one(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["copies"]["one bit"] == pytest.approx(expected_of(OTTERLoss(), 0, 0, 0), rel=1e-9)


def test_where_only_some_are_copies_the_batch_is_shared_and_a_warning_says_so_once(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        told, found, again = results["copies"]["some said"]
        assert (told, again, results["copies"]["none said"]) == ([], [], [])
        (message,) = found
        assert message.startswith(f"some of {RANKS} ranks bring the very same pairs, and others do not")
        assert "pass group= the data-parallel ranks" in message
        assert results["copies"]["some"] == pytest.approx(expected_of(OTTERLoss(), 0, 1, 0), rel=1e-12)


def test_every_batch_is_judged_for_itself(ranks: list[dict[str, Any]]) -> None:
    one, shared = expected_of(OTTERLoss(), 0), expected_of(OTTERLoss(), *range(RANKS))
    for results in ranks:
        assert results["copies"]["in turn"] == pytest.approx([one, shared, one], rel=1e-12)


def test_where_ranks_do_not_talk_they_do_until_pairs_have_differed(ranks: list[dict[str, Any]]) -> None:
    one, shared, thrice = (expected_of(OTTERLoss(), *shares) for shares in ((0,), range(RANKS), (0, 0, 0)))
    for results in ranks:
        values, exchanges = zip(*results["silent"]["default"], strict=True)
        assert values == pytest.approx([one, one, shared, shared, thrice], rel=1e-12)
        assert exchanges == (1, 1, 1, 0, 0)
        values, exchanges = zip(*results["silent"]["told"], strict=True)
        assert values == pytest.approx([thrice, thrice, shared, shared, thrice], rel=1e-12)
        assert exchanges == (0, 0, 0, 0, 0)


# ---- groups and copies of a loss ----


@pytest.mark.parametrize("how", ["copy", "deepcopy", "in a model", "in a teacher", "given again"])
def test_copies_of_a_loss_share_its_group(ranks: list[dict[str, Any]], how: str) -> None:
    for rank in SOME:
        assert ranks[rank]["copied"][how] == pytest.approx(expected_of(SigLIPLoss(), *SOME), rel=1e-12)


def test_a_loss_held_twice_is_copied_once(ranks: list[dict[str, Any]]) -> None:
    assert all(ranks[rank]["copied"]["one copy"] for rank in SOME)


def test_a_pickle_leaves_a_group_out_and_the_loss_refuses_to_go_without(ranks: list[dict[str, Any]]) -> None:
    for rank in SOME:
        for (message,) in ranks[rank]["copied"]["refused"]:
            assert message.startswith("RuntimeError: group is missing: a process group cannot be pickled")
            assert "set loss.group = " in message


def test_but_needs_none_to_be_alone(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["lost and alone"] == pytest.approx(expected_of(OTTERLoss(), 1), rel=1e-12)


@pytest.mark.parametrize("how", ["all processes", "pickled early"])
def test_the_group_of_all_processes_survives_a_pickle(ranks: list[dict[str, Any]], how: str) -> None:
    for results in ranks:
        assert results[how] == pytest.approx(expected_of(InfoNCELoss(), *range(RANKS)), rel=1e-12)
