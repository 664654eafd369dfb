"""From the logits' statistics to the cross entropies of pairs, or their means, and from gradients of those to G's weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from otter_losses.ops.problem import CrossEntropies, CrossEntropyGradients, Problem, Saved
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import Statistics, gathered, logit_sums, positive_logit_sums
from otter_losses.ops.triton.kernels import cross_entropy as kernels
from otter_losses.ops.triton.kernels.tiles import OCTAVES
from otter_losses.ops.triton.launch import VECTOR, launch, tiles


def cross_entropies(statistics: Statistics, problem: Problem, saved: Saved, reduce: Reduction) -> CrossEntropies:
    """Of every local pair, or their means; `saved` gets the slopes of generalised ones."""
    like, rows = statistics.row_lse, problem.rows
    hard, soft, mean = problem.hard, problem.soft, problem.mean
    b = len(like)
    given = like.new_empty(() if mean is not None else (2, b))
    transported = like.new_empty((0,) if soft is None else given.shape)
    uniform = hard.uniform is not None
    on_pair, share = (like, like) if hard.is_plain else _of_pairs(hard.as_tensor(like), rows)
    own = (statistics.own_logit, statistics.own_logit)
    if hard.groups is not None:
        own_rows, own_columns = positive_logit_sums(problem.student, hard.groups, rows, reduce).mul_(OCTAVES.value)
        own = own_rows, own_columns
    prior = None if mean is None else mean.prior
    launch(
        kernels.PAIR_LOSSES,
        (1 if mean is not None else tiles(b, VECTOR["BN"]),),
        VECTOR,
        row_lse=statistics.row_lse,
        column_lse=statistics.column_lse[rows],
        row_own=own[0],
        column_own=own[1],
        row_expected_logit=statistics.row_expected_logit,
        column_expected_logit=statistics.column_expected_logit[rows],
        row_entropy=statistics.row_entropy,
        column_entropy=statistics.column_entropy[rows],
        on_pair=on_pair,
        uniform=share,
        logit_sums=logit_sums(problem.student, reduce) if uniform else like,
        prior=like if prior is None else prior,
        alpha=1.0 if mean is None else mean.alpha,
        factor=1.0 if mean is None else mean.factor,
        q=0.0 if mean is None else mean.q,
        given=given,
        soft=transported,
        slopes=saved.slopes,
        b=b,
        SOFT=soft is not None,
        DIVERGENCE=soft is not None and soft.divergence,
        UNIFORM=uniform,
        GROUPS=hard.groups is not None,
        MEAN=mean is not None,
        PER_PAIR=prior is not None,
        ROBUST=mean is not None and mean.q > 0,
    )
    return CrossEntropies(given, transported)


def _of_pairs(numbers: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """`HardTargets.as_tensor` by its two numbers, those of some pairs where each has its own."""
    on_pair, uniform = numbers.unbind()
    return (on_pair[rows], uniform[rows]) if numbers.dim() > 1 else (on_pair, uniform)


@dataclass(frozen=True, eq=False)
class PairWeights:
    """Of the terms of the logits' gradient, over one magnitude: what they are multiplied with may otherwise leave float16.

    Attributes:
        given: gradients of all ranks' cross entropies against the given targets, of rows and of columns, (2, N).
        soft: the same of those against the soft targets; the given ones where there are none.
        hard: `HardTargets.as_tensor`; None where each pair's target is the pair itself.
        magnitude: what they were divided by, 0-D.
    """

    given: Tensor
    soft: Tensor
    hard: Tensor | None
    magnitude: Tensor

    @classmethod
    def of(cls, gradient: CrossEntropyGradients, problem: Problem, saved: Saved, reduce: Reduction) -> "PairWeights":
        """For gradients of what `cross_entropies` gave."""
        like, hard, mean = problem.student.logit_scale, problem.hard, problem.mean
        fixed = None if hard.is_plain else hard.as_tensor(like)
        if mean is None:
            every, magnitude = gathered(gradient, problem, reduce)
            return cls(every[:2], every[-2:], fixed, magnitude)
        n = len(problem.student.all_text_features)
        of_soft = None if problem.soft is None else gradient.soft
        robust = mean.q > 0
        weights, magnitude = like.new_empty(3 if robust else 2, n), torch.empty_like(like)
        launch(
            kernels.PAIR_WEIGHTS,
            (tiles(n, VECTOR["BN"]),),
            VECTOR,
            given_gradient=like if gradient.given is None else gradient.given,
            soft_gradient=like if of_soft is None else of_soft,
            prior=like if mean.prior is None else mean.prior,
            slopes=saved.slopes,
            alpha=mean.alpha,
            factor=mean.factor,
            given=weights[0],
            soft=weights[-1],
            magnitude=magnitude,
            n=n,
            GIVEN=gradient.given is not None,
            SOFT=of_soft is not None,
            PER_PAIR=mean.prior is not None,
            ROBUST=robust,
        )
        return cls(weights[:2] if robust else weights[0].expand(2, n), weights[-1].expand(2, n), fixed, magnitude)

    def of_hard(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """``on_pair`` and ``uniform`` of rows, and ``uniform`` of columns; something else where the targets have none."""
        if self.hard is None:
            return self.magnitude, self.magnitude, self.magnitude
        return *_of_pairs(self.hard, rows), _of_pairs(self.hard, columns)[1]
