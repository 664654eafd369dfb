"""Lightning's Trainer, in one process and in two, trains what the plain loop trains."""

import os
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from otter_losses import EMATeacher, OTTERLoss
from tests.helpers.carried import Call, Recorder, check_carried
from tests.helpers.checks import relative
from tests.helpers.examples import check_falls, load, theirs
from tests.helpers.loops import Batch, numbers, train
from tests.helpers.processes import run
from tests.helpers.towers import TwoTowers, whole_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # lightning's use of torch's pytree
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),  # the teacher, which is to stay so
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

WORLD = 2
PAIRS, BATCH, EPOCHS = 32, 10, 2
"""Every epoch ends with a batch of 2."""


class CLIP(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.towers = TwoTowers()
        self.teacher = EMATeacher(self.towers)

    def setup(self, stage: str) -> None:
        self.loss = OTTERLoss(rank=self.global_rank, world_size=self.trainer.world_size)

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        x, y, scale, bias = self.towers(*batch)
        v, t, *_ = self.teacher(*batch)
        parts: dict[str, Tensor] = self.loss(x, y, scale, bias, v, t, output_dict=True)
        return parts

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        parts = self.parts(batch)
        self.log_dict(parts, sync_dist=True)
        return {"loss": parts["contrastive_loss"] + parts["distill_loss"], **parts}

    def validation_step(self, batch: Batch, index: int) -> None:
        parts = self.parts(batch)
        self.log("validation", parts["contrastive_loss"] + parts["distill_loss"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        self.teacher.follow(self.towers, optimizer)
        return optimizer


class Watch(Callback):  # type: ignore[misc]
    """The loss of every batch, as training_step returned it and as it was logged."""

    def __init__(self) -> None:
        self.returned: list[float] = []
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.returned.append(float(outputs["loss"]))
        self.logged.append(float(sum(trainer.callback_metrics[name] for name in ("contrastive_loss", "distill_loss"))))


class Believing(lightning.LightningModule):  # type: ignore[misc]
    """Its weights stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = TwoTowers()
        whole = whole_batch(PAIRS)
        self.loss = Recorder(self.towers(whole["images"], whole["texts"])[0])

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        *pairs, alpha = batch
        value: Tensor = self.loss(*self.towers(*pairs), alpha=alpha)
        return value

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def believe(world: int) -> list[Call]:
    """What reaches the loss in batches that Lightning shuffles and deals out, accumulated."""
    whole, model = whole_batch(PAIRS), Believing()
    loader = DataLoader(TensorDataset(whole["images"], whole["texts"], whole["alpha"]), BATCH // world, shuffle=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"strategy": "ddp" if world > 1 else "auto", "max_epochs": EPOCHS, "accumulate_grad_batches": 2}
    lightning.Trainer(accelerator="cpu", devices=world, **options, **quiet).fit(model, loader)
    return model.loss.calls


def data(dtype: torch.dtype = torch.float64) -> TensorDataset:
    whole = whole_batch(PAIRS)
    return TensorDataset(whole["images"].to(dtype), whole["texts"].to(dtype))


def fit(model: CLIP, world: int, checkpoint: str | None = None, **options: Any) -> dict[str, Any]:
    """Train, and what came of it."""
    watch = Watch()
    settings = {"strategy": "ddp" if world > 1 else "auto", "max_epochs": EPOCHS, **options}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", devices=world, callbacks=[watch], **settings, **quiet)
    pairs = data(next(model.parameters()).dtype)
    # In the place of Lightning's own, which shuffles.
    sampler: DistributedSampler[Any] = DistributedSampler(pairs, world, trainer.global_rank, shuffle=False)
    loader = DataLoader(pairs, BATCH // world, sampler=sampler)
    trainer.fit(model, loader, loader, ckpt_path=checkpoint)
    assert trainer.world_size == world
    return {
        "trainer": trainer,
        "numbers": numbers(model.towers, model.teacher),
        "losses": watch.returned,
        "logged": watch.logged,
        "validation": float(trainer.callback_metrics["validation"]),
    }


def changed(by: float) -> CLIP:
    """With other weights."""
    model = CLIP()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += by
    return model


def measure(rank: int, world: int, folder: str) -> dict[str, Any]:
    """Everything that is trained, for one process of `world`."""
    checkpoint = f"{folder}/{world}.ckpt"
    results = {"epochs": fit(CLIP(), world), "accumulated": fit(CLIP(), world, accumulate_grad_batches=2)}
    fit(CLIP(), world, max_epochs=1)["trainer"].save_checkpoint(checkpoint)
    results["resumed"] = fit(changed(by=1.0), world, checkpoint)
    results["other weights on every rank"] = fit(changed(by=float(rank)), world)
    results["bf16-mixed"] = fit(CLIP().float(), world, precision="bf16-mixed")
    if world > 1:
        results["find_unused_parameters"] = fit(CLIP(), world, strategy="ddp_find_unused_parameters_true")
    for result in results.values():
        del result["trainer"]
    return {**results, "believed": believe(world), "example": load("lightning").main(devices=world)}


def work(rank: int, world: int, folder: str) -> dict[str, Any]:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(value) for name, value in launched.items()}, TORCHELASTIC_RUN_ID="none")  # as torchrun does
    return measure(rank, world, folder)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a process alone trained, and what each of two did."""
    folder = tmp_path_factory.mktemp("lightning")
    shared = run(work, WORLD, folder, str(folder))
    return [measure(0, 1, str(folder)), *shared]


def batches() -> list[Batch]:
    images, texts = data().tensors
    return list(zip(torch.split(images, BATCH), torch.split(texts, BATCH), strict=True))


def expected(accumulate: int = 1) -> tuple[dict[str, Tensor], list[float]]:
    """The plain loop's."""
    epoch = [batches()[index : index + accumulate] for index in range(0, len(batches()), accumulate)]
    return train(TwoTowers(), OTTERLoss(), EPOCHS * epoch)


def check(result: dict[str, Any], wanted: tuple[dict[str, Tensor], list[float]], bound: float) -> None:
    assert result["numbers"].keys() == wanted[0].keys()
    assert result["numbers"]["teacher average.n_averaged"] == wanted[0]["teacher average.n_averaged"]
    for name, tensor in wanted[0].items():
        assert relative(result["numbers"][name], tensor) <= bound, name


@pytest.mark.parametrize("name", ["epochs", "accumulated", "resumed", "other weights on every rank", "find_unused_parameters"])
def test_the_trainer_trains_what_the_plain_loop_trains(processes: list[dict[str, Any]], name: str) -> None:
    """Weights, teacher and its count of steps, with a smaller last batch, and a validation before, between and after."""
    wanted = expected(2 if name == "accumulated" else 1)
    for results in processes[name == "find_unused_parameters" :]:
        check(results[name], wanted, 1e-10)


def test_the_trainer_reports_the_loss_of_the_whole_batch(processes: list[dict[str, Any]]) -> None:
    """As `loss` of the returned dict, and by log_dict with sync_dist, of which one value a rank would be the mean."""
    wanted = torch.tensor(expected()[1])
    for results in processes:
        assert relative(torch.tensor(results["epochs"]["losses"]), wanted) <= 1e-6
        assert relative(torch.tensor(results["epochs"]["logged"]), wanted) <= 1e-6


def test_validation_is_the_mean_over_whole_batches(processes: list[dict[str, Any]]) -> None:
    trained = CLIP()
    trained.load_state_dict({name.replace("model ", "towers.").replace(" ", "."): each for name, each in expected()[0].items()})
    total = 0.0
    for images, texts in batches():
        x, y, scale, bias = trained.towers(images, texts)
        v, t, *_ = trained.teacher(images, texts)
        total += len(images) * float(OTTERLoss()(x, y, scale, bias, v, t).detach())
    for results in processes:
        assert results["epochs"]["validation"] == pytest.approx(total / PAIRS, rel=1e-6)


def test_mixed_precision_trains_as_double_precision_does(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        assert results["bf16-mixed"]["numbers"]["teacher average.module.image.weight"].dtype == torch.float32
        check(results["bf16-mixed"], expected(), 0.05)


def test_values_in_the_batch_reach_the_loss_with_their_pairs(processes: list[dict[str, Any]]) -> None:
    for ranks in (processes[:1], processes[1:]):
        check_carried([call for results in ranks for call in results["believed"]], alpha=whole_batch(PAIRS)["alpha"])


def test_the_example_trains_with_our_loss_and_with_theirs(processes: list[dict[str, Any]]) -> None:
    for results in processes:
        check_falls(results["example"])
    assert processes[1]["example"] == processes[2]["example"]
    check_falls(load("lightning", theirs("lightning")).main())
