"""Entropic transport between given marginals as a differentiable function: through its rounds, or through their fixed point."""

from typing import Any

import torch
from torch import Tensor

from otter_losses.ops import dispatch
from otter_losses.ops.domains import has_numbers, has_tangent, is_tracked
from otter_losses.ops.eager import matching as eager
from otter_losses.ops.eager.matching import Gradients, Solution, Task

MOST_ROWS, MOST_COLUMNS = 2048, 1024
"""Of a problem that one program can solve."""

ENTRIES_ALONE = 1 << 16
"""Of a problem that one program solves sooner than plain torch, which has the whole device; so many times more where there are
so many problems at a time. Derived, not measured."""


def solve(scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task, backend: str) -> Solution:
    """`eager.matching.solve`, by kernels where the backend has them: "auto", "torch" or "triton".

    Where nobody traces or transforms it, it keeps its rounds' sums for the way back.

    Raises:
        RuntimeError: "triton" cannot do that; it says why.
    """
    given = [each for each in (scores, rows, columns, start) if each is not None]
    plain = all(_is_plain(each) for each in given)
    fused = _is_fused(scores, backend, plain)
    if plain and any(is_tracked(each) for each in given):
        return Solution(*_Unrolled.apply(scores, rows, columns, start, task, fused))  # type: ignore[no-untyped-call]
    solution: Solution = _arithmetic(fused).solve(scores, rows, columns, start, task)
    return solution


def _is_fused(scores: Tensor, backend: str, plain: bool) -> bool:
    """Whether kernels compute, in float32."""
    obstacle = _obstacle(scores, plain)
    if obstacle is None:
        if backend == "auto" and not pays(scores):
            return False
        return dispatch.is_fused(dispatch.resolve(backend, scores, dispatch.FEWEST_PAIRS, "scores"))
    if backend == "triton":
        raise RuntimeError(f"backend='triton' {obstacle}")
    return False


def _obstacle(scores: Tensor, plain: bool) -> str | None:
    """What kernels are not for, whatever there is to run them."""
    if not plain:
        return dispatch.UNTRACED
    m, n = scores.shape[-2:]
    if scores.numel() > 0 and m <= MOST_ROWS and n <= MOST_COLUMNS:
        return None
    return (
        f"is for problems of at least one entry and at most {MOST_ROWS} x {MOST_COLUMNS}, but scores has shape "
        f"{tuple(scores.shape)}. Use backend='auto', which takes plain torch there, or 'torch'."
    )


def pays(scores: Tensor) -> bool:
    """Whether there is enough for programs to do at the same time."""
    entries = scores.shape[-2] * scores.shape[-1]
    return entries * entries <= ENTRIES_ALONE * scores.numel()


def _is_plain(tensor: Tensor) -> bool:
    """Whether reverse mode alone looks at it, once."""
    return has_numbers(tensor) and not has_tangent(tensor)


def _arithmetic(fused: bool) -> Any:
    """The module that solves and differentiates: with `solve`, `Rounds` and `differentiate`."""
    if not fused:
        return eager
    from otter_losses.ops.triton import matching

    return matching


class _Unrolled(torch.autograd.Function):
    """The solution's derivatives through the rounds by `eager.matching.differentiate`.

    Derivatives of those, and many at once under vmap, are autograd's: it solves again.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task, fused: bool
    ) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
        ctx.task, ctx.arithmetic = task, _arithmetic(fused)
        ctx.rounds = ctx.arithmetic.Rounds()
        solution: Solution = ctx.arithmetic.solve(scores, rows, columns, start, task, ctx.rounds)
        ctx.save_for_backward(scores, rows, columns, start, *solution[:3])
        plan, row_potential, column_potential, done = solution
        return plan, row_potential, column_potential, done

    @staticmethod
    def backward(ctx: Any, plan: Tensor, row_potential: Tensor, column_potential: Tensor, _: None) -> tuple[Tensor | None, ...]:
        by = Solution(plan, row_potential, column_potential, 0)
        if torch.is_grad_enabled() or not all(_is_plain(each) for each in by[:3]):
            return _Unrolled._by_autograd(ctx, by[:3])
        scores, rows, columns, start, *saved = ctx.saved_tensors
        solution = Solution(saved[0], saved[1], saved[2], 0)
        found: Gradients = ctx.arithmetic.differentiate(scores, rows, columns, start, ctx.task.epsilon, solution, ctx.rounds, by)
        by_scores = found.scores.to(scores.dtype)
        return by_scores, found.rows, found.columns, None if start is None else found.start, None, None

    @staticmethod
    def _by_autograd(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        given = scores, rows, columns, start = ctx.saved_tensors[:4]
        wanted = [each for each, needed in zip(given, ctx.needs_input_grad, strict=False) if needed]
        with torch.enable_grad():
            again = eager.solve(scores, rows, columns, start, ctx.task)
        found = iter(torch.autograd.grad(again[:3], wanted, gradients, create_graph=torch.is_grad_enabled(), allow_unused=True))
        return (*[next(found) if needed else None for needed in ctx.needs_input_grad[:4]], None, None)


class FixedPoint(torch.autograd.Function):
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
