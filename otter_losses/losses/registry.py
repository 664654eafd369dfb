"""Every loss of the package, one row each: what tests, benchmarks and documentation go through instead of lists of their own.

The name of a row is the name of everything about its loss: ``<name>_loss`` in `otter_losses.functional`, ``losses/<name>.py``,
``docs/<name>.md`` and ``tests/losses/test_<name>.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.losses.base import PairLoss
from otter_losses.losses.batch import Parts
from otter_losses.losses.distillation import DistillationLoss, distillation_loss
from otter_losses.losses.info_nce import InfoNCELoss, info_nce_loss
from otter_losses.losses.label_smoothing import LabelSmoothingLoss, label_smoothing_loss
from otter_losses.losses.otter import OTTERLoss, otter_loss
from otter_losses.losses.robust import RobustLoss, robust_loss
from otter_losses.losses.siglip import SigLIPLoss, siglip_loss
from otter_losses.ops import reference

Oracle = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Student features x, y (N, D), logit scale, 0-D, and teacher features v, t (N, E) -> the loss, 0-D."""


@dataclass(frozen=True)
class RegisteredLoss:
    """One loss with its defaults.

    Attributes:
        name: see the module.
        module: the `PairLoss`; ``module()`` has the defaults that `oracle` computes.
        function: the pure function beneath it.
        oracle: the same value from whole N x N matrices in any dtype, differentiated by autograd. A loss that takes its teacher's
            scale gets the student's.
        uses_teacher: whether the value depends on the ``dist_*`` arguments.
    """

    name: str
    module: type[PairLoss]
    function: Callable[..., Tensor | Parts]
    oracle: Oracle
    uses_teacher: bool = False


def _info_nce(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(s * x @ y.T, labels) + F.cross_entropy(s * y @ x.T, labels)) / 2


def _label_smoothing(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    share = 0.1 / max(len(x) - 1, 1)
    targets = torch.full((len(x), len(x)), share, dtype=x.dtype, device=x.device).fill_diagonal_(0.9 if len(x) > 1 else 1.0)
    return reference.soft_target_loss(x, y, s, targets, targets)


def _distillation(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    given = torch.eye(len(x), dtype=x.dtype, device=x.device)
    p, q = ((given + plan) / 2 for plan in reference.distillation_targets(v, t, float(s.detach())))
    return reference.soft_target_loss(x, y, s, p, q)


def _robust(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    row, column = (((1 - z.softmax(1).diagonal() ** 0.3) / 0.3).mean() for z in (s * x @ y.T, s * y @ x.T))
    given = (row + column) / 2
    distilled = reference.soft_target_loss(x, y, s, *reference.distillation_targets(v, t, float(s.detach())))
    return given / 2 + (1 - 0.3 * given.detach()) * distilled / 2


def _siglip(x: Tensor, y: Tensor, s: Tensor, v: Tensor, t: Tensor) -> Tensor:
    labels = 2 * torch.eye(len(x), dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(labels * (s * x @ y.T)).sum() / len(x)


LOSSES = {
    row.name: row
    for row in (
        RegisteredLoss("info_nce", InfoNCELoss, info_nce_loss, _info_nce),
        RegisteredLoss("label_smoothing", LabelSmoothingLoss, label_smoothing_loss, _label_smoothing),
        RegisteredLoss("distillation", DistillationLoss, distillation_loss, _distillation, uses_teacher=True),
        RegisteredLoss("otter", OTTERLoss, otter_loss, reference.otter_loss, uses_teacher=True),
        RegisteredLoss("robust", RobustLoss, robust_loss, _robust, uses_teacher=True),
        RegisteredLoss("siglip", SigLIPLoss, siglip_loss, _siglip),
    )
}
