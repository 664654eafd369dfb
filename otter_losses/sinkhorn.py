"""Sinkhorn-Knopp: entropic optimal transport between given marginals, for scores rather than costs."""

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from otter_losses import checks
from otter_losses.ops.eager.matching import Task, distance
from otter_losses.ops.matching import FixedPoint, solve
from otter_losses.ops.memory import without_autocast


class SinkhornResult(NamedTuple):
    """The result of `sinkhorn_knopp`.

    Attributes:
        plan: (..., M, N), non-negative. Its columns sum to `column_marginal` exactly, and its rows to `row_marginal` within
            `marginal_error`.
        row_potential, column_potential: (..., M) and (..., N), dimensionless, with
            ``plan = exp(scores / epsilon + row_potential + column_potential)`` except for their own rounding, which is that of
            numbers as large as ``scores / epsilon``. They are -inf where a marginal is zero.
        marginal_error: (...), the L1 distance between this plan's row sums and `row_marginal`.
        iterations: number of rounds done; for a batch, the largest number.
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

    See Cuturi, arXiv 1306.0895. Each round matches the rows first and the columns last. On the CPU and in kernels, the solver
    runs on plain numbers while the scores span less than 80 epsilon in float32, or 640 epsilon in float64. On the CPU these
    limits are halved where a gradient is wanted. Otherwise the solver runs on logarithms, which are exact for any scores and
    any epsilon. Autocast changes nothing. `torch.vmap` and the other transforms of torch.func apply.

    Args:
        scores: (..., M, N). A larger score is a better match; -inf forbids a pair. A row or column in which every entry is
            forbidden gets no mass, and `marginal_error` then shows this.
        epsilon: regularisation, at least 1e-30, in the units of the scores. A small value gives a sharp plan and needs more
            iterations.
        iterations: number of rounds, at least 1. With a tolerance, it is the largest number.
        row_marginal, column_marginal: (M,) and (N,), or with the batch dimensions of `scores`. They are non-negative and have
            equal mass. By default they are uniform with mass 1.
        tolerance: stop once the L1 error of the row sums is at most this. Each problem of a batch stops by itself. Plain torch
            waits for the device to read the error. Where it cannot be read, under `torch.vmap`, all rounds are run.
        column_potential: where to start, as given by an earlier result. k rounds and then m more equal k + m rounds, as far as
            one float holds the potential.
        implicit: differentiate through the fixed point instead of through the rounds. This is exact at convergence only, so
            `tolerance` must be small enough. It takes O(N^2) memory and one eigenproblem of size N.
        return_result: return a `SinkhornResult` instead of the plan alone.
        backend: "auto", "torch" or "triton". The kernels take float32 and half precision, at most 2,048 rows and 1,024 columns,
            and no tracing or transforms. "auto" uses them where they are available and pay.

    Returns:
        The plan, (..., M, N), float64 for float64 scores and float32 otherwise (half precision cannot hold 1 / N^2). It is
        differentiable in `scores`, the marginals and `column_potential`; no round keeps a matrix for this.

    Raises:
        ValueError, TypeError: the message names the argument, what came, what is needed and the fix.
        RuntimeError: a backend that was asked for by name cannot do it; the message says why.

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
    checks.check_backend(backend, shipped=("auto", "torch", "triton"))
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
        start = checks.savable(column_potential).to(dtype).expand(*batch, n)
    task = Task(epsilon, iterations, tolerance)
    with without_autocast(scores):
        if implicit:
            if rows.requires_grad or columns.requires_grad:
                raise ValueError("implicit=True differentiates in scores only, but a marginal requires a gradient. Detach it.")
            checks.check_no_tangent("scores", scores)
            solution = solve(scores.detach(), rows, columns, start, task, backend)
            plan: Tensor = FixedPoint.apply(scores.to(dtype) / epsilon, solution.plan, rows, columns)  # type: ignore[no-untyped-call]
            solution = solution._replace(plan=plan)
        else:
            solution = solve(checks.savable(scores), rows, columns, start, task, backend)
        if not return_result:
            return solution.plan
        plan, row_potential, column_potential, rounds = solution
        done = rounds if isinstance(rounds, int) else int(rounds.max())
        return SinkhornResult(plan, row_potential, column_potential, distance(plan.sum(-1), rows), done)


def _marginal(name: str, marginal: Tensor | None, scores: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    if marginal is None:
        return torch.full((*scores.shape[:-2], size), 1 / max(size, 1), dtype=dtype, device=scores.device)
    checks.check_vector(name, marginal, scores, size)
    checks.check_non_negative(name, marginal)
    return checks.savable(marginal).to(dtype).expand(*scores.shape[:-2], size)
