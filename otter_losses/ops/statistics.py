"""From the statistics of the logits to the cross entropies of every pair, and from their gradients to the logits' weights.

With logits ``z``, given targets ``T`` (`HardTargets`: c on the pair, f everywhere) and a teacher's targets ``M`` (rows sum
to 1) and ``M'`` (columns sum to 1), the four cross entropies of pair i are

    given, row     row_lse_i    - c z_ii - f sum_j z_ij        soft, row      row_lse_i    - sum_j M_ij z_ij
    given, column  column_lse_i - c z_ii - f sum_j z_ji        soft, column   column_lse_i - sum_j M'_ji z_ji

and for gradients ``g`` of the four, given row and column ``a, b``, soft row and column ``d, e``, that of the logits is

    G_ij = (a_i + d_i) softmax_row(z)_ij + (b_j + e_j) softmax_column(z)_ij
           - c (a_i + b_i) delta_ij - f (a_i + b_j) - d_i M_ij - e_j M'_ij.

In groups ``z_ii`` is the sum over the positives, ``delta_ij`` 1 for all of them, and c and f are each pair's own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops.groups import sums
from otter_losses.ops.memory import slices
from otter_losses.ops.problem import CrossEntropies, CrossEntropyGradients, Problem, Student
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.targets import SoftTargets

WIDTH_AT_ONCE = 128
"""Of the features that are added up over groups."""


class Statistics(NamedTuple):
    """Of the logits' rows, (b,), and of all their columns, (N,): sums over the local rows until `reduce_columns`.

    Kernels keep logits and their log-sum-exps in octaves. Expected logits and entropies are those of the soft targets, of no
    account where there are none or nobody asks for them.
    """

    row_lse: Tensor
    own_logit: Tensor
    row_expected_logit: Tensor
    row_entropy: Tensor
    column_lse: Tensor
    column_expected_logit: Tensor
    column_entropy: Tensor

    @classmethod
    def unwritten(cls, like: Tensor, rows: int, columns: int) -> "Statistics":
        """Memory for it."""
        return cls(*like.new_empty(4, rows).unbind(), *like.new_empty(3, columns).unbind())

    @classmethod
    def of_nothing(cls, like: Tensor, rows: int, columns: int) -> "Statistics":
        """To which columns are added block by block."""
        statistics = cls(*like.new_empty(4, rows).unbind(), *like.new_zeros(3, columns).unbind())
        statistics.column_lse.fill_(-torch.inf)
        return statistics


def reduce_columns(statistics: Statistics, soft: SoftTargets | None, reduce: Reduction) -> None:
    """Columns' sums over the rows of all ranks, in place."""
    reduce.all_reduce_logsumexp_(statistics.column_lse)
    if soft is not None:
        reduce.all_reduce_sum_(statistics.column_expected_logit)
        if soft.divergence:
            reduce.all_reduce_sum_(statistics.column_entropy)


def cross_entropies(statistics: Statistics, problem: Problem, reduce: Reduction) -> CrossEntropies:
    """Of every local pair, less the soft targets' own entropy where that makes a divergence of them."""
    hard, soft, rows = problem.hard, problem.soft, problem.rows
    given = torch.stack((statistics.row_lse, statistics.column_lse[rows]))
    transported = given.new_empty(0)
    if soft is not None:
        transported = given - torch.stack((statistics.row_expected_logit, statistics.column_expected_logit[rows]))
        if soft.divergence:
            transported -= torch.stack((statistics.row_entropy, statistics.column_entropy[rows]))
    own = statistics.own_logit
    if hard.groups is not None:
        own = positive_logit_sums(problem.student, hard.groups, rows, reduce)
    given.sub_(hard.of_pairs(own, rows))
    if hard.uniform is not None:
        given.sub_(hard.of_uniform(logit_sums(problem.student, reduce), rows))
    return CrossEntropies(given, transported)


def logit_sums(student: Student, reduce: Reduction) -> Tensor:
    """Sums of the local rows and of their own columns of the logits, (2, b)."""
    scale = student.logit_scale
    all_images = reduce.all_reduce_sum_(student.image_features.sum(0, dtype=scale.dtype))
    all_texts = student.all_text_features.sum(0, dtype=scale.dtype)
    pairs = ((student.image_features, all_texts), (student.text_features, all_images))
    return torch.stack([features.to(scale.dtype) @ total for features, total in pairs]).mul_(scale)


def positive_logit_sums(student: Student, ids: Tensor, rows: slice, reduce: Reduction) -> Tensor:
    """Sums over the positives of the local rows, and of their own columns, of the logits, (2, b).

    Of a row that is its image's product with the sum of its group's texts.
    """
    dtype = student.logit_scale.dtype
    x, y = student.image_features, student.all_text_features
    of_rows, of_columns = x.new_zeros(len(x), dtype=dtype), y.new_zeros(len(y), dtype=dtype)
    all_ids, own_ids = ids.long(), ids[rows].long()
    for columns in slices(x.shape[1], WIDTH_AT_ONCE):
        image, text = x[:, columns].to(dtype), y[:, columns].to(dtype)
        of_rows += (image * sums(text, all_ids, len(y))[own_ids]).sum(1)
        of_columns += (text * sums(image, own_ids, len(y))[all_ids]).sum(1)
    of_columns = reduce.all_reduce_sum_(of_columns)
    return torch.stack((of_rows, of_columns[rows])).mul_(student.logit_scale)


class Weights(NamedTuple):
    """Of the terms of the logits' gradient, over one magnitude: what they are multiplied with may otherwise leave float16.

        G_ij = row_lse_i softmax_row(z)_ij + column_lse_j softmax_column(z)_ij - (row_pair_i + column_pair_j) delta_ij
               - row_uniform_i - column_uniform_j - row_plan_i M_ij - column_plan_j M'_ij

    Attributes:
        row_lse, row_pair, row_plan: (b,).
        column_lse, column_pair, column_plan: (N,).
        row_uniform, column_uniform: (b,) and (N,); None where the targets have no uniform share.
        magnitude: what all of them were divided by, 0-D.
    """

    row_lse: Tensor
    column_lse: Tensor
    row_pair: Tensor
    column_pair: Tensor
    row_plan: Tensor
    column_plan: Tensor
    row_uniform: Tensor | None
    column_uniform: Tensor | None
    magnitude: Tensor

    @classmethod
    def of(cls, gradient: CrossEntropyGradients, problem: Problem, reduce: Reduction) -> "Weights":
        """For gradients of the local pairs' cross entropies, on every rank."""
        every, magnitude = gathered(gradient, problem, reduce)
        given_row, given_column, *soft = every
        hard, rows = problem.hard, problem.rows
        row_pair, column_pair = hard.of_pairs(every[:2], slice(None))
        uniform = None if hard.uniform is None else hard.of_uniform(every[:2])
        soft_row, soft_column = soft or (given_row, given_column)  # of no account without soft targets
        return cls(
            row_lse=(given_row + soft_row)[rows] if soft else given_row[rows],
            column_lse=given_column + soft_column if soft else given_column,
            row_pair=row_pair[rows],
            column_pair=column_pair,
            row_plan=soft_row[rows],
            column_plan=soft_column,
            row_uniform=None if uniform is None else uniform[0, rows],
            column_uniform=None if uniform is None else uniform[1],
            magnitude=magnitude,
        )


def gathered(gradient: CrossEntropyGradients, problem: Problem, reduce: Reduction) -> tuple[Tensor, Tensor]:
    """Gradients of all ranks' pairs, (4, N), or (2, N) without soft targets, over a magnitude; and that, 0-D."""
    parts = gradient[: 1 if problem.soft is None else 2]
    like, b = problem.student.logit_scale, len(problem.student.image_features)
    every = [like.new_zeros(2, b) if part is None else part for part in parts]
    local = torch.cat(every) if len(every) > 1 else every[0]
    return over_magnitude(reduce.all_gather_columns(local))


def over_magnitude(gradient: Tensor, reduce: Reduction | None = None) -> tuple[Tensor, Tensor]:
    """A gradient over its greatest magnitude, on all ranks where they reduce it; and that magnitude, 0-D."""
    magnitude = torch.linalg.vector_norm(gradient, torch.inf)
    if reduce is not None:
        magnitude = reduce.all_reduce_max(magnitude)
    magnitude = magnitude.clamp_min(torch.finfo(gradient.dtype).tiny)
    return (gradient / magnitude).contiguous(), magnitude
