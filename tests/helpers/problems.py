"""What the operator of the softmax losses hands to a backend, for tests that call a backend themselves."""

from types import ModuleType

import torch
from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH, BatchShard
from otter_losses.ops.memory import Storage
from otter_losses.ops.problem import CrossEntropyGradients, Gradients, Problem, Student
from otter_losses.ops.targets import HardTargets, SoftTargets


def make_problem(
    x: Tensor,
    texts: Tensor,
    scale: Tensor,
    storage: Storage,
    soft: SoftTargets | None = None,
    rows: slice | None = None,
    backend: str = "torch",
    hard: HardTargets = HardTargets(),  # noqa: B008
) -> Problem:
    """Local images and all texts; without `rows` they are the whole batch."""
    rows = slice(0, len(texts)) if rows is None else rows
    return Problem(Student(x, texts[rows], texts, scale), hard, soft, None, rows, storage, backend)


def transported(
    v: Tensor,
    t: Tensor,
    inv_epsilon: Tensor,
    *,
    gamma: float = 1.0,
    logit_range: float = 40.0,
    iterations: int = 5,
    divergence: bool = False,
) -> SoftTargets:
    """OTTER's targets of a teacher's features."""
    return SoftTargets(v, t, inv_epsilon, gamma, gamma, torch.inf, logit_range, iterations, divergence)


def forward_and_backward(arithmetic: ModuleType, problem: Problem, shard: BatchShard = WHOLE_BATCH) -> Gradients:
    """A backend's forward and backward as the operator calls them, the losses themselves for their gradient."""
    losses, saved = arithmetic.forward(problem, shard)
    gradient = CrossEntropyGradients(losses.given, None if problem.soft is None else losses.soft)
    gradients: Gradients = arithmetic.backward(problem, gradient, saved, True, True, shard)
    return gradients
