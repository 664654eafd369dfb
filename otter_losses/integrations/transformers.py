"""Hugging Face transformers: its `Trainer` with our losses, for CLIPModel, SiglipModel and other models that embed pairs."""

from typing import Any

import torch
from torch import Tensor, nn

from otter_losses.integrations.missing import absent
from otter_losses.losses.base import PairLoss
from otter_losses.teacher import EMATeacher

try:
    from transformers import Trainer
except ImportError as error:
    Trainer = absent("transformers and accelerate", error)


class PairLossTrainer(Trainer):
    """transformers' `Trainer` with one of our losses in place of the model's own, which is not computed.

    All processes share a batch: the loss is told its rank and world size, unless it was built with a ``group``. Accumulated
    batches count alike: their gradient is the mean of each batch's own.

    Args:
        loss: any loss of this library.
        teacher: what the targets are made with, by default the model's own embeddings: a frozen model, or an `EMATeacher`, which
            follows the model after each optimizer step. It is called like the model, without gradient; checkpoints leave it out.
        arguments: the Trainer's own, by name.

    The model's output has ``image_embeds`` and ``text_embeds``, (N, D) and L2-normalised; the model has a ``logit_scale``, the
    logarithm of the scale, and may have a ``logit_bias``. So does the teacher, of which width and scale may differ.

    Raises:
        TypeError: the loss is not one of ours, or the model is not of that kind.
        ValueError: ``compute_loss_func`` is given too.

    Example:
        >>> from otter_losses import EMATeacher, OTTERLoss
        >>> def train(model, pairs):
        ...     PairLossTrainer(model=model, train_dataset=pairs, loss=OTTERLoss(), teacher=EMATeacher(model)).train()
    """

    def __init__(self, *, loss: PairLoss, teacher: nn.Module | None = None, **arguments: Any) -> None:
        if not isinstance(loss, PairLoss):
            raise TypeError(f"loss is {loss!r}; need a loss of otter_losses, such as OTTERLoss().")
        if arguments.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is given beside loss; need one of them. Use transformers.Trainer for the other.")
        super().__init__(**arguments)
        if loss.group is None:
            loss.rank, loss.world_size = self.args.process_index, self.args.world_size
        self.loss = loss
        self.teacher = None if teacher is None else teacher.to(self.args.device).eval()
        self.can_return_loss = True  # evaluate() would look for labels
        self.model_accepts_loss_kwargs = False  # the loss is a mean over its batch, to be divided by the accumulated batches
        self._following: Any = None

    def create_optimizer(self, *arguments: Any) -> Any:
        optimizer = super().create_optimizer(*arguments)
        if isinstance(self.teacher, EMATeacher):
            if self._following is not None:
                self._following.remove()
            self._following = self.teacher.follow(self.model, optimizer)
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        outputs = model(**inputs)
        given: tuple[Any, ...] = ()
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                given = _pairs(self.teacher(**inputs), self.teacher)
        loss = self.loss(*_pairs(outputs, self.model), *given)
        return (loss, outputs) if return_outputs else loss


def _pairs(outputs: Any, model: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The arguments of a loss: embeddings of both kinds, scale, bias."""
    model = model.module if isinstance(model, EMATeacher) else model
    log_scale = getattr(model, "logit_scale", None)
    if log_scale is None or not hasattr(outputs, "image_embeds") or not hasattr(outputs, "text_embeds"):
        raise TypeError(
            f"{type(model).__name__} returned {type(outputs).__name__}; need a model with a logit_scale whose output has "
            "image_embeds and text_embeds, such as CLIPModel or SiglipModel."
        )
    return outputs.image_embeds, outputs.text_embeds, log_scale.exp(), getattr(model, "logit_bias", None)
