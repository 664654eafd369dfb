"""Sinkhorn-Knopp: entropic optimal transport between given marginals, for scores rather than costs."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.ops.domains import SCALING, Domain, Logarithmic, has_numbers, is_tracked, reads_freely, safe_range
from otter_losses.ops.memory import without_autocast
from otter_losses.ops.tracing import is_exporting


class SinkhornResult(NamedTuple):
    """What `sinkhorn_knopp` found.

    Attributes:
        plan: (..., M, N), non-negative; columns sum to `column_marginal` exactly, rows to `row_marginal` within `marginal_error`.
        row_potential, column_potential: (..., M) and (..., N), dimensionless, with
            ``plan = exp(scores / epsilon + row_potential + column_potential)`` but for their own rounding, which is that of
            numbers as large as ``scores / epsilon``; -inf where a marginal is zero.
        marginal_error: (...), the L1 distance of this plan's row sums from `row_marginal`.
        iterations: rounds done; the largest of the batch.
    """

    plan: Tensor
    row_potential: Tensor
    column_potential: Tensor
    marginal_error: Tensor
    iterations: int


@overload
def sinkhorn_knopp(
    scores: Tensor,
    epsilon: float = ...,
    iterations: int = ...,
    *,
    row_marginal: Tensor | None = ...,
    column_marginal: Tensor | None = ...,
    tolerance: float | None = ...,
    column_potential: Tensor | None = ...,
    implicit: bool = ...,
    return_result: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def sinkhorn_knopp(
    scores: Tensor,
    epsilon: float = ...,
    iterations: int = ...,
    *,
    row_marginal: Tensor | None = ...,
    column_marginal: Tensor | None = ...,
    tolerance: float | None = ...,
    column_potential: Tensor | None = ...,
    implicit: bool = ...,
    return_result: Literal[True],
    backend: str = ...,
) -> SinkhornResult: ...
def sinkhorn_knopp(
    scores: Tensor,
    epsilon: float = 0.15,
    iterations: int = 5,
    *,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    tolerance: float | None = None,
    column_potential: Tensor | None = None,
    implicit: bool = False,
    return_result: bool = False,
    backend: str = "auto",
) -> Tensor | SinkhornResult:
    r"""The plan that maximises ``<plan, scores> + epsilon * entropy(plan)`` with the given row and column sums.

    .. math:: P = \operatorname{diag}(u)\, e^{S / \epsilon}\, \operatorname{diag}(v), \qquad
              u \leftarrow a / (K v), \quad v \leftarrow b / (K^\top u), \quad K = e^{S / \epsilon}

    (Cuturi, arXiv 1306.0895). Each round matches the rows first and the columns last. On the CPU, while the scores span less than
    80 epsilon in float32 (640 in float64) it runs on plain numbers; beyond, on other devices, and where a gradient is wanted, on
    logarithms, which are exact for any scores and any epsilon. Autocast changes nothing. `torch.vmap` and the other transforms of
    torch.func apply.

    Args:
        scores: (..., M, N), larger = better match; -inf forbids a pair. A row or column of which every entry is forbidden gets no
            mass, which `marginal_error` then shows.
        epsilon: regularisation, at least 1e-30, in the units of the scores. Small is sharp and needs more iterations.
        iterations: rounds, at least 1; the most, where a tolerance is given.
        row_marginal, column_marginal: (M,) and (N,), or with the batch dimensions of `scores`: non-negative, of equal mass. By
            default uniform with mass 1.
        tolerance: stop once the L1 error of the row sums is at most this. Each problem of a batch stops by itself. Reading the
            error waits for the device; where it cannot be read, under `torch.vmap`, all rounds are run.
        column_potential: where to start, as an earlier result gave it; k rounds and then m more are k + m rounds, as far as one
            float holds the potential.
        implicit: differentiate through the fixed point rather than through the rounds: exact at convergence only, O(N^2) memory,
            one eigenproblem of size N. `tolerance` must be small enough.
        return_result: return a `SinkhornResult` instead of the plan alone.
        backend: "auto" or "torch".

    Returns:
        The plan, (..., M, N), float64 for float64 scores and float32 otherwise (half precision cannot hold 1 / N^2).
        Differentiable in `scores`.

    Raises:
        ValueError, TypeError: naming the argument, what came, what is needed and the fix.

    Example:
        >>> import torch
        >>> from otter_losses import sinkhorn_knopp
        >>> sinkhorn_knopp(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), epsilon=0.05)
        tensor([[5.0000e-01, 1.0306e-09],
                [1.0306e-09, 5.0000e-01]])
        >>> result = sinkhorn_knopp(torch.randn(3, 8, 5), iterations=1000, tolerance=1e-4, return_result=True)
        >>> bool((result.marginal_error <= 1e-4).all())
        True
    """
    checks.check_backend(backend, shipped=("auto", "torch"))
    checks.check_epsilon(epsilon)
    checks.check_count("iterations", iterations, 1)
    if tolerance is not None:
        checks.check_number("tolerance", tolerance, low=0.0)
    checks.check_scores(scores, epsilon)
    *batch, m, n = scores.shape
    dtype = torch.promote_types(scores.dtype, torch.float32)
    rows = _marginal("row_marginal", row_marginal, scores, m, dtype)
    columns = _marginal("column_marginal", column_marginal, scores, n, dtype)
    checks.check_masses(rows, columns, [each.dtype for each in (row_marginal, column_marginal) if each is not None])
    start = None
    if column_potential is not None:
        checks.check_vector("column_potential", column_potential, scores, n)
        checks.check_start(column_potential)
        start = column_potential.to(dtype).expand(*batch, n)
    with without_autocast(scores):
        if implicit:
            if rows.requires_grad or columns.requires_grad:
                raise ValueError("implicit=True differentiates in scores only, but a marginal requires a gradient. Detach it.")
            checks.check_no_tangent("scores", scores)
            result = _solve(scores.detach().to(dtype), epsilon, rows, columns, iterations, tolerance, start)
            plan: Tensor = _FixedPoint.apply(scores.to(dtype) / epsilon, result.plan, rows, columns)  # type: ignore[no-untyped-call]
            result = result._replace(plan=plan)
        else:
            result = _solve(scores.to(dtype), epsilon, rows, columns, iterations, tolerance, start)
    return result if return_result else result.plan


def _marginal(name: str, marginal: Tensor | None, scores: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    if marginal is None:
        return torch.full((*scores.shape[:-2], size), 1 / max(size, 1), dtype=dtype, device=scores.device)
    checks.check_vector(name, marginal, scores, size)
    checks.check_non_negative(name, marginal)
    return checks.savable(marginal).to(dtype).expand(*scores.shape[:-2], size)


def _solve(
    scores: Tensor,
    epsilon: float,
    rows: Tensor,
    columns: Tensor,
    iterations: int,
    tolerance: float | None,
    start: Tensor | None,
) -> SinkhornResult:
    low, high = _extremes(scores)
    differentiated = any(is_tracked(each) for each in (scores, rows, columns))
    domain: Domain
    if start is None and not differentiated and _are_safe_as_numbers((high - low) / epsilon, rows, columns):
        domain, centre, v = SCALING, high, torch.ones_like(columns)
        kernel = (scores - centre).div_(epsilon).exp_()
    else:
        low, high = _finite(scores, low, high)
        # Of scores that are alike the difference is exact, and keeps the digits that the quotient would round away.
        centre = torch.where(high - low <= high.abs() / 2, high, 0.0)
        domain, v = _logarithmic(torch.maximum(high - centre, centre - low) / epsilon, columns, start)
        kernel = domain.open(domain.hold((scores - centre) / epsilon))
    a, b = domain.enter(rows), domain.enter(columns)
    u = domain.enter(torch.ones_like(rows))
    row_sums = domain.row_sums(kernel, v)
    may_stop = has_numbers(scores) or (torch.compiler.is_compiling() and not is_exporting())  # traced, it breaks the graph
    active: Tensor | None = None
    plan: Tensor | None = None
    done = 0
    while done < iterations:
        done += 1
        new_u = domain.match(a, row_sums)
        new_v = domain.match(b, domain.column_sums(kernel, new_u))
        if active is None:
            u, v = new_u, new_v
        else:
            u, v = torch.where(active, new_u, u), torch.where(active, new_v, v)
        plan = None
        row_sums = domain.row_sums(kernel, v)
        if tolerance is not None:
            active = (_distance(domain.product(u, row_sums), rows) > tolerance).unsqueeze(-1)
            if may_stop and not bool(active.any()):
                # What is promised is the error of the plan, in which every entry has been rounded.
                plan = _plan(domain, kernel, u, v, columns)
                active = (_distance(plan.sum(-1), rows) > tolerance).unsqueeze(-1)
                if not bool(active.any()):
                    break
    if plan is None:
        plan = _plan(domain, kernel, u, v, columns)
    row_potential, column_potential = domain.logarithm(u) - centre.squeeze(-1) / epsilon, domain.logarithm(v)
    return SinkhornResult(plan, row_potential, column_potential, _distance(plan.sum(-1), rows), done)


def _plan(domain: Domain, kernel: Tensor, rows: Tensor, columns: Tensor, marginal: Tensor) -> Tensor:
    """With columns that sum to their marginal, also where logarithms that diverge were rounded in thousands of rounds."""
    plan = domain.plan(kernel, rows, columns)
    if domain is SCALING:
        return plan
    sums = plan.detach().sum(-2)
    correction = torch.where(sums > 0, marginal.detach() / sums, 1.0).unsqueeze(-2)
    return plan * correction if is_tracked(plan) else plan.mul_(correction)


def _distance(sums: Tensor, marginal: Tensor) -> Tensor:
    return (sums - marginal).abs().sum(-1)


def _extremes(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest score of each problem, (..., 1, 1), as constants; 0 where there are none."""
    values = scores.detach()
    if 0 in values.shape[-2:]:
        nothing = values.new_zeros(*values.shape[:-2], 1, 1)
        return nothing, nothing
    return values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)


def _finite(scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The extremes without forbidden pairs; 0 where all are."""
    if 0 in scores.shape[-2:]:
        return low, high
    high = high.masked_fill(high == -torch.inf, 0.0)
    values = scores.detach()
    return torch.where(values == -torch.inf, high, values).amin((-2, -1), keepdim=True), high


def _are_safe_as_numbers(spans: Tensor, rows: Tensor, columns: Tensor) -> bool:
    """Whether `Scaling` is known to survive logits that span so much."""
    if spans.numel() == 0 or not all(checks.may_read(each) and reads_freely(each) for each in (spans, rows, columns)):
        return False
    span = float(spans.amax())
    for marginal in (rows, columns):
        positive = marginal[marginal > 0]
        if positive.numel():
            span += float(positive.max().log() - positive.min().log())
    return span <= safe_range(spans.dtype)


def _logarithmic(largest: Tensor, columns: Tensor, start: Tensor | None) -> tuple[Logarithmic, Tensor]:
    """The domain for logits of at most that magnitude, (..., 1, 1), and the scalings of the columns to start with."""
    if start is None:
        return Logarithmic.up_to(largest), columns.new_zeros(2, *columns.shape)
    if start.numel():
        sizes = start.abs().masked_fill(start == -torch.inf, 0.0)
        largest = torch.maximum(largest, sizes.amax(-1, keepdim=True).unsqueeze(-1))
    domain = Logarithmic.up_to(largest)
    return domain, domain.open(domain.hold(start.unsqueeze(-2).clone())).squeeze(-2)


class _FixedPoint(torch.autograd.Function):
    """The plan as a function of the logits at convergence, by implicit differentiation of both marginal constraints.

    For an incoming gradient G, ``dL/dlogits = P * (G - alpha_i - beta_j)`` where alpha and beta make its row and column sums
    vanish: ``a alpha + P beta = (P * G) 1`` and ``P^T alpha + b beta = (P * G)^T 1``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return plan.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        plan, rows, columns = ctx.saved_tensors
        weighted = plan * gradient
        per_row = torch.where(rows > 0, 1 / rows, torch.zeros_like(rows)).unsqueeze(-1)
        row_totals, column_totals = weighted.sum(-1, keepdim=True), weighted.sum(-2).unsqueeze(-1)
        # Eliminating alpha leaves an N x N system, here with a unit diagonal. It is singular once for each part of the plan that
        # no mass connects to the rest: along these, where the solution does not matter, it is 0.
        root = torch.where(columns > 0, columns.rsqrt(), torch.zeros_like(columns)).unsqueeze(-1)
        scaled = per_row.sqrt() * plan * root.mT
        values, vectors = torch.linalg.eigh(torch.eye(plan.shape[-1], dtype=plan.dtype, device=plan.device) - scaled.mT @ scaled)
        least = 8 * plan.shape[-1] ** 0.5 * torch.finfo(plan.dtype).eps
        inverse = torch.where(values > least, 1 / values, torch.zeros_like(values)).unsqueeze(-1)
        wanted = root * (column_totals - plan.mT @ (per_row * row_totals))
        beta = root * (vectors @ (inverse * (vectors.mT @ wanted)))
        alpha = per_row * (row_totals - plan @ beta)
        return weighted - plan * (alpha + beta.mT), None, None, None
