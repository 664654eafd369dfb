"""Logarithms in two parts: as exact as plain numbers where those exist, and where they do not."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from otter_losses.ops.domains import SCALING, Logarithmic


class OtherRank:
    """Reduces what this rank brings, given before, with what another has."""

    def __init__(self, own: Tensor, other: Tensor) -> None:
        self.top, self.other = torch.maximum(own[0], other[0]), other

    def all_reduce_max(self, values: Tensor) -> Tensor:
        return torch.maximum(values, self.other[0])

    def all_reduce_logsumexp_(self, partial: Tensor) -> Tensor:
        return torch.logaddexp(partial, (self.other[0] - self.top + self.other[1]).nan_to_num(nan=-math.inf))


def kernels(dtype: torch.dtype, size: float) -> tuple[Logarithmic, Tensor]:
    logits = torch.randn(7, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)).clamp_(-3, 3) * size
    logits[2, 3] = -math.inf
    domain = Logarithmic(torch.tensor(5 * 3 * size, dtype=dtype))
    return domain, domain.open(domain.hold(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_logits_give_what_plain_numbers_give(dtype: torch.dtype) -> None:
    domain, kernel = kernels(dtype, 1.0)
    plain = kernel.sum(0).exp()
    columns = torch.rand(5, dtype=dtype) + 0.1
    columns[1] = 0
    rows = SCALING.match(torch.ones(7, dtype=dtype), SCALING.row_sums(plain, columns))
    entered = domain.enter(columns)
    matched = domain.match(domain.enter(torch.ones(7, dtype=dtype)), domain.row_sums(kernel, entered))
    rtol = 2e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(domain.logarithm(matched).exp(), rows, rtol=rtol, atol=0)
    sums = domain.logarithm(domain.column_sums(kernel, matched)).exp()
    torch.testing.assert_close(sums, SCALING.column_sums(plain, rows), rtol=rtol, atol=0)
    torch.testing.assert_close(domain.plan(kernel, matched, entered), SCALING.plan(plain, rows, columns), rtol=rtol, atol=0)


@pytest.mark.parametrize("size", [1.0, 1e4, 1e9, 1e25])
def test_parts_of_a_sum_add_up_to_it(size: float) -> None:
    """Whether row blocks are merged or ranks reduce them."""
    domain, kernel = kernels(torch.float32, size)
    rows = domain.match(domain.enter(torch.ones(7)), domain.row_sums(kernel, torch.zeros(2, 5)))
    whole = domain.column_sums(kernel, rows)
    first, second = (domain.column_sums(kernel[:, part], rows[:, part]) for part in (slice(0, 3), slice(3, 7)))
    other: Any = OtherRank(first, second)
    for added in (domain.merge(first, second), domain.all_reduce(first, other)):
        assert torch.equal(added[0], whole[0])
        torch.testing.assert_close(added[1], whole[1], rtol=1e-6, atol=1e-6)
    columns = domain.match(domain.enter(torch.ones(5)), whole)
    torch.testing.assert_close(domain.plan(kernel, rows, columns).sum(0), torch.ones(5), rtol=1e-6, atol=0)


def test_the_sum_of_nothing_is_nothing() -> None:
    domain = Logarithmic(torch.tensor(5.0))
    kernel = domain.open(torch.tensor([[-math.inf, 0.0], [-math.inf, 1.0]]))
    sums = domain.column_sums(kernel, torch.zeros(2, 2))
    assert domain.logarithm(sums).exp()[0] == 0
    columns = domain.match(domain.enter(torch.ones(2)), sums)
    plan = domain.plan(kernel, torch.zeros(2, 2), columns)
    torch.testing.assert_close(plan.sum(0), torch.tensor([0.0, 1.0]), rtol=1e-6, atol=0)
    assert domain.merge(sums, sums).isnan().sum() == 0
