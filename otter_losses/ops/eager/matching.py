"""Entropic transport of a batch of scores between given marginals, in torch; and the way back through its rounds.

A round matches the rows and then the columns, ``u = a / (K v)``, ``v = b / (K^T u)``. Back from the plan's logarithm to the
scores' each of these two steps hands a gradient on through its shares, ``u_i K_ij / (K^T u)_j`` or ``K_ij v_j / (K v)_i``, and
takes what it hands on from the gradient of ``log K``. So all that is kept of a round are its sums, M + N numbers.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from otter_losses.ops.domains import SCALING, Domain, Logarithmic, has_numbers, is_tracked, reads_freely, safe_range
from otter_losses.ops.tracing import is_exporting


class Task(NamedTuple):
    """What is asked of a solver beside its tensors; `tolerance` None for all rounds."""

    epsilon: float
    iterations: int
    tolerance: float | None


class Solution(NamedTuple):
    """As in `SinkhornResult`; `rounds` are the most of the batch, or those of each problem where nobody has read them yet."""

    plan: Tensor
    row_potential: Tensor
    column_potential: Tensor
    rounds: int | Tensor


@dataclass(eq=False)
class Rounds:
    """What the way back needs of the way there.

    Attributes:
        domain, centre: how the kernel was held, and what was taken off the scores.
        start: the columns' scalings before the first round.
        row_sums, column_sums: of every round, as matched.
        active: (..., 1), which problems a round went on with; None for all.
    """

    domain: Domain = SCALING
    centre: Tensor = field(default_factory=lambda: torch.empty(0))
    start: Tensor = field(default_factory=lambda: torch.empty(0))
    row_sums: list[Tensor] = field(default_factory=list)
    column_sums: list[Tensor] = field(default_factory=list)
    active: list[Tensor | None] = field(default_factory=list)


def solve(
    scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task, rounds: Rounds | None = None
) -> Solution:
    """The plan of scores (..., M, N), with marginals (..., M) and (..., N) of the computing dtype, and its potentials.

    `start`: the columns' potential to start from, (..., N). Rounds asked for are written down.
    """
    domain, centre, v = _opening(scores, rows, columns, start, task.epsilon, rounds is not None)
    kernel = _kernel(domain, scores, centre, task.epsilon)
    if rounds is not None:
        rounds.domain, rounds.centre, rounds.start = domain, centre, v
    a, b = domain.enter(rows), domain.enter(columns)
    row_sums = matched = domain.row_sums(kernel, v)
    may_stop = has_numbers(scores) or (torch.compiler.is_compiling() and not is_exporting())  # traced, it breaks the graph
    active: Tensor | None = None
    plan: Tensor | None = None
    done = 0
    while done < task.iterations:
        done += 1
        matched = row_sums if active is None else torch.where(active, row_sums, matched)
        u = domain.match(a, matched)
        column_sums = domain.column_sums(kernel, u)
        v = domain.match(b, column_sums)
        if rounds is not None:
            rounds.row_sums.append(matched)
            rounds.column_sums.append(column_sums)
            rounds.active.append(active)
        plan = None
        if task.tolerance is None:
            if done < task.iterations:
                row_sums = domain.row_sums(kernel, v)
            continue
        row_sums = domain.row_sums(kernel, v)
        active = (distance(domain.product(u, row_sums), rows) > task.tolerance).unsqueeze(-1)
        if may_stop and not bool(active.any()):
            # What is promised is the error of the plan, in which every entry has been rounded.
            plan = _plan(domain, kernel, u, v, columns)
            active = (distance(plan.sum(-1), rows) > task.tolerance).unsqueeze(-1)
            if not bool(active.any()):
                break
    if plan is None:
        plan = _plan(domain, kernel, u, v, columns)
    return Solution(plan, domain.logarithm(u) - centre.squeeze(-1) / task.epsilon, domain.logarithm(v), done)


def distance(sums: Tensor, marginal: Tensor) -> Tensor:
    """L1, of each problem."""
    return (sums - marginal).abs().sum(-1)


class Gradients(NamedTuple):
    """By the arguments of `solve`."""

    scores: Tensor
    rows: Tensor
    columns: Tensor
    start: Tensor


def differentiate(
    scores: Tensor,
    rows: Tensor,
    columns: Tensor,
    start: Tensor | None,
    epsilon: float,
    solution: Solution,
    rounds: Rounds,
    by: Solution,
) -> Gradients:
    """Of a number whose gradients by a solution's plan and potentials are given, back through all rounds."""
    domain = rounds.domain
    kernel = _kernel(domain, scores, rounds.centre, epsilon)
    a, b = domain.enter(rows), domain.enter(columns)
    u, v = (domain.match(a, rounds.row_sums[-1]), domain.match(b, rounds.column_sums[-1]))
    weighted = solution.plan * by.plan
    # By the logarithms of the scalings: of nothing there is no gradient.
    by_u = torch.where(solution.row_potential > -torch.inf, weighted.sum(-1) + by.row_potential, 0.0)
    by_v = torch.where(solution.column_potential > -torch.inf, weighted.sum(-2) + by.column_potential, 0.0)
    back: _WayBack
    if domain is SCALING:
        back = _Numbers(kernel, torch.mul(by.plan, u.unsqueeze(-1), out=weighted).mul_(v.unsqueeze(-2)))
    else:
        back = _Logarithms(domain, kernel, weighted)
    by_rows, by_columns = torch.zeros_like(by_u), torch.zeros_like(by_v)
    for index in reversed(range(len(rounds.row_sums))):
        row_sums, column_sums, active = rounds.row_sums[index], rounds.column_sums[index], rounds.active[index]
        u = domain.match(a, row_sums)
        v = domain.match(b, rounds.column_sums[index - 1]) if index else rounds.start
        moved = by_v if active is None else by_v.where(active, 0.0)
        by_columns += moved
        by_u = by_u - back.through_columns(u, column_sums, moved)
        passed = by_u if active is None else by_u.where(active, 0.0)
        by_rows += passed
        by_u = by_u - passed
        by_v = by_v - moved - back.through_rows(row_sums, v, passed)
    by_logits = back.total()
    return Gradients(by_logits.div_(epsilon), _over(by_rows, rows), _over(by_columns, columns), by_v)


def _over(gradient: Tensor, marginal: Tensor) -> Tensor:
    """By a marginal rather than its logarithm; a zero stays one."""
    return torch.where(marginal > 0, gradient / marginal, 0.0)


class _WayBack(Protocol):
    """Hands gradients on from the logarithms of sums to those of scalings, and adds up what this takes from the logits'."""

    def through_columns(self, rows: Tensor, sums: Tensor, gradient: Tensor) -> Tensor:
        """From column sums with these row scalings to those scalings."""

    def through_rows(self, sums: Tensor, columns: Tensor, gradient: Tensor) -> Tensor:
        """From row sums with these column scalings to those scalings."""

    def total(self) -> Tensor:
        """The logits' gradient."""


MOST_PAIRS = 64
"""Of vectors that wait to be multiplied out together."""


class _Numbers:
    """What is taken is the kernel times outer products of vectors, which are added up as one product of matrices."""

    def __init__(self, kernel: Tensor, over_kernel: Tensor) -> None:
        """`over_kernel`: the gradient so far, divided by the kernel; overwritten."""
        self.kernel, self.over_kernel = kernel, over_kernel
        self.left: list[Tensor] = []
        self.right: list[Tensor] = []

    def through_columns(self, rows: Tensor, sums: Tensor, gradient: Tensor) -> Tensor:
        weights = gradient / sums
        self._take(rows, weights)
        return rows * SCALING.row_sums(self.kernel, weights)

    def through_rows(self, sums: Tensor, columns: Tensor, gradient: Tensor) -> Tensor:
        weights = gradient / sums
        self._take(weights, columns)
        return columns * SCALING.column_sums(self.kernel, weights)

    def _take(self, left: Tensor, right: Tensor) -> None:
        self.left.append(left)
        self.right.append(right)
        if len(self.left) == MOST_PAIRS:
            self._multiply()

    def _multiply(self) -> None:
        m, n = self.kernel.shape[-2:]
        left, right = (torch.stack(each, -1).reshape(-1, size, len(each)) for each, size in ((self.left, m), (self.right, n)))
        self.over_kernel.view(-1, m, n).baddbmm_(left, right.mT, alpha=-1)
        self.left, self.right = [], []

    def total(self) -> Tensor:
        if self.left:
            self._multiply()
        return self.over_kernel.mul_(self.kernel)


class _Logarithms:
    """Shares are at most 1 whatever the logarithms are, so they are what is multiplied, step by step."""

    def __init__(self, domain: Domain, kernel: Tensor, gradient: Tensor) -> None:
        """`gradient`: so far; overwritten."""
        self.domain, self.kernel, self.gradient = domain, kernel, gradient

    def through_columns(self, rows: Tensor, sums: Tensor, gradient: Tensor) -> Tensor:
        shares = self.domain.plan(self.kernel, rows, self._inverse(sums))
        self.gradient.addcmul_(shares, gradient.unsqueeze(-2), value=-1)
        return SCALING.row_sums(shares, gradient)

    def through_rows(self, sums: Tensor, columns: Tensor, gradient: Tensor) -> Tensor:
        shares = self.domain.plan(self.kernel, self._inverse(sums), columns)
        self.gradient.addcmul_(shares, gradient.unsqueeze(-1), value=-1)
        return SCALING.column_sums(shares, gradient)

    def _inverse(self, sums: Tensor) -> Tensor:
        return self.domain.match(torch.zeros_like(sums), sums)

    def total(self) -> Tensor:
        return self.gradient


def _opening(
    scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, epsilon: float, goes_back: bool
) -> tuple[Domain, Tensor, Tensor]:
    """How to hold the kernel, what to take off the scores, (..., 1, 1), and the columns' scalings to start with."""
    low, high = _extremes(scores, rows.dtype)
    is_tracked_here = any(is_tracked(each) for each in (scores, rows, columns))
    if start is None and not is_tracked_here and _are_safe_as_numbers((high - low) / epsilon, rows, columns, goes_back):
        return SCALING, high, torch.ones_like(columns)
    low, high = _finite(scores, low, high)
    # Of scores that are alike the difference is exact, and keeps the digits that the quotient would round away.
    centre = torch.where(high - low <= high.abs() / 2, high, 0.0)
    domain, v = _logarithmic(torch.maximum(high - centre, centre - low) / epsilon, columns, start)
    return domain, centre, v


def _kernel(domain: Domain, scores: Tensor, centre: Tensor, epsilon: float) -> Tensor:
    logits = (scores - centre).div_(epsilon)
    return domain.open(domain.hold(logits)) if isinstance(domain, Logarithmic) else logits.exp_()


def _plan(domain: Domain, kernel: Tensor, rows: Tensor, columns: Tensor, marginal: Tensor) -> Tensor:
    """With columns that sum to their marginal, also where logarithms that diverge were rounded in thousands of rounds."""
    plan = domain.plan(kernel, rows, columns)
    if domain is SCALING:
        return plan
    sums = plan.detach().sum(-2)
    correction = torch.where(sums > 0, marginal.detach() / sums, 1.0).unsqueeze(-2)
    return plan * correction if is_tracked(plan) else plan.mul_(correction)


def _extremes(scores: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Least and greatest score of each problem, (..., 1, 1), as constants; 0 where there are none."""
    values = scores.detach()
    if 0 in values.shape[-2:]:
        nothing = values.new_zeros(*values.shape[:-2], 1, 1, dtype=dtype)
        return nothing, nothing
    return values.amin((-2, -1), keepdim=True).to(dtype), values.amax((-2, -1), keepdim=True).to(dtype)


def _finite(scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes without forbidden pairs; 0 where all are."""
    if 0 in scores.shape[-2:]:
        return low, high
    high = high.masked_fill(high == -torch.inf, 0.0)
    values = scores.detach()
    return torch.where(values == -torch.inf, high, values).amin((-2, -1), keepdim=True), high


def _are_safe_as_numbers(spans: Tensor, rows: Tensor, columns: Tensor, goes_back: bool) -> bool:
    """Whether `Scaling` is known to survive logits that span so much.

    On the way back scalings meet gradients, whose size nobody knows: half of the range is theirs.
    """
    if spans.numel() == 0 or not all(reads_freely(each) for each in (spans, rows, columns)):
        return False
    span = float(spans.amax())
    for marginal in (rows, columns):
        positive = marginal[marginal > 0]
        if positive.numel():
            span += float(positive.max().log() - positive.min().log())
    return span <= safe_range(spans.dtype) / (2 if goes_back else 1)


def _logarithmic(largest: Tensor, columns: Tensor, start: Tensor | None) -> tuple[Logarithmic, Tensor]:
    """The domain for logits of at most that magnitude, (..., 1, 1), and the scalings of the columns to start with."""
    if start is not None and start.numel():
        sizes = start.detach().abs().masked_fill(start == -torch.inf, 0.0)
        largest = torch.maximum(largest, sizes.amax(-1, keepdim=True).unsqueeze(-1))
    domain = Logarithmic.up_to(largest)
    if start is None:
        return domain, columns.new_zeros(2, *columns.shape)
    return domain, domain.open(domain.hold(start.unsqueeze(-2).clone())).squeeze(-2)
