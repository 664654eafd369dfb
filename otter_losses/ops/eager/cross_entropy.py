"""The statistics of `otter_losses.ops.cross_entropy` and their gradient in eager torch, for any device and dtype."""

import torch
from torch import Tensor

from otter_losses.ops.domains import SCALING, Domain, reads_freely, safe_range
from otter_losses.ops.eager.feature_gradients import FeatureGradients
from otter_losses.ops.eager.sinkhorn import GibbsKernel, domain_of, last_row_scalings, solve
from otter_losses.ops.groups import subtract_own
from otter_losses.ops.memory import computing_dtype, eager_blocks
from otter_losses.ops.problem import CrossEntropies, CrossEntropyGradients, Gradients, Problem, Saved, Scalar, Student
from otter_losses.ops.products import as_multiplied, product
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.statistics import Statistics, Weights, cross_entropies, reduce_columns


def forward(problem: Problem, reduce: Reduction) -> tuple[CrossEntropies, Saved]:
    """The local pairs' cross entropies, and what the backward needs."""
    statistics, saved = _statistics(problem, reduce)
    reduce_columns(statistics, problem.soft, reduce)
    return cross_entropies(statistics, problem, reduce), saved


def _statistics(problem: Problem, reduce: Reduction) -> tuple[Statistics, Saved]:
    """Of the local rows, columns not yet reduced."""
    soft, similarity, storage = problem.soft, problem.similarity, problem.storage
    x, y, scale = _operands(problem.student)
    b, n = len(x), len(y)
    statistics = Statistics.of_nothing(scale, b, n)
    saved = Saved.unwritten(problem, statistics.row_lse, statistics.column_lse, matrices=False)
    scalars = saved.scalars

    kernel = cosines = None
    if similarity is None or soft is None:
        cosines = _product(x, y) if storage.cosines else None
    else:
        own_teacher = soft.uses_student and similarity.is_whole
        cosines = _product(x, y) if storage.cosines and own_teacher else None
        kernel = GibbsKernel.build(
            similarity.as_multiplied(soft.fit(scale.dtype)),
            soft.logit_range,
            storage.gibbs is not None,
            reduce,
            cosines if own_teacher else None,
        )
        row_scalings, column_scalings = _scalings(saved, kernel.domain)
        column_scalings[..., 0, :], row_scalings[..., 1, :], column_scalings[..., 1, :] = solve(kernel, soft.iterations, reduce)
        scalars[Scalar.GIBBS_SHIFT] = kernel.shift
        scalars[Scalar.GIBBS_IS_LOGARITHMIC].fill_(float(kernel.domain is not SCALING))  # an assignment would copy from the host
        if storage.cosines and cosines is None:
            cosines = _product(x, y)

    shift = _common_shift(x, y, scale, cosines)
    if shift is not None:
        scalars[Scalar.LOGIT_SHIFT].fill_(shift)
        scalars[Scalar.HAS_EXPONENTIALS].fill_(1.0)
    blocks = eager_blocks(b, n, x.device)
    # Fresh memory costs a page fault per 4 KiB, more than the arithmetic on it: row blocks share theirs.
    height = blocks[0].stop
    space, scratch = scale.new_empty(0 if cosines is not None else height, n), scale.new_empty(0 if soft is None else height, n)
    for rows in blocks:
        # The logits take the place of the cosines, which nobody needs again.
        z = product(x[rows], y.T, out=space[: rows.stop - rows.start]) if cosines is None else cosines[rows]
        z.mul_(scale)
        statistics.own_logit[rows] = z.diagonal(problem.rows_of(rows).start)
        if kernel is not None and soft is not None:
            block = kernel.block(rows)
            row_scalings[..., 0, rows] = last_row_scalings(kernel, block, column_scalings[..., 0, :])
            scalings = row_scalings[..., rows], column_scalings
            _add_expected_logits(
                statistics, rows, z, block, kernel.domain, scalings, divergence=soft.divergence, scratch=scratch[: len(z)]
            )
        if shift is None:
            statistics.row_lse[rows] = _log_sum_exp(z, 1)
            column_lse = _log_sum_exp(z, 0)
        else:
            exponentials = z.sub_(shift).exp_()
            statistics.row_lse[rows] = exponentials.sum(1).log_().add_(shift)
            column_lse = exponentials.sum(0).log_().add_(shift)
        torch.logaddexp(statistics.column_lse, column_lse, out=statistics.column_lse)

    if kernel is not None and kernel.stored is not None:
        saved = saved._replace(gibbs=kernel.stored)
    if cosines is not None:
        saved = saved._replace(cosines=cosines)
    return statistics, saved


def _operands(student: Student) -> tuple[Tensor, Tensor, Tensor]:
    """Local image features and all text features as they are multiplied, and the scale."""
    return as_multiplied(student.image_features), as_multiplied(student.all_text_features), student.logit_scale


def _product(x: Tensor, y: Tensor) -> Tensor:
    return product(x, y.T, out=x.new_empty(len(x), len(y), dtype=computing_dtype(x)))


def _log_sum_exp(z: Tensor, dim: int) -> Tensor:
    """Elsewhere than on the CPU by the softmax, one kernel in place of four."""
    if reads_freely(z):
        return z.logsumexp(dim)
    return z.select(dim, 0) - z.log_softmax(dim).select(dim, 0)


def _scalings(saved: Saved, domain: Domain) -> tuple[Tensor, Tensor]:
    """Of rows (..., 2, b) and columns (..., 2, N), as the domain has them."""
    rows, columns = saved.row_scalings, saved.column_scalings
    return (rows[0], columns[0]) if domain is SCALING else (rows, columns)


def _common_shift(x: Tensor, y: Tensor, scale: Tensor, cosines: Tensor | None) -> float | None:
    """An upper bound or the maximum, where one exponential about it serves rows and columns; only the CPU may look."""
    if cosines is None or not reads_freely(x):
        return None
    bound = abs(float(scale) * float(torch.linalg.vector_norm(x, dim=1).amax() * torch.linalg.vector_norm(y, dim=1).amax()))
    if 2 * bound <= safe_range(x.dtype):
        return bound
    low, high = (float(bound) for bound in torch.aminmax(cosines))
    low, high = sorted((low * float(scale), high * float(scale)))
    return high if high - low <= safe_range(x.dtype) else None


def _add_expected_logits(
    statistics: Statistics,
    rows: slice,
    z: Tensor,
    gibbs: Tensor,
    domain: Domain,
    scalings: tuple[Tensor, Tensor],
    *,
    divergence: bool,
    scratch: Tensor,
) -> None:
    """Add up the logits of a block, and the plans' entropies, under both plans."""
    (image_rows, text_rows), (image_columns, text_columns) = (each.unbind(-2) for each in scalings)
    if domain is SCALING and not divergence:
        weighted = torch.mul(gibbs, z, out=scratch)
        statistics.row_expected_logit[rows] = image_rows * (weighted @ image_columns)
        statistics.column_expected_logit.add_((text_rows @ weighted) * text_columns)
        return
    image_plan = domain.plan(gibbs, image_rows, image_columns)
    if divergence:
        statistics.row_entropy[rows] = torch.special.entr(image_plan).sum(1)
    statistics.row_expected_logit[rows] = image_plan.mul_(z).sum(1)
    del image_plan
    text_plan = domain.plan(gibbs, text_rows, text_columns)
    if divergence:
        statistics.column_entropy.add_(torch.special.entr(text_plan).sum(0))
    statistics.column_expected_logit.add_(text_plan.mul_(z).sum(0))


def backward(
    problem: Problem, gradient: CrossEntropyGradients, saved: Saved, wants_image: bool, wants_text: bool, reduce: Reduction
) -> Gradients:
    """Gradients for those of the local pairs' cross entropies."""
    weights = Weights.of(gradient, problem, reduce)
    student = problem.student
    b, n = len(student.image_features), len(student.all_text_features)
    blocks = eager_blocks(b, n, student.image_features.device)
    logits_gradient = _LogitsGradient(problem, weights, saved)
    space = student.logit_scale.new_empty(blocks[0].stop, n)
    scratch = space if problem.soft is None and logits_gradient.has_exponentials else torch.empty_like(space)
    gradients = FeatureGradients(student, wants_image, wants_text)
    for rows in blocks:
        g = space[: rows.stop - rows.start]
        logits_gradient.write(rows, g, scratch[: len(g)])
        gradients.add(g, rows)
    dx, dy, inner = gradients.finish(student.logit_scale * weights.magnitude, reduce)
    return Gradients(dx, dy, inner * weights.magnitude)


class _LogitsGradient:
    """``G`` block by block, from what the forward kept or from the features again."""

    def __init__(self, problem: Problem, weights: Weights, saved: Saved) -> None:
        self.problem, self.weights, self.saved = problem, weights, saved
        self.x, self.y, self.scale = _operands(problem.student)
        dtype = self.scale.dtype
        soft, similarity, scalars = problem.soft, problem.similarity, saved.scalars
        if reads_freely(scalars):
            logarithmic, self.has_exponentials = (
                bool(scalars[each]) for each in (Scalar.GIBBS_IS_LOGARITHMIC, Scalar.HAS_EXPONENTIALS)
            )
        else:
            logarithmic = soft is not None and not soft.fit(dtype)
            self.has_exponentials = False
        self.kernel = None
        if similarity is not None and soft is not None:
            stored = None if problem.storage.gibbs is None else saved.gibbs
            shift = scalars[Scalar.GIBBS_SHIFT]
            similarity = similarity.as_multiplied(soft.fit(dtype))
            self.kernel = GibbsKernel(similarity, domain_of(logarithmic, shift), shift, stored)
        self.row_lse, self.column_lse = weights.row_lse, weights.column_lse
        if self.has_exponentials:  # about shifts that differ by up to e^80
            shift = scalars[Scalar.LOGIT_SHIFT]
            self.row_lse = self.row_lse * (shift - saved.row_lse).exp()
            self.column_lse = self.column_lse * (shift - saved.column_lse).exp()

    def write(self, rows: slice, g: Tensor, scratch: Tensor) -> None:
        """The gradient of a block of logits, into `g`."""
        weights, saved = self.weights, self.saved
        if self.has_exponentials:
            torch.add(self.row_lse[rows, None], self.column_lse, out=g).mul_(saved.cosines[rows])
        else:
            stored = self.problem.storage.cosines
            z = saved.cosines[rows] if stored else product(self.x[rows], self.y.T, out=scratch).mul_(self.scale)
            torch.sub(z, saved.row_lse[rows, None], out=g).exp_().mul_(self.row_lse[rows, None])
            torch.sub(z, saved.column_lse, out=scratch).exp_()
            g.addcmul_(scratch, self.column_lse)
        if self.kernel is not None:
            self._subtract_plans(rows, g, scratch)
        self._subtract_pairs(rows, g)
        if weights.row_uniform is not None and weights.column_uniform is not None:
            g.sub_(weights.row_uniform[rows, None]).sub_(weights.column_uniform)

    def _subtract_pairs(self, rows: slice, g: Tensor) -> None:
        row, column, own = self.weights.row_pair[rows], self.weights.column_pair, self.problem.rows_of(rows)
        groups = self.problem.hard.groups
        if groups is None:
            g.diagonal(own.start).sub_(row + column[own])
        else:
            subtract_own(g, groups, own, row, column)

    def _subtract_plans(self, rows: slice, g: Tensor, scratch: Tensor) -> None:
        assert self.kernel is not None
        domain, gibbs = self.kernel.domain, self.kernel.block(rows)
        row_scalings, column_scalings = _scalings(self.saved, domain)
        (image_rows, text_rows), (image_columns, text_columns) = row_scalings[..., rows].unbind(-2), column_scalings.unbind(-2)
        row_weight, column_weight = self.weights.row_plan[rows], self.weights.column_plan
        if domain is SCALING and self.kernel.similarity.groups is None:
            image_rows, text_columns = row_weight * image_rows, column_weight * text_columns
            torch.mul(image_rows.unsqueeze(1), image_columns, out=scratch).addcmul_(text_rows.unsqueeze(1), text_columns)
            # Where a diagonal is lowered or removed, row times column scaling can overflow: there the kernel comes first.
            offset, own = self.problem.rows_of(rows).start, self.problem.rows_of(rows)
            diagonal = gibbs.diagonal(offset)
            g.diagonal(offset).sub_(diagonal * image_rows * image_columns[own] + diagonal * text_rows * text_columns[own])
            scratch.diagonal(offset).zero_()
            g.addcmul_(gibbs, scratch, value=-1)
        else:
            g.sub_(domain.plan(gibbs, image_rows, image_columns).mul_(row_weight[:, None]))
            g.sub_(domain.plan(gibbs, text_rows, text_columns).mul_(column_weight))
