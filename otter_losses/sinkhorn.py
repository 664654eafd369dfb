"""Sinkhorn-Knopp: entropic optimal transport between given marginals, for scores rather than costs."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.ops.domains import LOGARITHMIC, SCALING, Domain, reads_freely, safe_range


class SinkhornResult(NamedTuple):
    """What `sinkhorn_knopp` found.

    Attributes:
        plan: (..., M, N), non-negative; columns sum to `column_marginal` exactly, rows to `row_marginal` within `marginal_error`.
        row_potential, column_potential: (..., M) and (..., N), dimensionless, with
            ``plan = exp(scores / epsilon + row_potential + column_potential)``; -inf where a marginal is zero.
        marginal_error: (...), the L1 distance of the plan's row sums from `row_marginal`.
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
    logarithms, which are safe for any scores and any epsilon.

    Args:
        scores: (..., M, N), larger = better match; -inf forbids a pair. A row or column of which every entry is forbidden gets no
            mass, which `marginal_error` then shows.
        epsilon: regularisation, at least 1e-30, in the units of the scores. Small is sharp and needs more iterations.
        iterations: rounds, at least 1; the most, where a tolerance is given.
        row_marginal, column_marginal: (M,) and (N,), or with the batch dimensions of `scores`: non-negative, of equal mass. By
            default uniform with mass 1.
        tolerance: stop once the L1 error of the row sums is at most this. Each problem of a batch stops by itself. Reading the
            error waits for the device.
        column_potential: where to start, as an earlier result gave it; k rounds and then m more are k + m rounds.
        implicit: differentiate through the fixed point rather than through the rounds: exact at convergence only, O(N^2) memory,
            one linear solve of size N. `tolerance` must be small enough.
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
    checks.check_masses(rows, columns)
    start = None
    if column_potential is not None:
        checks.check_vector("column_potential", column_potential, scores, n)
        checks.check_start(column_potential)
        start = column_potential.to(dtype).expand(*batch, n)
    with torch.autocast("cpu" if scores.device.type == "meta" else scores.device.type, enabled=False):
        logits = scores.to(dtype) / epsilon
        if implicit:
            if rows.requires_grad or columns.requires_grad:
                raise ValueError("implicit=True differentiates in scores only, but a marginal requires a gradient. Detach it.")
            result = _solve(logits.detach(), rows, columns, iterations, tolerance, start)
            plan: Tensor = _FixedPoint.apply(logits, result.plan, rows, columns)  # type: ignore[no-untyped-call]
            result = result._replace(plan=plan)
        else:
            result = _solve(logits, rows, columns, iterations, tolerance, start)
    return result if return_result else result.plan


def _marginal(name: str, marginal: Tensor | None, scores: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    if marginal is None:
        return torch.full((*scores.shape[:-2], size), 1 / max(size, 1), dtype=dtype, device=scores.device)
    checks.check_vector(name, marginal, scores, size)
    checks.check_non_negative(name, marginal)
    return checks.savable(marginal).to(dtype).expand(*scores.shape[:-2], size)


def _solve(
    logits: Tensor, rows: Tensor, columns: Tensor, iterations: int, tolerance: float | None, start: Tensor | None
) -> SinkhornResult:
    differentiated = torch.is_grad_enabled() and (logits.requires_grad or rows.requires_grad or columns.requires_grad)
    shift = None if differentiated or start is not None else _scaling_shift(logits, rows, columns)
    domain: Domain = LOGARITHMIC if shift is None else SCALING
    kernel = logits if shift is None else (logits - shift).exp_()
    a, b = domain.enter(rows), domain.enter(columns)
    u = domain.enter(torch.ones_like(rows))
    v = domain.enter(torch.ones_like(columns)) if start is None else start
    row_sums = domain.row_sums(kernel, v)
    active: Tensor | None = None
    done = 0
    while done < iterations:
        done += 1
        new_u = domain.match(a, row_sums)
        new_v = domain.match(b, domain.column_sums(kernel, new_u))
        if active is None:
            u, v = new_u, new_v
        else:
            u, v = torch.where(active, new_u, u), torch.where(active, new_v, v)
        row_sums = domain.row_sums(kernel, v)
        if tolerance is not None:
            error = _row_error(domain, u, row_sums, rows)
            active = (error > tolerance).unsqueeze(-1)
            if not bool(active.any()):
                break
    plan = domain.plan(kernel, u, v)
    error = _row_error(domain, u, row_sums, rows)
    if shift is not None:
        u, v = u.log() - shift, v.log()
    return SinkhornResult(plan, u, v, error, done)


def _row_error(domain: Domain, u: Tensor, row_sums: Tensor, rows: Tensor) -> Tensor:
    actual = u * row_sums if domain is SCALING else (u + row_sums).exp()
    return (actual - rows).abs().sum(-1)


def _scaling_shift(logits: Tensor, rows: Tensor, columns: Tensor) -> float | None:
    """The maximum to subtract where plain numbers are known to be safe, else None."""
    if not checks.may_read(logits) or not reads_freely(logits) or logits.numel() == 0:
        return None
    low, high = (float(bound) for bound in torch.aminmax(logits))
    span = high - low
    for marginal in (rows, columns):
        positive = marginal[marginal > 0]
        if positive.numel():
            span += float(positive.max().log() - positive.min().log())
    return high if span <= safe_range(logits.dtype) else None


class _FixedPoint(torch.autograd.Function):
    """The plan as a function of the logits at convergence, by implicit differentiation of both marginal constraints.

    For an incoming gradient G, ``dL/dlogits = P * (G - alpha_i - beta_j)`` where alpha and beta make its row and column sums
    vanish: ``a alpha + P beta = (P * G) 1`` and ``P^T alpha + b beta = (P * G)^T 1``.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(plan, rows, columns)
        return plan.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        plan, rows, columns = ctx.saved_tensors
        weighted = plan * gradient
        per_row = torch.where(rows > 0, 1 / rows, torch.zeros_like(rows)).unsqueeze(-1)
        row_totals, column_totals = weighted.sum(-1, keepdim=True), weighted.sum(-2).unsqueeze(-1)
        # Eliminating alpha leaves an N x N system, singular along the constant and where a column is empty: both are pinned.
        system = -plan.mT @ (per_row * plan)
        system = system + columns.unsqueeze(-1) * columns.unsqueeze(-2)
        system.diagonal(dim1=-2, dim2=-1).add_(torch.where(columns > 0, columns, torch.ones_like(columns)))
        beta = torch.linalg.solve(system, column_totals - plan.mT @ (per_row * row_totals))
        alpha = per_row * (row_totals - plan @ beta)
        return weighted - plan * (alpha + beta.mT), None, None, None
