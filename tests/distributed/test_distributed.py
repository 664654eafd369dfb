"""Several gloo processes give the gradients that one process with the whole batch has."""

import os
import re
import warnings
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from otter_losses import InfoNCELoss, LabelSmoothingLoss, OTTERLoss, RobustLoss, SigLIPLoss
from otter_losses.losses.base import PairLoss
from tests.helpers.batches import make_features
from tests.helpers.checks import relative
from tests.helpers.directions import DirectionsLoss
from tests.helpers.groups import generalised
from tests.helpers.losses import MODULES, VARIANTS, Build
from tests.helpers.processes import join, saved, start
from tests.helpers.towers import TwoTowers, part_of, whole_batch

LOCAL = 5
WORLDS = (2, 3, 4)
EVEN, UNEVEN, GROUP = "even", "uneven", "in a group"
"""How a batch is shared out: alike; in other numbers to each rank; among all ranks but the first."""

BUILDERS: dict[str, Build] = {
    **{name: VARIANTS[name] for name in (*MODULES, "otter, official", "distillation, off the diagonal")},
    "otter, no gammas": partial(OTTERLoss, gamma_image=0.0, gamma_text=0.0),
    "otter, sharp": partial(OTTERLoss, epsilon=0.005),
    "otter, blocks": partial(OTTERLoss, max_memory=0),
    "otter, stored by some": partial(OTTERLoss, epsilon=0.05, max_memory=1300),
    "otter, local": partial(OTTERLoss, scope="local"),
    "otter, triton": partial(OTTERLoss, backend="triton"),
    "otter, triton, blocks": partial(OTTERLoss, backend="triton", max_memory=0),
    "otter, triton, logarithms": partial(OTTERLoss, backend="triton", epsilon=0.02),
    "otter, triton, bfloat16": partial(OTTERLoss, backend="triton"),
    "otter, local, triton": partial(OTTERLoss, scope="local", backend="triton"),
    "otter, local, triton, bfloat16": partial(OTTERLoss, scope="local", backend="triton"),
    "label_smoothing, triton": partial(LabelSmoothingLoss, backend="triton"),
    "otter, autocast": OTTERLoss,
    "otter, official, autocast": OTTERLoss.official,
    "otter, triton, autocast": partial(OTTERLoss, backend="triton"),
    "siglip, autocast": SigLIPLoss,
    "directions": DirectionsLoss,
    "directions, triton": partial(DirectionsLoss, backend="triton"),
    "siglip, triton": partial(SigLIPLoss, backend="triton"),
    "siglip, triton, bfloat16": partial(SigLIPLoss, backend="triton"),
}
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""In bfloat16 both sides are rounded, locally twice, and the towers amplify it."""
HAS_TRITON = find_spec("triton") is not None
SWITCHES = ("gather_with_grad", "cache_labels")
TEACHERS = ("own", "given", "alpha per pair")
GROUPED = (
    *MODULES,
    "distillation, off the diagonal",
    "otter, blocks",
    "otter, local",
    "otter, triton",
    "otter, triton, blocks",
    "otter, local, triton, bfloat16",
    "label_smoothing, triton",
    "siglip, triton",
)
"""Those whose pairs are grouped too, also with pairs of other ranks."""
SCALED = ("otter", "otter, local", "otter, official")
WEIGHTED = (*MODULES, "otter, blocks", "otter, local", "otter, official", "directions", "otter, triton", "siglip, triton")
"""Those whose single losses are weighted too."""


def counts_of(world: int, sharing: str) -> list[int]:
    """The pairs of every rank."""
    if sharing == UNEVEN:
        return [LOCAL + 2 - rank if rank < 3 else 1 for rank in range(world)]
    return [LOCAL] * (world - 1 if sharing == GROUP else world)


def cases(sharing: str = EVEN) -> list[tuple[str, str, str | None]]:
    """Every loss with every teacher; every switch of open_clip's with OTTER."""
    plain: list[tuple[str, str, str | None]] = [
        (name, teacher, None)
        for name in BUILDERS
        for teacher in TEACHERS
        if (teacher != "alpha per pair" or name.startswith(("otter", "distillation"))) and (HAS_TRITON or "triton" not in name)
    ]
    scaled = [(name, kind, None) for name in SCALED for kind in ("second scale", "weights and second scale")]
    weighted = [(name, "weights", None) for name in WEIGHTED if HAS_TRITON or "triton" not in name]
    grouped = [(name, "groups", None) for name in GROUPED if HAS_TRITON or "triton" not in name]
    return plain + scaled + weighted + grouped + [("otter", "given", switch) for switch in SWITCHES if sharing == EVEN]


def dtype_of(name: str) -> torch.dtype:
    """Of the features that a case is given."""
    return torch.bfloat16 if "bfloat16" in name else torch.float32 if "triton" in name or "autocast" in name else torch.float64


def bound_of(name: str) -> float:
    """Kernels' gradients of operands in half precision are within 5e-4, whichever dtype they have; the towers amplify it."""
    return 3e-3 if "triton, autocast" in name else BOUNDS[dtype_of(name)]


def run_case(
    model: nn.Module,
    loss: "PairLoss | InBlocks",
    batch: dict[str, Tensor],
    teacher: str,
    dtype: torch.dtype = torch.float64,
    share: float = 1.0,
    autocast: bool = False,
) -> dict[str, Tensor]:
    """Value and gradients of the model's parameters; `share`: of a rank's pairs in the batch, times the ranks."""
    call: dict[str, Any] = {}
    if teacher != "own":
        call = {"dist_image_features": batch["v"], "dist_text_features": batch["t"]}
    if teacher == "alpha per pair":
        call["alpha"] = batch["alpha"]
    if teacher == "groups":
        call["groups"] = batch["groups"]
        if not isinstance(loss, SigLIPLoss):
            call["q"] = 0.3
    model.zero_grad()
    x, y, scale, bias = model(batch["images"], batch["texts"])
    if "second scale" in teacher:
        call["distill_logit_scale"] = 0.5 * scale
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if "weights" in teacher:
            losses = loss(x.to(dtype), y.to(dtype), scale, bias, **call, reduction="none")
            value = share * ((0.2 + batch["alpha"]) * losses).mean()
        else:
            value = loss(x.to(dtype), y.to(dtype), scale, bias, **call)
    torch.autograd.backward(value)
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {"value": value.detach(), **{name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}}


class InBlocks:
    """OTTER with the targets of several ranks, written out, on one process."""

    epsilon, iterations = 0.15, 5

    def __init__(self, counts: list[int], official: bool) -> None:
        self.counts, self.is_official = counts, official

    def __call__(self, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, **call: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            x, y = (each + (each.bfloat16() - each).detach() for each in (x, y))
        x, y = x.double(), y.double()
        v, t = (call.get(f"dist_{name}_features", own.detach()).double() for name, own in (("image", x), ("text", y)))
        alpha = torch.as_tensor(call.get("alpha", 0.5), dtype=torch.float64).expand(len(x))
        groups = call.get("groups", torch.arange(len(x)))
        given = (groups[:, None] == groups).double()
        given = given / given.sum(1, keepdim=True)
        losses = 0.0 * bias.sum()
        for image, text, targets in ((x, y, self.targets(v, t, groups)), (y, x, self.targets(t, v, groups))):
            if self.is_official and len(self.counts) > 1:
                text = text.detach()  # gathered
            logits = (scale * image @ text.T).log_softmax(1)
            second = (call.get("distill_logit_scale", scale) * image @ text.T).log_softmax(1)
            distill = -(targets * second).sum(1) - self.is_official * torch.special.entr(targets).sum(1)
            losses = losses + alpha * generalised(-(given * logits).sum(1), call.get("q", 0.0)) + (1 - alpha) * distill
        losses = losses if self.is_official else losses / 2
        return losses if call.get("reduction") == "none" else losses.mean()

    def targets(self, v: Tensor, t: Tensor, groups: Tensor) -> Tensor:
        n, blocks = len(v), torch.block_diag(*(torch.ones(c, c) for c in self.counts))  # type: ignore[no-untyped-call]
        logits = (v @ v.T + t @ t.T + v @ t.T) / self.epsilon
        if self.is_official:
            logits = logits - 200 / self.epsilon * torch.cat([torch.eye(count, n) for count in self.counts])
        else:
            inside = blocks > 0
            same = (groups[:, None] == groups) & inside
            same = torch.where(2 * same.sum(1, keepdim=True) <= inside.sum(1, keepdim=True), same, torch.eye(n, dtype=torch.bool))
            logits = logits.masked_fill(~inside | same, -torch.inf)
        plan = torch.exp(logits)
        for own, count in zip(torch.arange(n).split(self.counts), self.counts, strict=True):  # type: ignore[no-untyped-call]
            if count == 1 and not self.is_official:
                plan[own, own] = 1.0
        for _ in range(self.iterations):
            plan = plan / plan.sum(1, keepdim=True)
            plan = plan / plan.sum(0)
        return plan / plan.sum(1, keepdim=True)


def alone_of(name: str, counts: list[int]) -> PairLoss | InBlocks:
    """What one process with the whole batch computes."""
    if "local" in name or "official" in name:
        return InBlocks(counts, "official" in name)
    alone = BUILDERS[name]()
    alone.backend = "torch"
    return alone


def message_of(loss: PairLoss, images: Tensor, **call: Any) -> str:
    scale = call.pop("scale", 1.0)
    try:
        loss(images, images, scale, **call)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def work(rank: int, world: int, folder: str) -> None:
    join(rank, world, folder)
    results: dict[Any, Any] = {}
    others = dist.new_group(list(range(1, world)))
    for sharing in (EVEN, UNEVEN, GROUP):
        contract: dict[str, Any] = {"rank": rank, "world_size": world}
        group = None
        if sharing == GROUP:
            if rank == 0:
                continue
            contract, group = {"rank": rank - 1, "world_size": world - 1, "group": others}, others
        model = DistributedDataParallel(TwoTowers(), process_group=group)
        batch = part_of(counts_of(world, sharing), contract["rank"])
        for name, kind, switch in cases(sharing):
            switches: dict[str, Any] = {switch: True} if switch else {}
            counts = counts_of(world, sharing)
            share = len(batch["images"]) * len(counts) / sum(counts)
            results[sharing, name, kind, switch] = run_case(
                model, BUILDERS[name](**contract, **switches), batch, kind, dtype_of(name), share, "autocast" in name
            )
    batch = part_of(counts_of(world, EVEN), rank)
    images = batch["images"]
    results["wrong world"] = message_of(InfoNCELoss(rank=rank, world_size=world + 1), images)
    results["wrong rank"] = message_of(OTTERLoss(rank=(rank + 1) % world, world_size=world), images)
    loss, last = OTTERLoss(rank=rank, world_size=world), rank == world - 1
    results["mixed dtypes"] = message_of(loss, images.float() if last else images)
    results["other width"] = message_of(loss, images[:, 1:] if last else images)
    teacher = {"dist_image_features": batch["v"], "dist_text_features": batch["t"]}
    results["one teacher"] = message_of(loss, images, **({} if last else teacher))
    results["other epsilon"] = message_of(OTTERLoss(rank=rank, world_size=world, epsilon=0.1 if last else 0.15), images)
    results["other reduction"] = message_of(loss, images, reduction="none" if last else "mean")
    results["no reduction"] = message_of(loss, images, reduction="sum" if last else "mean")
    results["other loss"] = message_of((InfoNCELoss if last else SigLIPLoss)(rank=rank, world_size=world), images)
    spoilt = images.clone()
    spoilt[2, 1] = torch.nan
    results["nan"] = message_of(loss, spoilt if last else images)
    results["no tensor"] = message_of(loss, "images" if last else images)  # type: ignore[arg-type]
    results["nan scale"] = message_of(loss, images, scale=float("nan") if last else 1.0)
    results["rank 0 everywhere"] = message_of(OTTERLoss(rank=0, world_size=world), images)
    results["one frozen"] = message_of(loss, images.clone().requires_grad_(not last))
    results["official, local"] = message_of(loss, images, official=True, scope="local")
    groups = torch.arange(LOCAL)
    results["one grouped"] = message_of(loss, images, **({} if last else {"groups": groups}))
    results["wrong groups"] = message_of(loss, images, groups=[1, 2] if last else groups)
    results["local message"] = message_of(loss, images, alpha=torch.ones(LOCAL - 1))
    results["one alpha"] = float(loss(images, images, 1.0, alpha=torch.tensor([0.3], dtype=torch.float64)))
    robust = RobustLoss(rank=rank, world_size=world)
    results["one alpha, robust"] = float(robust(images, images, 5.0, alpha=torch.tensor([0.3], dtype=torch.float64)))
    # One tensor as both modalities: gradients that share memory must not be summed into one another.
    twice = images.clone().requires_grad_()
    InfoNCELoss(rank=rank, world_size=world)(twice, twice, 5.0).backward()
    results["twice"] = twice.grad
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    if last:
        os._exit(0)  # without a word
    try:
        loss(images, images, 1.0)
    except RuntimeError as error:
        torch.save(str(error), f"{folder}/{rank}.lost.pt")
    os._exit(0)  # leaving a group that lost a rank can wait for it


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each rank of a group measured."""
    world: int = request.param
    folder = tmp_path_factory.mktemp(f"world{world}")
    start(work, world, world, str(folder))
    results = saved(folder, world)
    for rank in range(world - 1):
        results[rank]["lost"] = torch.load(folder / f"{rank}.lost.pt", weights_only=True)
    return results


@pytest.mark.parametrize(
    ("sharing", "name", "teacher", "switch"), [(sharing, *case) for sharing in (EVEN, UNEVEN, GROUP) for case in cases(sharing)]
)
def test_values_and_mean_gradients_are_those_of_the_whole_batch(
    ranks: list[dict[Any, Any]], sharing: str, name: str, teacher: str, switch: str | None
) -> None:
    pairs = sum(counts_of(len(ranks), sharing))
    alone = alone_of(name, counts_of(len(ranks), sharing))
    expected = run_case(TwoTowers(), alone, whole_batch(pairs), teacher, dtype_of(name), autocast="autocast" in name)
    found = [results[sharing, name, teacher, switch] for results in (ranks[1:] if sharing == GROUP else ranks)]
    if "weights" in teacher:  # a mean over a rank's own pairs
        value = torch.stack([actual["value"] for actual in found]).mean()
        found = [{**actual, "value": value} for actual in found]
    for actual in found:
        assert actual.keys() == expected.keys()
        for key, wanted in expected.items():
            assert relative(actual[key], wanted, floor=1e-4) <= bound_of(name), key
    sizes = {key: float(wanted.abs().sum()) for key, wanted in expected.items()}
    assert all(size > 1e-6 for key, size in sizes.items() if key != "bias" or name == "siglip")


@pytest.mark.parametrize(("gathers", "warns"), [(False, True), (True, False)])
def test_the_pair_of_switches_that_is_wrong_elsewhere_is_warned_about(gathers: bool, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        InfoNCELoss(local_loss=True, gather_with_grad=gathers, world_size=2)
        InfoNCELoss(local_loss=True, gather_with_grad=gathers)
    found = [str(each.message) for each in caught]
    assert len(found) == warns
    assert all("local_loss is True and gather_with_grad False" in message for message in found)


def test_features_used_twice_get_both_gradients(ranks: list[dict[Any, Any]]) -> None:
    whole = whole_batch(LOCAL * len(ranks))["images"].requires_grad_()
    InfoNCELoss()(whole, whole, 5.0).backward()
    assert whole.grad is not None
    mean = torch.cat([results["twice"] for results in ranks]) / len(ranks)
    assert relative(mean, whole.grad) <= 1e-10


def test_a_world_that_disagrees_is_refused(ranks: list[dict[Any, Any]]) -> None:
    world = len(ranks)
    for rank, results in enumerate(ranks):
        here = f"this process is rank {rank} of {world}; pass rank=torch.distributed.get_rank(), "
        assert results["wrong world"].endswith("world_size=torch.distributed.get_world_size(), or leave both out.")
        assert f"rank={rank}, world_size={world + 1} were given" in results["wrong world"]
        assert here in results["wrong world"]
        assert f"rank={(rank + 1) % world}, world_size={world} were given" in results["wrong rank"]
        assert here in results["wrong rank"]


def test_ranks_that_bring_other_tensors_are_named_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    here, there = "is torch.float64 of shape (5, 6) on rank 0 and", f"on rank {len(ranks) - 1}"
    for results in ranks:
        assert f"image_features {here} torch.float32 of shape (5, 6) {there}" in results["mixed dtypes"]
        assert f"image_features {here} torch.float64 of shape (5, 5) {there}" in results["other width"]
        assert f"dist_image_features is torch.float64 of shape (5, 9) on rank 0 and None {there}" in results["one teacher"]
        assert f"groups is torch.int64 of shape (5,) on rank 0 and None {there}" in results["one grouped"]


def test_ranks_with_another_loss_are_named_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    last = len(ranks) - 1
    for results in ranks:
        assert re.search(
            rf"loss is OTTERLoss\(.*0\.15.*\) on rank 0 and OTTERLoss\(.*0\.1,.*\) on rank {last};", results["other epsilon"]
        )
        assert re.search(rf"loss is SigLIPLoss\(.*\) on rank 0 and InfoNCELoss\(.*\) on rank {last};", results["other loss"])
        assert re.search(rf"loss is .*'mean'.* on rank 0 and .*'none'.* on rank {last};", results["other reduction"])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("nan", "image_features holds nan at [2, 1]"),
        ("no tensor", "image_features is a str"),
        ("nan scale", "logit_scale is nan"),
        ("no reduction", "reduction is 'sum'; need 'mean'"),
        ("wrong groups", "groups is a list; need a torch.Tensor of integers"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(ranks: list[dict[Any, Any]], name: str, cause: str) -> None:
    world = len(ranks)
    for rank, results in enumerate(ranks):
        assert cause in results[name]
        assert (f"rank {world - 1} of {world} stopped, and so all do" in results[name]) == (rank < world - 1)


def test_a_rank_given_on_all_is_an_error_on_all(ranks: list[dict[Any, Any]]) -> None:
    world = len(ranks)
    assert f"rank 1 of {world} stopped, and so all do: rank=0, world_size={world} were given" in ranks[0]["rank 0 everywhere"]
    for rank, results in enumerate(ranks[1:], 1):
        assert f"this process is rank {rank} of {world}" in results["rank 0 everywhere"]


def test_a_tower_frozen_on_one_rank_is_named(ranks: list[dict[Any, Any]]) -> None:
    for results in ranks:
        assert re.search(
            r"image_features is .* \(5, 6\), with a gradient on rank 0 and .* \(5, 6\) on rank", results["one frozen"]
        )


def test_the_released_arithmetic_transports_globally(ranks: list[dict[Any, Any]]) -> None:
    for results in ranks:
        assert "scope is 'local' and the loss official()" in results["official, local"]


def test_the_released_arithmetic_gives_other_ranks_pairs_back_to_themselves() -> None:
    """The quirk that `official()` is there to reproduce."""
    v, t = make_features("random", 12, 9, seed=3)
    targets = InBlocks([4, 4, 4], official=True).targets(v, t, torch.arange(12))
    assert float(targets.diagonal()[:4].max()) < 1e-12
    assert float(targets.diagonal()[4:].min()) > 0.1


def test_a_rank_that_dies_is_named_by_those_that_live(ranks: list[dict[Any, Any]]) -> None:
    world = len(ranks)
    for results in ranks[:-1]:
        found = re.match(
            rf"the ranks could not be gathered: rank ([\d, ]+) of {world} gave no sign within 5 seconds", results["lost"]
        )
        assert found
        assert world - 1 in map(int, found[1].split(","))


def test_a_prior_is_checked_against_the_ranks_own_pairs(ranks: list[dict[Any, Any]]) -> None:
    images = whole_batch(LOCAL * len(ranks))["images"]
    expected = float(OTTERLoss(alpha=0.3)(images, images, 1.0))
    robust = float(RobustLoss(alpha=0.3)(images, images, 5.0))
    for results in ranks:
        assert "alpha has shape (4,); need a number or shape (5,)" in results["local message"]
        assert results["one alpha"] == pytest.approx(expected, rel=1e-12)
        assert results["one alpha, robust"] == pytest.approx(robust, rel=1e-12)
