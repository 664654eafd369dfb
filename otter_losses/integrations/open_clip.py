"""open_clip 3: its `create_loss`, its training program and a teacher in its loop.

``python -m otter_losses.integrations.open_clip`` is ``python -m open_clip_train.main`` with one of our losses. It takes the
same arguments, also under torchrun, and two more: ``--otter loss=RobustLoss alpha=0.4`` (a loss and its options; OTTERLoss unless
told otherwise) and ``--ema-decay 0.999`` (an EMATeacher). The program writes both down among its parameters and in its
checkpoints. The checkpoints also hold the teacher, and ``--resume`` continues with it. ``--otter alpha=alpha.npy`` names a file
with one value per pair; ``groups`` can be such a file too. See `otter_losses.integrations.pair_values`.
"""

import argparse
import ast
import logging
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from otter_losses import EMATeacher, OTTERLoss, SigLIPLoss, checks
from otter_losses.integrations.losses import PER_PAIR, check_loss
from otter_losses.integrations.pair_values import PairValues, add_pair_values
from otter_losses.integrations.teachers import Teaching, check_separate
from otter_losses.losses.base import PairLoss
from otter_losses.losses.registry import LOSSES

__all__ = ["add_teacher", "create_loss", "main"]

RECORD = "otter_losses"
"""The entry of open_clip's checkpoints with our options and the teacher."""

FROM_ARGS = {
    "local_loss": "local_loss",
    "gather_with_grad": "gather_with_grad",
    "rank": "rank",
    "world_size": "world_size",
    "use_horovod": "horovod",
}
"""A loss's keywords, and open_clip's arguments that they come from."""

BY_NAME = {row.module.__name__: row.module for row in LOSSES.values() if row.module is not SigLIPLoss}
"""The losses that ``--otter loss=`` can name."""


def create_loss(args: argparse.Namespace, loss: type[PairLoss] = OTTERLoss, **options: Any) -> nn.Module:
    """Build what ``open_clip.create_loss(args)`` builds, with one of our losses in place of its ClipLoss and DistillClipLoss.

    With ``args.siglip`` the loss is `otter_losses.SigLIPLoss`, and a CoCa model keeps open_clip's own loss; neither with
    ``args.distill``.

    Args:
        args: open_clip's parsed arguments, after its ``main`` has added ``rank``, ``world_size`` and ``distill``.
        loss: the class of the loss.
        options: the loss's options, such as ``alpha``, ``q``, ``epsilon`` or ``backend``; without those that the arguments
            set.

    Raises:
        TypeError: options that the loss does not take.
        ValueError: a loss or options for a model that has its own loss, or options that the arguments set;
            ``reduction="none"``, because open_clip's loop takes no gradient of it; ``args.horovod``; ``args.distill`` with a
            loss that takes no teacher, or with ``args.accum_freq`` above 1, because open_clip's loop then never calls its
            teacher.

    Example:
        >>> from argparse import Namespace
        >>> from otter_losses import RobustLoss
        >>> from otter_losses.integrations.open_clip import create_loss
        >>> args = Namespace(model="ViT-B-32", distill=False, siglip=False, accum_freq=1, horovod=False,
        ...                  local_loss=True, gather_with_grad=True, rank=0, world_size=1)
        >>> create_loss(args, RobustLoss, q=0.5).q
        0.5
    """
    if args.distill and args.accum_freq > 1:
        raise ValueError(
            f"distill is True and accum_freq {args.accum_freq}; open_clip's loop then never calls its teacher. Need "
            "accum_freq 1, or distill=False and otter_losses.integrations.open_clip.add_teacher(model, teacher)."
        )
    if args.distill and not _takes_teacher(loss):
        raise ValueError(f"distill is True, but {loss.__name__} takes no teacher; drop one of the two.")
    coca = "coca" in args.model.lower()
    given = [*([] if loss is OTTERLoss else [loss.__name__]), *options]
    if given and not args.distill and (coca or args.siglip):
        reason = f"model is {args.model!r}" if coca else "siglip is True"
        raise ValueError(f"{', '.join(given)} given, but {reason}, which has a loss of its own; drop one of the two.")
    if coca and not args.distill:
        import open_clip

        theirs: nn.Module = open_clip.create_loss(args)
        return theirs
    contract = {keyword: getattr(args, name) for keyword, name in FROM_ARGS.items()}
    if args.siglip and not args.distill:
        return SigLIPLoss(**contract)
    return _build(loss, options, **contract)


def _takes_teacher(loss: type[nn.Module]) -> bool:
    """Not a loss of open_clip's, nor one of ours that ignores it."""
    return issubclass(loss, PairLoss) and not any(issubclass(loss, row.module) for row in LOSSES.values() if not row.uses_teacher)


def _build(loss: type[PairLoss], options: dict[str, Any], **contract: Any) -> PairLoss:
    for name in options:
        if name in FROM_ARGS:
            raise ValueError(
                f"{name} given, which open_clip's arguments say, as args.{FROM_ARGS[name]}; leave it out of the loss's options."
            )
    built = loss(**contract, **options)
    check_loss(built)
    return built


def add_teacher(model: nn.Module, teacher: nn.Module) -> RemovableHandle:
    """Let the model's output carry the teacher's features, in training only, so that any loop hands them to the loss.

    This also works with ``--accum-freq`` above 1, where open_clip calls no teacher. Leave ``args.distill`` False then. The loop
    then drops the teacher's scale, which RobustLoss and DistillationLoss would take: they take the student's in its place.

    Args:
        model: the module that the loop calls, wrapped or not. Its output is open_clip's dict.
        teacher: an `EMATeacher`, or any other model with open_clip's output, which is used as it is. It is called with the same
            inputs, in eval mode and without gradient.

    Returns:
        A handle; its ``remove()`` removes the hook.

    Raises:
        ValueError: the model trains a weight of the teacher, or is the teacher.
        TypeError: the teacher is not a module; at the first step, the output is not a dict.

    Example:
        >>> import torch
        >>> from otter_losses import EMATeacher
        >>> from otter_losses.integrations.open_clip import add_teacher
        >>> class Model(torch.nn.Linear):
        ...     def forward(self, images, texts):
        ...         return {"image_features": super().forward(images), "text_features": super().forward(texts)}
        >>> model = Model(4, 2)
        >>> handle = add_teacher(model, EMATeacher(model))
        >>> sorted(model(torch.ones(1, 4), torch.ones(1, 4)))
        ['dist_image_features', 'dist_text_features', 'image_features', 'text_features']
    """
    check_separate(teacher, model)
    teaching = Teaching()

    def add(module: nn.Module, inputs: Any, named: dict[str, Any], output: Any) -> Any:
        if not module.training:
            return output
        if not isinstance(output, dict):
            raise TypeError(f"the model's output is a {type(output).__name__}; need a dict. Build it with output_dict=True.")
        with teaching(teacher, module):
            taught = teacher(*inputs, **named)
        names = ["image_features", "text_features"]
        if torch.is_grad_enabled() and "logit_scale" in taught:  # else the loop accumulates, and can do so with rows alone
            names.append("logit_scale")
        return {**output, **{f"dist_{name}": taught[name] for name in names}}

    return model.register_forward_hook(add, with_kwargs=True)


class _Program:
    """The steps of ``open_clip_train.main`` that know of the loss and its teacher, around its own."""

    def __init__(self, training: Any) -> None:
        self.parse_args, self.pt_load, self.train_one_epoch = training.parse_args, training.pt_load, training.train_one_epoch
        self.write = torch.save
        self.args = argparse.Namespace()
        self.loss: type[PairLoss] = OTTERLoss
        self.options: dict[str, Any] = {}
        self.values: list[PairValues] = []
        self.resumed: dict[str, Any] = {}
        self.teacher: EMATeacher | None = None

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Their arguments and ours, which their program logs and writes to params.txt."""
        parser = argparse.ArgumentParser(
            usage="the options below, and those of open_clip_train.main", add_help=False, allow_abbrev=False
        )
        parser.add_argument(
            "--otter",
            nargs="+",
            default=[],
            action="extend",
            type=_option,
            metavar="OPTION=VALUE",
            help=f"The loss, one of {', '.join(BY_NAME)}, and its options; alpha and groups may be files.",
        )
        parser.add_argument("--ema-decay", type=float, help="Distil from an EMATeacher with this decay; the paper's is 0.999.")
        ours, theirs = parser.parse_known_args(arguments)
        if {"-h", "--help"} & set(theirs):
            parser.print_help()
        ours.otter = dict(ours.otter)
        files = {name: value for name, value in ours.otter.items() if name in PER_PAIR and isinstance(value, str)}
        self.options = {name: value for name, value in ours.otter.items() if name not in files}
        self.loss = _named(self.options.pop("loss", OTTERLoss.__name__))
        _build(self.loss, self.options)  # a mistake shows before the model is built
        if ours.ema_decay is not None:
            checks.check_decay(ours.ema_decay)
        self.values = [PairValues(name, file) for name, file in files.items()]
        self.check_values(self.loss)
        self.args = self.parse_args(theirs)
        vars(self.args).update(vars(ours))
        return self.args

    def check_values(self, loss: type[nn.Module]) -> None:
        for each in self.values:
            if each.name not in getattr(loss, "per_pair", ()):
                raise ValueError(f"{each} given, but {loss.__name__} takes no {each.name} for each pair; drop one of the two.")

    def load(self, *arguments: Any, **named: Any) -> Any:
        checkpoint = self.pt_load(*arguments, **named)
        self.resumed = checkpoint.get(RECORD, {})
        return checkpoint

    def build(self, args: argparse.Namespace) -> nn.Module:
        loss = create_loss(args, self.loss, **self.options)
        self.check_values(type(loss))
        if args.ema_decay is not None and (args.distill or not _takes_teacher(type(loss))):
            reason = "--distill-model gives a teacher" if args.distill else f"{type(loss).__name__} takes no teacher"
            raise ValueError(f"--ema-decay given, but {reason}; drop one of the two.")
        if args.rank == 0:
            logging.info(f"Loss: {loss}")
            if args.resume is not None:
                self.warn_of_changes()
        return loss

    def warn_of_changes(self) -> None:
        now = {"otter": self.args.otter, "ema_decay": self.args.ema_decay}
        then = {name: self.resumed.get(name) for name in now}
        taught = self.resumed.get("teacher") is not None
        if self.resumed and now != then:
            logging.warning(f"{self.args.resume} was trained with {then}, and is resumed with {now}.")
        if taught and self.args.ema_decay is None:
            logging.warning(f"{self.args.resume} has a teacher, which is dropped, as there is no --ema-decay.")
        if self.args.ema_decay is not None and not taught:
            logging.warning(f"{self.args.resume} has no teacher, which --ema-decay asks for: it starts as a copy of the model.")

    def train(
        self,
        model: nn.Module,
        data: Any,
        loss: nn.Module,
        epoch: int,
        optimizer: Optimizer,
        scaler: Any,
        scheduler: Any,
        dist_model: nn.Module | None,
        *rest: Any,
        **named: Any,
    ) -> None:
        if self.args.ema_decay is not None and self.teacher is None:
            self.teacher = EMATeacher(model, decay=self.args.ema_decay)
            if self.resumed.get("teacher") is not None:
                self.teacher.load_state_dict(self.resumed.pop("teacher"))
            self.teacher.follow(model, optimizer)
            add_teacher(model, self.teacher)
        if self.teacher is not None and self.args.rank == 0:
            logging.info(f"Teacher: EMATeacher, decay {self.args.ema_decay}, {self.teacher.updates} updates")
        if self.values:
            if self.args.rank == 0:
                logging.info(f"Pairs: {', '.join(map(repr, self.values))}")
            add_pair_values(model, data["train"], self.values, dist_model)
            self.values = []
        self.train_one_epoch(model, data, loss, epoch, optimizer, scaler, scheduler, dist_model, *rest, **named)

    def save(self, checkpoint: Any, *arguments: Any, **named: Any) -> None:
        if isinstance(checkpoint, dict) and "optimizer" in checkpoint:
            teacher = None if self.teacher is None else self.teacher.state_dict()
            record = {"otter": self.args.otter, "ema_decay": self.args.ema_decay, "teacher": teacher}
            checkpoint = {**checkpoint, RECORD: record}
        self.write(checkpoint, *arguments, **named)


def _named(name: Any) -> type[PairLoss]:
    if str(name) not in BY_NAME:
        raise ValueError(f"loss is {name!r}; need one of {', '.join(BY_NAME)}. SigLIPLoss comes with --siglip.")
    return BY_NAME[str(name)]


def _option(text: str) -> tuple[str, Any]:
    """A name and its value: a Python literal, true or false, or a string without quotes."""
    name, given, value = text.partition("=")
    if not (name and given):
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE, as alpha=0.5 is")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``open_clip_train.main`` with `create_loss`.

    Args:
        arguments: open_clip's arguments, and ``--otter`` and ``--ema-decay``. By default they are those of the command line.

    Raises:
        RuntimeError: this open_clip's ``main`` does not build its loss by ``create_loss``.
        ValueError, TypeError: options that the loss does not take; files whose values are not those of the pairs;
            ``--ema-decay`` where there is no place for a teacher.
    """
    import open_clip_train.main as training

    if not hasattr(training, "create_loss"):
        raise RuntimeError(
            "open_clip_train.main has no create_loss to replace; need open_clip_torch 3. One with tasks takes the loss itself: "
            "open_clip.task.CLIPTask(model, loss=OTTERLoss())."
        )
    run = _Program(training)
    with (
        patch.multiple(training, parse_args=run.parse, pt_load=run.load, create_loss=run.build, train_one_epoch=run.train),
        patch.object(torch, "save", run.save),
    ):
        training.main(arguments)


if __name__ == "__main__":
    main()
