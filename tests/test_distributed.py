"""Several gloo processes give the gradients that one process with the whole batch has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from families import make_features, relative
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from otter_losses import DistillationLoss, InfoNCELoss, LabelSmoothingLoss, OTTERLoss, SigLIPLoss
from otter_losses.losses.base import PairLoss

LOCAL = 5
WORLDS = (2, 3, 4)

BUILDERS: dict[str, Callable[..., PairLoss]] = {
    "otter": OTTERLoss,
    "otter, no gammas": lambda **contract: OTTERLoss(gamma_image=0.0, gamma_text=0.0, **contract),
    "otter, sharp": lambda **contract: OTTERLoss(epsilon=0.005, **contract),
    "otter, blocks": lambda **contract: OTTERLoss(max_memory=0, **contract),
    "info_nce": InfoNCELoss,
    "label_smoothing": LabelSmoothingLoss,
    "distillation": DistillationLoss,
    "distillation, off the diagonal": lambda **contract: DistillationLoss(remove_diagonal=True, epsilon=0.15, **contract),
    "siglip": SigLIPLoss,
}
SWITCHES = ("local_loss", "gather_with_grad", "cache_labels")
TEACHERS = ("own", "given", "alpha per pair")


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(6, 8, dtype=torch.float64)
        self.text = nn.Linear(7, 8, dtype=torch.float64)
        self.log_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return x, y, self.log_scale.exp(), 1.0 * self.bias


def whole_batch(world: int) -> dict[str, Tensor]:
    n = world * LOCAL
    images, _ = make_features("random", n, 6, seed=1)
    _, texts = make_features("random", n, 7, seed=2)
    v, t = make_features("duplicated", n, 9, seed=3)
    return {"images": images, "texts": texts, "v": v, "t": t, "alpha": torch.linspace(0, 1, n, dtype=torch.float64)}


def cases() -> list[tuple[str, str, str | None]]:
    """Every loss with every teacher; every switch of open_clip's with OTTER."""
    plain = [
        (name, teacher, None)
        for name in BUILDERS
        for teacher in TEACHERS
        if teacher != "alpha per pair" or name.startswith(("otter", "distillation"))
    ]
    return plain + [("otter", "given", switch) for switch in SWITCHES]


def run_case(model: nn.Module, loss: PairLoss, batch: dict[str, Tensor], teacher: str) -> dict[str, Tensor]:
    """Value and gradients of the model's parameters."""
    call: dict[str, Any] = {}
    if teacher != "own":
        call = {"dist_image_features": batch["v"], "dist_text_features": batch["t"]}
    if teacher == "alpha per pair":
        call["alpha"] = batch["alpha"]
    model.zero_grad()
    x, y, scale, bias = model(batch["images"], batch["texts"])
    value = loss(x, y, scale, bias, **call)
    value.backward()
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return {"value": value.detach(), **{name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}}


def message_of(loss: PairLoss, images: Tensor, **call: Any) -> str:
    try:
        loss(images, images, 1.0, **call)
    except ValueError as error:
        return str(error)
    return "no error"


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    batch = {name: tensor[rank * LOCAL : (rank + 1) * LOCAL] for name, tensor in whole_batch(world).items()}
    model = DistributedDataParallel(TwoTowers())
    results: dict[Any, Any] = {}
    for name, teacher, switch in cases():
        contract: dict[str, Any] = {"rank": rank, "world_size": world, **({switch: True} if switch else {})}
        results[name, teacher, switch] = run_case(model, BUILDERS[name](**contract), batch, teacher)
    results["wrong world"] = message_of(InfoNCELoss(rank=rank, world_size=world + 1), batch["images"])
    results["wrong rank"] = message_of(OTTERLoss(rank=(rank + 1) % world, world_size=world), batch["images"])
    loss, last = OTTERLoss(rank=rank, world_size=world), rank == world - 1
    results["uneven"] = message_of(loss, batch["images"][1 if last else 0 :])
    results["mixed dtypes"] = message_of(loss, batch["images"].float() if last else batch["images"])
    results["one teacher"] = message_of(
        loss, batch["images"], **({} if last else {"dist_image_features": batch["v"], "dist_text_features": batch["t"]})
    )
    results["local message"] = message_of(loss, batch["images"], alpha=torch.ones(LOCAL - 1))
    results["one alpha"] = float(loss(batch["images"], batch["images"], 1.0, alpha=torch.tensor([0.3], dtype=torch.float64)))
    # One tensor as both modalities: gradients that share memory must not be summed into one another.
    twice = batch["images"].clone().requires_grad_()
    InfoNCELoss(rank=rank, world_size=world)(twice, twice, 5.0).backward()
    results["twice"] = twice.grad
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each rank of a group measured."""
    world: int = request.param
    folder = tmp_path_factory.mktemp(f"world{world}")
    spawn(work, args=(world, str(folder)), nprocs=world)  # type: ignore[no-untyped-call]
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize(("name", "teacher", "switch"), cases())
def test_values_and_mean_gradients_are_those_of_the_whole_batch(
    ranks: list[dict[Any, Any]], name: str, teacher: str, switch: str | None
) -> None:
    expected = run_case(TwoTowers(), BUILDERS[name](), whole_batch(len(ranks)), teacher)
    for results in ranks:
        actual = results[name, teacher, switch]
        assert actual.keys() == expected.keys()
        for key, wanted in expected.items():
            assert relative(actual[key], wanted, floor=1e-4) <= 1e-10, key
    sizes = {key: float(wanted.abs().sum()) for key, wanted in expected.items()}
    assert all(size > 1e-6 for key, size in sizes.items() if key != "bias" or name == "siglip")


def test_features_used_twice_get_both_gradients(ranks: list[dict[Any, Any]]) -> None:
    whole = whole_batch(len(ranks))["images"].requires_grad_()
    InfoNCELoss()(whole, whole, 5.0).backward()
    assert whole.grad is not None
    mean = torch.cat([results["twice"] for results in ranks]) / len(ranks)
    assert relative(mean, whole.grad) <= 1e-10


def test_a_world_that_disagrees_is_refused(ranks: list[dict[Any, Any]]) -> None:
    world = len(ranks)
    for rank, results in enumerate(ranks):
        here = f"this process is rank {rank} of {world}; pass rank=torch.distributed.get_rank()"
        assert f"rank={rank}, world_size={world + 1} were given" in results["wrong world"]
        assert here in results["wrong world"]
        assert f"rank={(rank + 1) % world}, world_size={world} were given" in results["wrong rank"]
        assert here in results["wrong rank"]


def test_ranks_that_bring_other_tensors_are_named_on_every_rank(ranks: list[dict[Any, Any]]) -> None:
    here, there = "is torch.float64 of shape (5, 6) on rank 0 and", f"on rank {len(ranks) - 1}"
    for results in ranks:
        assert f"image_features {here} torch.float64 of shape (4, 6) {there}" in results["uneven"]
        assert f"image_features {here} torch.float32 of shape (5, 6) {there}" in results["mixed dtypes"]
        assert f"dist_image_features is torch.float64 of shape (5, 9) on rank 0 and None {there}" in results["one teacher"]


def test_a_prior_is_checked_against_the_ranks_own_pairs(ranks: list[dict[Any, Any]]) -> None:
    images = whole_batch(len(ranks))["images"]
    expected = float(OTTERLoss(alpha=0.3)(images, images, 1.0))
    for results in ranks:
        assert "alpha has shape (4,); need a number or shape (5,)" in results["local message"]
        assert results["one alpha"] == pytest.approx(expected, rel=1e-12)
