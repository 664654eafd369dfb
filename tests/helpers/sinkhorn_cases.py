"""What the tests of sinkhorn_knopp share."""

import torch
from families import Problem
from hypothesis import strategies as st
from torch import Tensor

from otter_losses.ops import reference

rounds = st.integers(1, 12)
dtypes = st.sampled_from((torch.float64, torch.float32))


def unit(dtype: torch.dtype, problem: Problem) -> float:
    """Rounding of a logarithm as large as score / epsilon, a few times over."""
    return 8 * torch.finfo(dtype).eps * (1 + 1 / problem.epsilon)


def reference_plan(problem: Problem, iterations: int) -> Tensor:
    plans = [reference.sinkhorn(p.scores, p.epsilon, iterations, p.rows, p.columns) for p in problem.to(torch.float64).each()]
    return torch.stack(plans).reshape(problem.scores.shape)


def l1(actual: Tensor, expected: Tensor) -> float:
    """L1 distance as a share of the expected mass; the worst of the batch."""
    wanted = expected.detach().double()
    distance = (actual.detach().double() - wanted).abs().sum((-2, -1)) / wanted.sum((-2, -1))
    return float(distance.max())
