"""Entropic transport between given marginals as a differentiable function: through its rounds, or through their fixed point."""

from typing import Any

import torch
from torch import Tensor

from otter_losses.ops.domains import has_numbers, has_tangent, is_tracked
from otter_losses.ops.eager import matching as eager
from otter_losses.ops.eager.matching import Rounds, Solution, Task


def solve(scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task) -> Solution:
    """`eager.matching.solve`, which keeps its rounds' sums for the way back, where nobody traces or transforms it."""
    given = [each for each in (scores, rows, columns, start) if each is not None]
    if any(is_tracked(each) for each in given) and all(_is_plain(each) for each in given):
        return Solution(*_Unrolled.apply(scores, rows, columns, start, task))  # type: ignore[no-untyped-call]
    return eager.solve(scores, rows, columns, start, task)


def _is_plain(tensor: Tensor) -> bool:
    """Whether reverse mode alone looks at it, once."""
    return has_numbers(tensor) and not has_tangent(tensor)


class _Unrolled(torch.autograd.Function):
    """The solution's derivatives through the rounds by `eager.matching.differentiate`.

    Derivatives of those, and many at once under vmap, are autograd's: it solves again.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        rounds = Rounds()
        solution = eager.solve(scores, rows, columns, start, task, rounds)
        ctx.task, ctx.rounds, ctx.done = task, rounds, solution.rounds
        ctx.save_for_backward(scores, rows, columns, start, *solution[:3])
        plan, row_potential, column_potential, done = solution
        return plan, row_potential, column_potential, done

    @staticmethod
    def backward(ctx: Any, plan: Tensor, row_potential: Tensor, column_potential: Tensor, _: None) -> tuple[Tensor | None, ...]:
        by = Solution(plan, row_potential, column_potential, 0)
        if torch.is_grad_enabled() or not all(_is_plain(each) for each in by[:3]):
            return _Unrolled._by_autograd(ctx, by[:3])
        scores, rows, columns, start, *saved = ctx.saved_tensors
        solution = Solution(saved[0], saved[1], saved[2], ctx.done)
        found = eager.differentiate(scores, rows, columns, ctx.task.epsilon, solution, ctx.rounds, by)
        by_scores = found.scores.to(scores.dtype)
        return by_scores, found.rows, found.columns, None if start is None else found.start, None

    @staticmethod
    def _by_autograd(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        given = scores, rows, columns, start = ctx.saved_tensors[:4]
        wanted = [each for each, needed in zip(given, ctx.needs_input_grad, strict=False) if needed]
        with torch.enable_grad():
            again = eager.solve(scores, rows, columns, start, ctx.task)
        found = iter(torch.autograd.grad(again[:3], wanted, gradients, create_graph=torch.is_grad_enabled(), allow_unused=True))
        return (*[next(found) if needed else None for needed in ctx.needs_input_grad[:4]], None)


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
