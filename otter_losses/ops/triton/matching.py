"""`ops.eager.matching` in kernels, for small problems: a program solves one, and another goes back through its rounds."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.eager.matching import Gradients, Solution, Task
from otter_losses.ops.triton.kernels import matching as kernels
from otter_losses.ops.triton.launch import Kernel, Tile, launch


@dataclass(eq=False)
class Rounds:
    """What the way back needs of the way there.

    Attributes:
        found: with the sums of every round.
    """

    found: "_Found | None" = None


class _Found(NamedTuple):
    """Of B problems.

    Attributes:
        plan, row_potential, column_potential: (B, M, N), (B, M) and (B, N).
        done: rounds of each, (B,).
        bounds: the pivot of each, and what was taken off its scores, (2, B).
        row_sums, column_sums: of every round in two parts, (rounds, 2, B, M) and (rounds, 2, B, N).
    """

    plan: Tensor
    row_potential: Tensor
    column_potential: Tensor
    done: Tensor
    bounds: Tensor
    row_sums: Tensor
    column_sums: Tensor


class _Problems(NamedTuple):
    """Scores (B, M, N), contiguous marginals (B, M) and (B, N), and perhaps potentials to start from, (B, N)."""

    scores: Tensor
    rows: Tensor
    columns: Tensor
    start: Tensor | None

    @classmethod
    def of(cls, scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None) -> "_Problems":
        first = None if start is None else _vectors(start)
        return cls(scores.detach().reshape(-1, *scores.shape[-2:]), _vectors(rows), _vectors(columns), first)

    def tile(self, kernel: Kernel) -> Tile:
        return next(tile for tile in kernel.tiles if self.scores.shape[-1] <= tile["BN"])

    def arguments(self) -> dict[str, object]:
        """How a kernel reads them."""
        _, m, n = self.scores.shape
        problem_stride, row_stride, column_stride = self.scores.stride()
        return {
            "scores": self.scores,
            "rows": self.rows,
            "columns": self.columns,
            "start": self.columns if self.start is None else self.start,
            "problem_stride": problem_stride,
            "row_stride": row_stride,
            "column_stride": column_stride,
            "m": m,
            "n": n,
            "START": self.start is not None,
        }


def _vectors(given: Tensor) -> Tensor:
    return given.detach().reshape(-1, given.shape[-1]).contiguous()


def solve(
    scores: Tensor, rows: Tensor, columns: Tensor, start: Tensor | None, task: Task, rounds: Rounds | None = None
) -> Solution:
    """As `ops.eager.matching.solve`, for some problems of few columns and float32 marginals, without a look at any number.

    But where rounds are to be written down and there is a tolerance, their number is read: they need memory.
    """
    *batch, m, n = scores.shape
    problems = _Problems.of(scores, rows, columns, start)
    if rounds is None:
        found = _run(problems, task)
        done = task.iterations if task.tolerance is None else found.done
    elif task.tolerance is None:
        done = task.iterations
        found = rounds.found = _run(problems, task, problems.rows.new_full((len(problems.rows),), done, dtype=torch.int32))
    else:
        each = _run(problems, task).done
        done = int(each.max())
        found = rounds.found = _run(problems, Task(task.epsilon, done, None), each)
    plan, row_potential, column_potential = found.plan, found.row_potential, found.column_potential
    return Solution(plan.view(scores.shape), row_potential.view(*batch, m), column_potential.view(*batch, n), done)


def _run(problems: _Problems, task: Task, done: Tensor | None = None) -> _Found:
    """`done`: rounds of each problem, where they are known and their sums are wanted."""
    count, m, n = problems.scores.shape
    new, history = problems.rows.new_empty, 0 if done is None else task.iterations
    found = _Found(
        plan=new(count, m, n),
        row_potential=new(count, m),
        column_potential=new(count, n),
        done=new(count, dtype=torch.int32) if done is None else done,
        bounds=new(2, count),
        row_sums=new(history, 2, count, m),
        column_sums=new(history, 2, count, n),
    )
    launch(
        kernels.MATCHING,
        (count,),
        problems.tile(kernels.MATCHING),
        **problems.arguments(),
        plan=found.plan,
        scalings=new(count, 2, 2, m),
        row_potentials=found.row_potential,
        column_potentials=found.column_potential,
        row_history=found.row_sums,
        column_history=found.column_sums,
        done=found.done,
        bounds=found.bounds,
        epsilon=task.epsilon,
        tolerance=task.tolerance or 0.0,
        iterations=task.iterations,
        STOP=task.tolerance is not None,
        HISTORY=done is not None,
    )
    return found


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
    """As `ops.eager.matching.differentiate`."""
    *batch, m, n = scores.shape
    problems, found = _Problems.of(scores, rows, columns, start), rounds.found
    assert found is not None
    by_plan = by.plan.reshape(-1, m, n)
    by_problem_stride, by_row_stride, by_column_stride = by_plan.stride()
    logits, gradient = torch.empty_like(found.plan), torch.empty_like(found.plan)
    by_rows, by_columns, by_start = (torch.empty_like(each) for each in (problems.rows, problems.columns, problems.columns))
    launch(
        kernels.MATCHING_GRADIENT,
        (len(found.plan),),
        problems.tile(kernels.MATCHING_GRADIENT),
        **problems.arguments(),
        plan=solution.plan,
        by_plan=by_plan,
        by_row_potential=_vectors(by.row_potential),
        by_column_potential=_vectors(by.column_potential),
        row_history=found.row_sums,
        column_history=found.column_sums,
        done=found.done,
        bounds=found.bounds,
        logits=logits,
        gradient=gradient,
        by_rows=by_rows,
        by_columns=by_columns,
        by_start=by_start,
        epsilon=epsilon,
        by_problem_stride=by_problem_stride,
        by_row_stride=by_row_stride,
        by_column_stride=by_column_stride,
    )
    return Gradients(gradient.view(scores.shape), by_rows.view(*batch, m), by_columns.view(*batch, n), by_start.view(*batch, n))
