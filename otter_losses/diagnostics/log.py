"""A loss's targets written down while it trains, in anybody's loop."""

import json
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from otter_losses import checks
from otter_losses.diagnostics.targets import target_summary
from otter_losses.losses import world
from otter_losses.losses.base import PairLoss, check_is_loss


class Board(Protocol):
    """TensorBoard's SummaryWriter, or any other object that takes one number at a time."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


def log_targets(
    loss: PairLoss,
    path: str | os.PathLike[str] | None = None,
    *,
    board: Board | None = None,
    every: int = 100,
    first_step: int = 0,
) -> RemovableHandle:
    """Write down every so many steps what a loss's targets look like, in any loop that calls the loss.

    This is a hook of the module, so nothing in the loop changes. It counts calls outside of `torch.no_grad`, including each
    batch of an accumulation, and only on rank 0 of all processes. It leaves out calls inside `torch.compile`.

    Args:
        loss: a loss of this package, which a training loop calls.
        path: a file that gets one line of JSON for each summary: ``{"step": 100, "alpha": 0.5, "mass_off_pair": ...}``. Lines
            are appended.
        board: TensorBoard's ``SummaryWriter``, which gets ``targets/alpha`` and so on.
        every: number of steps from one summary to the next. The first step has one too.
        first_step: the number of the first step, in a run that is continued.

    Returns:
        A handle; its `remove()` removes the hook.

    Raises:
        ValueError: there is neither a path nor a board.
        TypeError: the loss is not from this package.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from otter_losses import OTTERLoss
        >>> from otter_losses.diagnostics import log_targets
        >>> loss, x = OTTERLoss(), torch.eye(4, requires_grad=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     handle = log_targets(loss, f"{folder}/targets.jsonl", every=2)
        ...     for _ in range(3):
        ...         loss(x, x, 14.3).backward()
        ...     lines = pathlib.Path(folder, "targets.jsonl").read_text().splitlines()
        >>> len(lines)
        2
        >>> handle.remove()
    """
    check_is_loss(loss)
    if path is None and board is None:
        raise ValueError("path and board are None; need a file, a SummaryWriter, or both, to write to.")
    checks.check_count("every", every, 1)
    checks.check_count("first_step", first_step, 0)
    return loss.register_forward_hook(_Log(path, board, every, first_step), with_kwargs=True)


class _Log:
    """The hook: it runs when the loss has found nothing wrong, on any rank."""

    def __init__(self, path: str | os.PathLike[str] | None, board: Board | None, every: int, first_step: int) -> None:
        self.path, self.board, self.every = path, board, every
        self.step = self.first_step = first_step

    def __call__(self, loss: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], value: Any) -> None:
        assert isinstance(loss, PairLoss)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or world.rank_in(None) > 0:
            return
        if (self.step - self.first_step) % self.every == 0:
            self._write(target_summary(loss, *args, **keywords))
        self.step += 1

    def _write(self, found: dict[str, float]) -> None:
        if self.path is not None:
            try:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.step, **found}) + "\n")
            except OSError as error:  # no reason to stop a training
                warnings.warn(f"the targets of step {self.step} were not written to {self.path}: {error}", stacklevel=2)
        if self.board is not None:
            for name, value in found.items():
                self.board.add_scalar(f"targets/{name}", value, self.step)
