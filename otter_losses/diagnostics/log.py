"""A loss's targets written down while it trains, in anybody's loop."""

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from otter_losses import checks
from otter_losses.diagnostics.targets import target_summary
from otter_losses.losses.base import PairLoss


class Board(Protocol):
    """What TensorBoard's SummaryWriter is, or any other that takes one number at a time."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...


def log_targets(
    loss: PairLoss,
    path: str | os.PathLike[str] | None = None,
    *,
    board: Board | None = None,
    every: int = 100,
    first_step: int = 0,
) -> RemovableHandle:
    """Write down what a loss's targets look like, every so many steps, in whatever loop it is called.

    A hook of the module: nothing in the loop changes. It counts the calls that a gradient is taken through, on rank 0 alone, and
    leaves out those inside `torch.compile`.

    Args:
        loss: a loss of this package, which a training loop calls.
        path: a file that gets a line of JSON for each: ``{"step": 100, "alpha": 0.5, "mass_off_pair": ...}``; lines are appended.
        board: TensorBoard's ``SummaryWriter``, which gets ``targets/alpha`` and so on.
        every: steps from one to the next; the first is looked at too.
        first_step: the number of the first step, in a run that goes on.

    Returns:
        A handle; its `remove()` ends it.

    Raises:
        ValueError: neither a path nor a board. TypeError: the loss is none of this package's.

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
    if not isinstance(loss, PairLoss):
        raise TypeError(f"loss is {loss!r}; need a loss of otter_losses, such as OTTERLoss().")
    if path is None and board is None:
        raise ValueError("path and board are None; need a file, a SummaryWriter, or both, to write to.")
    checks.check_count("every", every, 1)
    checks.check_count("first_step", first_step, 0)
    step = first_step

    def note(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal step
        assert isinstance(module, PairLoss)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or module.rank > 0:
            return
        if (step - first_step) % every == 0:
            found = target_summary(module, *args, **keywords)
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **found}) + "\n")
            if board is not None:
                for name, value in found.items():
                    board.add_scalar(f"targets/{name}", value, step)
        step += 1

    return loss.register_forward_pre_hook(note, with_kwargs=True)
