"""Hugging Face transformers: its `Trainer` with our losses, for CLIPModel, SiglipModel and other models that embed pairs."""

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from otter_losses.integrations.losses import PER_PAIR, check_loss
from otter_losses.integrations.missing import absent
from otter_losses.integrations.teachers import Teaching, check_separate
from otter_losses.losses.base import PairLoss
from otter_losses.teacher import EMATeacher

try:
    from accelerate import PartialState
    from transformers import Trainer, TrainerCallback, TrainerState
except ImportError as error:
    Trainer = TrainerCallback = absent("transformers and accelerate", error)

__all__ = ["PairLossTrainer", "TeacherCallback"]

SAVED = "teacher.pt"
"""The teacher's file in a checkpoint."""


class TeacherCallback(TrainerCallback):
    """An `EMATeacher` in any of transformers' Trainers. It follows the model, and is saved and resumed with it.

    The teacher is updated after each optimizer step; do not call `EMATeacher.follow` as well. Each checkpoint gets a
    ``teacher.pt`` with the teacher's ``state_dict()``, whether ``save_only_model`` is set or not. A resumed run continues with
    it. With ``load_best_model_at_end`` the teacher ends as the best checkpoint's teacher. `PairLossTrainer` has this callback
    by itself.

    The Trainer does not tell a callback where it resumes from. So the callback looks for the folder in the arguments'
    ``resume_from_checkpoint`` and ``output_dir``. It takes a folder if its state is the one that was resumed.

    Args:
        teacher: an EMATeacher that was built from the Trainer's model.

    Raises:
        TypeError: the teacher is not an EMATeacher; only an EMATeacher changes.
        ValueError: the Trainer has a second such callback when a run begins.
        RuntimeError: the checkpoint's teacher has another architecture, or its file is damaged.

    Warns:
        UserWarning: the checkpoint has no teacher; this one then continues as it is.

    Example:
        >>> from otter_losses import EMATeacher
        >>> def resume(Trainer, model, **options):
        ...     Trainer(model, callbacks=[TeacherCallback(EMATeacher(model))], **options).train(resume_from_checkpoint=True)
    """

    def __init__(self, teacher: EMATeacher) -> None:
        super().__init__()
        if not isinstance(teacher, EMATeacher):
            raise TypeError(f"teacher is a {type(teacher).__name__}; need an EMATeacher. A frozen teacher needs no callback.")
        self.teacher = teacher
        self.checkpoint: str | None = None  # told by PairLossTrainer, which knows
        self._following: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._stop_following()
        first = vars(state).setdefault("teacher_callback", self)  # of this run; no field, so it is not saved
        if first is not self:
            first._stop_following()
            raise ValueError(
                "the Trainer has two TeacherCallbacks, which would write one file; need one. Leave out the callback where "
                "PairLossTrainer was given teacher=, which has its own."
            )
        self._following = self.teacher.follow(named["model"], named["optimizer"])
        if state.global_step:
            self._load(self._resumed(args, state), f"the checkpoint of step {state.global_step}, from which this run resumes,")

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if args.should_save and not state.is_hyper_param_search:  # whose folders have other names
            torch.save(self.teacher.state_dict(), _folder(args, state) / SAVED)
        PartialState().wait_for_everyone()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._stop_following()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(Path(state.best_model_checkpoint), f"the best checkpoint, {state.best_model_checkpoint},")

    def _stop_following(self) -> None:
        if self._following is not None:
            self._following.remove()

    def _resumed(self, args: Any, state: Any) -> Path | None:
        """The folder of the checkpoint whose state this is."""
        for folder in (self.checkpoint, args.resume_from_checkpoint, _folder(args, state)):
            file = Path(folder or "") / "trainer_state.json"
            if file.is_file():
                saved = TrainerState.load_from_json(str(file))
                if (saved.global_step, str(saved.log_history)) == (state.global_step, str(state.log_history)):
                    return file.parent
        return None

    def _load(self, folder: Path | None, which: str) -> None:
        if folder is not None and (folder / SAVED).is_file():
            self.teacher.load_state_dict(_read(folder / SAVED))
            return
        found = f"has no {SAVED}" if folder else "was not found; pass its path as the arguments' resume_from_checkpoint too"
        warnings.warn(
            f"{which} {found}. The teacher goes on as it is, after {self.teacher.updates} updates.", UserWarning, stacklevel=2
        )


class PairLossTrainer(Trainer):
    """transformers' `Trainer` with one of our losses in place of the model's own loss, which is not computed.

    All processes share a batch, or only those of the ``group`` that the loss was built with. Accumulated batches count alike:
    the gradient is the mean of the gradients of the batches.

    Args:
        loss: any loss of this library with ``reduction="mean"``.
        teacher: the model that makes the targets: a frozen model, or an `EMATeacher`. By default the targets are made from the
            model's own embeddings. An EMATeacher follows the model after each optimizer step, and is saved and resumed with it;
            see `TeacherCallback`. The teacher is called like the model, in eval mode and without gradient.
        arguments: the Trainer's own arguments, by name.

    The model's output has ``image_embeds`` and ``text_embeds``, (N, D) and L2-normalised. The model has a ``logit_scale``, the
    logarithm of the scale, and may have a ``logit_bias``. The same holds for the teacher, whose width and scale may differ.

    Columns of the data set named ``alpha`` (numbers in [0, 1], such as an audit's ``report.alpha()``) and ``groups`` (integers)
    go to the loss with their pairs, in training and evaluation. They do not go to the model.

    Raises:
        TypeError: the loss is not one of ours, or does not take such a column; the model is not of that kind; the teacher is
            not a module.
        ValueError: the loss has ``reduction="none"``; ``compute_loss_func`` is given too; a `TeacherCallback` is
            among the callbacks; the model trains a weight of the teacher.

    Warns:
        UserWarning: a run resumes from a checkpoint without its EMATeacher, or from one with an EMATeacher that it does not
            use.

    Example:
        >>> from otter_losses import EMATeacher, OTTERLoss
        >>> def train(model, pairs):
        ...     PairLossTrainer(model=model, train_dataset=pairs, loss=OTTERLoss(), teacher=EMATeacher(model)).train()
    """

    def __init__(self, *, loss: PairLoss, teacher: nn.Module | None = None, **arguments: Any) -> None:
        check_loss(loss)
        if arguments.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is given beside loss; need one of them. Use transformers.Trainer for the other.")
        if any(isinstance(callback, TeacherCallback) for callback in arguments.get("callbacks") or ()):
            raise ValueError("callbacks holds a TeacherCallback; need none. Pass teacher=EMATeacher(model), which has its own.")
        super().__init__(**arguments)
        if teacher is not None:
            check_separate(teacher, self.model)
            teacher.to(self.args.device)
        self.loss = loss
        self.teacher = teacher
        self._teaching = Teaching()
        self._teacher_callback = TeacherCallback(teacher) if isinstance(teacher, EMATeacher) else None
        if self._teacher_callback is not None:
            self.add_callback(self._teacher_callback)
        self.can_return_loss = True  # evaluate() would look for labels
        self.model_accepts_loss_kwargs = False  # the loss is a mean over its batch, to be divided by the accumulated batches

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any, **named: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *arguments, **named)
        if self._teacher_callback is not None:
            self._teacher_callback.checkpoint = resume_from_checkpoint
        elif (Path(resume_from_checkpoint) / SAVED).is_file():
            warnings.warn(
                f"{resume_from_checkpoint} has an EMATeacher, which this run does not use. Pass teacher=EMATeacher(model).",
                UserWarning,
                stacklevel=2,
            )

    def _set_signature_columns_if_needed(self) -> None:
        """The columns that are not removed."""
        super()._set_signature_columns_if_needed()
        self._signature_columns: list[str] = list(dict.fromkeys([*self._signature_columns, *PER_PAIR]))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        per_pair = {name: inputs[name] for name in PER_PAIR if name in inputs}
        inputs = {name: value for name, value in inputs.items() if name not in (*PER_PAIR, "return_loss")}
        outputs = model(**inputs)
        given: tuple[Any, ...] = ()
        if self.teacher is not None:
            with self._teaching(self.teacher, self.model), self.accelerator.autocast():
                given = _pairs(self.teacher(**inputs), self.teacher)
        loss = self.loss(*_pairs(outputs, self.model), *given, **per_pair)
        return (loss, outputs) if return_outputs else loss


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(file: Path) -> Any:
    with file.open("rb") as opened:
        try:
            return torch.load(opened, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError):  # torch advises to load it unsafely
            raise RuntimeError(
                f"{file} cannot be read; need an EMATeacher's state_dict(), saved whole. Copy it anew, or delete it: then the "
                "teacher goes on as it is."
            ) from None


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
