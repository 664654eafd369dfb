"""One step of training, and all that a checkpoint has to hold of it."""

import math
import os
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import otter_losses
from benchmarks.reproduction import checkpoint, objective
from benchmarks.reproduction.checkpoint import CheckpointError
from benchmarks.reproduction.config import Config
from benchmarks.reproduction.data import Batch
from benchmarks.reproduction.models import PairModel
from benchmarks.reproduction.place import Place, autocast
from otter_losses import EMATeacher, grad_cache

FREE_TO_CHANGE = {
    "data": ("workers", "max_bad_share"),
    "train": ("chunk", "log_every", "diagnose_every", "save_every"),
}
"""Settings that a run may go on with another value of."""


class Trainer:
    """Model, teacher, optimizer and gradient scaler, `step` steps into a run of `steps`.

    Under several processes the model is in DistributedDataParallel, on GPUs with its BatchNorm synchronised. A device's share
    that is larger than `train.chunk` goes through the encoders in chunks, with the loss over all of it
    (`otter_losses.grad_cache`); BatchNorm then normalises chunk by chunk.

    Args:
        pairs: of the data set.
        state: of a checkpoint to go on from.

    Raises:
        CheckpointError: the state is of a run with other settings or data.
        ConfigError: an encoder or a loss that cannot be had.
    """

    def __init__(self, config: Config, place: Place, pairs: int, steps: int, state: dict[str, Any] | None = None) -> None:
        self.config, self.place, self.pairs, self.steps = config, place, pairs, steps
        if state is not None:
            self._check_same(state)
        _set_determinism(config.train.deterministic)
        self.loss = objective.build(config.loss, place)
        torch.manual_seed(config.train.seed)
        model = PairModel(config.model if state is None else checkpoint.architecture(state))
        if place.size > 1 and place.device.type == "cuda" and config.train.sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.model = model.to(place.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        settings = config.train
        self.teacher = EMATeacher(self.model, settings.ema_decay, settings.ema_warmup) if config.loss.teacher else None
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        if self.teacher is not None:
            self.teacher.follow(self.model, self.optimizer)  # not where the scaler skips a step
        self.half = place.half(settings.precision)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=self.half == torch.float16)
        self.parallel: nn.Module = self.model
        if place.size > 1:
            devices = [place.device] if place.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=devices)
        self.step, self.seen, self.bad = 0, 0, 0
        self.targets: dict[str, Any] = {}
        if state is not None:
            self._restore(state)

    def lr(self) -> float:
        """A cosine from the configured rate to 0 over all steps."""
        return self.config.train.lr * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def update(self, batch: Batch) -> Tensor:
        """One step of the optimizer; the loss of the whole batch, over all processes, without waiting for the device."""
        seed_step(self.config.train.seed, self.step, self.place.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        chunks = self._chunks(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.place.device, self.half):
            self.targets = self._targets(chunks)
            if len(chunks) == 1:
                value = self.loss(**self.parallel(*chunks[0]), **self.targets)
            else:
                found = grad_cache(self.parallel, chunks, self.loss, backward=self._backward, **self.targets)
                assert isinstance(found, Tensor)
                value = found
        if len(chunks) == 1:
            self._backward(value)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return value.detach()

    def _backward(self, value: Tensor) -> None:
        torch.autograd.backward(self.scaler.scale(value))

    def _chunks(self, batch: Batch) -> list[tuple[Tensor, dict[str, Tensor]]]:
        device, size = self.place.device, self.config.train.chunk
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        tokens = {name: value.to(device, non_blocking=True) for name, value in batch.tokens.items()}
        starts = range(0, len(images), size)
        return [(images[at : at + size], {name: value[at : at + size] for name, value in tokens.items()}) for at in starts]

    def _targets(self, chunks: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Any]:
        """The teacher's features, by the loss's keywords."""
        if self.teacher is None:
            return {}
        outputs = [self.teacher(*chunk) for chunk in chunks]
        features = {name: torch.cat([output[name] for output in outputs]) for name in ("image_features", "text_features")}
        return {**{f"dist_{name}": value for name, value in features.items()}, "dist_logit_scale": outputs[0]["logit_scale"]}

    def scales(self) -> dict[str, float]:
        """The learned temperatures, as what cosines are multiplied with."""
        logarithms = {"logit_scale": self.model.log_scale, "distill_logit_scale": self.model.distill_log_scale}
        return {name: self.model.scale(each).item() for name, each in logarithms.items() if each is not None}

    def diagnose(self) -> dict[str, float]:
        """How the teacher's targets of the last batch look (`objective.diagnose`); all processes have to ask."""
        v, t = (self.place.gather(self.targets[f"dist_{name}_features"]) for name in ("image", "text"))
        return objective.diagnose(self.config.loss, v, t, self.targets["dist_logit_scale"].item(), self.place.size)

    def broken(self) -> str:
        """The name of a weight that is not finite; none is empty."""
        names, weights = zip(*self.model.state_dict().items(), strict=True)
        finite = torch.stack([weight.isfinite().all() for weight in weights]).tolist()
        return next((name for name, fine in zip(names, finite, strict=True) if not fine), "")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "step": self.step,
            "config": asdict(self.config),
            "text_config": self.model.text_config(),
            "pairs": self.pairs,
            "model": self.model.state_dict(),
            "teacher": None if self.teacher is None else self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "seen": self.seen,
            "bad": self.bad,
            "versions": {"torch": str(torch.__version__), "otter_losses": otter_losses.__version__},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where there was no float16
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.seen, self.bad = state["step"], state["seen"], state["bad"]

    def _check_same(self, state: dict[str, Any]) -> None:
        then, now = state["config"], asdict(self.config)
        for section, settings in now.items():
            for name, value in settings.items():
                before = then.get(section, {}).get(name)
                if before != value and name not in FREE_TO_CHANGE.get(section, ()):
                    raise CheckpointError(
                        f"the run was started with {section}.{name} = {before!r} and is to go on with {value!r}; need the same. "
                        "Take the same configuration, or another --run folder for a new run."
                    )
        if state["pairs"] != self.pairs:
            raise CheckpointError(
                f"the run was started on {state['pairs']} pairs and is to go on with {self.pairs}; need the same data set. "
                "Name it with --data, or take another --run folder for a new run."
            )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Sets torch's random numbers (dropout) to those of a step, so that no generator has to be saved."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))


def _set_determinism(deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
