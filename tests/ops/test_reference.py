"""The oracle itself, against the paper's equations in sixty digits, and against what is known on paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otter_losses.ops import reference
from tests.helpers.batches import FAMILIES, make_batch, make_features
from tests.helpers.decimals import decimal_sinkhorn, decimal_targets
from tests.helpers.sinkhorn import Problem, problems


def worst(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().sum() / expected.abs().sum())


@given(problem=problems(batches=((),), marginals=("uniform", "random"), most=6), iterations=st.integers(1, 6))
def test_sinkhorn_is_the_printed_iteration(problem: Problem, iterations: int) -> None:
    plan = reference.sinkhorn(problem.scores, problem.epsilon, iterations, problem.rows, problem.columns)
    assert worst(plan, decimal_sinkhorn(problem.scores, problem.epsilon, iterations, problem.rows, problem.columns)) <= 1e-10


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("epsilon", [0.15, 0.01])
@pytest.mark.parametrize(("gamma_image", "gamma_text"), [(1.0, 1.0), (0.0, 0.0), (0.3, 2.0)])
def test_targets_are_the_papers_in_both_directions(
    family: str, n: int, epsilon: float, gamma_image: float, gamma_text: float
) -> None:
    v, t = make_features(family, n, 4, seed=n)
    image_to_text, text_to_image = reference.otter_targets(v, t, epsilon, 5, gamma_image, gamma_text)
    assert worst(image_to_text, decimal_targets(v, t, epsilon, 5, gamma_image, gamma_text)) <= 1e-10
    assert worst(text_to_image, decimal_targets(t, v, epsilon, 5, gamma_text, gamma_image)) <= 1e-10


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_is_the_written_out_cross_entropy(alpha: float) -> None:
    batch = make_batch(5, 3)
    x, y, scale = batch.x.tolist(), batch.y.tolist(), float(batch.scale.detach())
    targets = [
        decimal_targets(batch.v, batch.t, 0.15, 5, 1.0, 1.0).tolist(),
        decimal_targets(batch.t, batch.v, 0.15, 5, 1.0, 1.0).tolist(),
    ]
    total = 0.0
    for (queries, keys), plan in zip(((x, y), (y, x)), targets, strict=True):
        for i, query in enumerate(queries):
            logits = [scale * _dot(query, key) for key in keys]
            log_sum = math.log(math.fsum(math.exp(logit) for logit in logits))
            for j, logit in enumerate(logits):
                target = alpha * (i == j) + (1 - alpha) * plan[i][j]
                total -= target * (logit - log_sum)
    value = reference.otter_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, alpha)
    assert float(value.detach()) == pytest.approx(total / (2 * 5), rel=1e-11)


def _dot(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("family", ["random", "clustered", "duplicated"])
def test_released_targets_are_the_papers_while_their_arithmetic_holds(family: str) -> None:
    v, t = make_features(family, 7, 5, seed=1)
    for released, paper in zip(reference.released_targets(v, t), reference.otter_targets(v, t), strict=True):
        assert worst(released, paper) <= 1e-10


def test_released_loss_is_twice_the_papers_up_to_the_targets_entropy() -> None:
    batch = make_batch(9, 6)
    contrastive, distill = reference.released_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, alpha=0.4)
    plans = reference.otter_targets(batch.v, batch.t)
    entropy = sum(torch.special.entr(plan).sum(1).mean() for plan in plans)
    paper = reference.otter_loss(batch.x, batch.y, batch.scale, batch.v, batch.t, alpha=0.4)
    torch.testing.assert_close(contrastive + distill, 2 * paper - 0.6 * entropy, rtol=1e-10, atol=0)


def test_two_pairs_swap_and_one_keeps_itself() -> None:
    v, t = make_features("random", 2, 4)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for plan in reference.otter_targets(v, t):
        torch.testing.assert_close(plan, swap, rtol=1e-12, atol=0)
    for plan in reference.otter_targets(v[:1], t[:1]):
        assert plan.tolist() == [[1.0]]


def test_distillation_targets_are_row_softmaxes() -> None:
    v, t = make_features("random", 3, 4)
    image_to_text, text_to_image = reference.distillation_targets(v, t, 5.0)
    scores = [[math.exp(5.0 * _dot(a, b)) for b in t.tolist()] for a in v.tolist()]
    expected = torch.tensor([[s / math.fsum(row) for s in row] for row in scores], dtype=torch.float64)
    columns = list(zip(*scores, strict=True))
    expected_text = torch.tensor([[s / math.fsum(column) for s in column] for column in columns], dtype=torch.float64)
    torch.testing.assert_close(image_to_text, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(text_to_image, expected_text, rtol=1e-12, atol=0)
