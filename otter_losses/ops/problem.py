"""What the two operators hand to a backend, and what they get back."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from otter_losses.ops import dispatch
from otter_losses.ops.memory import Storage
from otter_losses.ops.similarity import Similarity
from otter_losses.ops.targets import HardTargets, Mean, SoftTargets


class Student(NamedTuple):
    """What the logits ``z = s x y^T`` are made of.

    Attributes:
        image_features: this rank's x, (b, D), as it is multiplied.
        text_features: this rank's y, (b, D), of the same dtype.
        all_text_features: y of all ranks, (N, D).
        logit_scale: s, 0-D, of the computing dtype.
        originals: x and y before they were rounded for the products: gradients are theirs, in their dtype. None where nothing
            was rounded.
    """

    image_features: Tensor
    text_features: Tensor
    all_text_features: Tensor
    logit_scale: Tensor
    originals: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(
        cls,
        image_features: Tensor,
        text_features: Tensor,
        image_operand: Tensor | None,
        text_operand: Tensor | None,
        all_text_features: Tensor | None,
        logit_scale: Tensor,
    ) -> "Student":
        """Of what operators are given: no operands where they are the features, not all texts where they are this rank's."""
        x, y, originals = image_features, text_features, None
        if image_operand is not None and text_operand is not None:
            x, y, originals = image_operand, text_operand, (image_features, text_features)
        return cls(x, y, y if all_text_features is None else all_text_features, logit_scale, originals)

    def differentiated(self) -> tuple[Tensor, Tensor]:
        """x and y as autograd knows them."""
        return self.originals or (self.image_features, self.text_features)

    @property
    def gradient_dtype(self) -> torch.dtype:
        return self.differentiated()[0].dtype

    def at_scale(self, logit_scale: Tensor) -> "Student":
        """The same features with another scale."""
        return Student(self.image_features, self.text_features, self.all_text_features, logit_scale, self.originals)

    def within_rank(self) -> "Student":
        """The local pairs alone."""
        return Student(self.image_features, self.text_features, self.text_features, self.logit_scale, self.originals)


@dataclass(frozen=True, eq=False)
class Problem:
    """The local rows of a batch.

    Attributes:
        student: the features and their scale.
        hard: the given targets.
        soft: a teacher's targets, if any.
        mean: the means of the cross entropies that are wanted, from kernels alone; None for those of every pair.
        rows: this rank's rows, of all N.
        storage: what the forward keeps.
        backend: as `dispatch.resolve` returned it.
    """

    student: Student
    hard: HardTargets
    soft: SoftTargets | None
    mean: Mean | None
    rows: slice
    storage: Storage
    backend: str

    @property
    def similarity(self) -> Similarity | None:
        """The teacher's; the student's own features stand in for a teacher that has none."""
        if self.soft is None:
            return None
        return self.soft.similarity(self.student.image_features, self.student.all_text_features, self.rows)

    def rows_of(self, block: slice) -> slice:
        """A row block's rows, of all N."""
        return slice(self.rows.start + block.start, self.rows.start + block.stop)


class Scalar(IntEnum):
    """Entries of `Saved.scalars`: numbers that the forward found and left on the device.

    The first four are what kernels read a Gibbs kernel with: ``1 / epsilon``, the shift about which its exponentials are taken,
    the step of its codes in octaves, and what its diagonal is lowered by. Then whether it is held as its logarithm; and the
    shift of the student's exponentials, and whether they stand in place of its cosines.
    """

    INV_EPSILON = 0
    GIBBS_SHIFT = 1
    CODE_STEP = 2
    DIAGONAL_LOWERING = 3
    GIBBS_IS_LOGARITHMIC = 4
    LOGIT_SHIFT = 5
    HAS_EXPONENTIALS = 6


class Saved(NamedTuple):
    """What the forward keeps for the backward.

    Attributes:
        row_lse: log-sum-exps of the local rows of the logits, (b,).
        column_lse: of all columns, over the rows of all ranks, (N,).
        row_scalings: of the transport of image to text and of text to image, local rows, (parts, 2, b); empty without a teacher.
            One part, plain numbers or logarithms; of eager torch two, for `domains.Logarithmic`, of which plain numbers use one.
        column_scalings: the same of all columns, (parts, 2, N).
        gibbs: local rows of the teacher's Gibbs kernel, (b, N); empty where `Storage` does not keep it.
        cosines: those of the student, (b, N); of eager torch its logits or their exponentials. Empty where `Storage` keeps none.
        scalars: see `Scalar`; empty of kernels without a teacher.
        slopes: of a mean of generalised cross entropies those with respect to the cross entropies, (2, b); else empty.
    """

    row_lse: Tensor
    column_lse: Tensor
    row_scalings: Tensor
    column_scalings: Tensor
    gibbs: Tensor
    cosines: Tensor
    scalars: Tensor
    slopes: Tensor

    @classmethod
    def unwritten(
        cls, problem: Problem, row_lse: Tensor | None = None, column_lse: Tensor | None = None, matrices: bool = True
    ) -> "Saved":
        """Memory for all that is not given; of the matrices only where asked."""
        like, storage = problem.student.logit_scale, problem.storage
        b, n = problem.student.image_features.shape[0], problem.student.all_text_features.shape[0]
        has_soft_targets = problem.soft is not None
        gibbs = storage.gibbs if matrices else None
        fused = dispatch.is_fused(problem.backend)
        parts, vectors = (1, like.new_empty) if fused else (2, like.new_zeros)
        return cls(
            row_lse=like.new_empty(b) if row_lse is None else row_lse,
            column_lse=like.new_empty(n) if column_lse is None else column_lse,
            row_scalings=vectors(parts, 2, b if has_soft_targets else 0),
            column_scalings=vectors(parts, 2, n if has_soft_targets else 0),
            gibbs=like.new_empty(0) if gibbs is None else like.new_empty(b, n, dtype=gibbs),
            cosines=like.new_empty(b, n) if matrices and storage.cosines else like.new_empty(0),
            scalars=vectors(len(Scalar) if has_soft_targets or not fused else 0),
            slopes=like.new_empty(2, b if problem.mean is not None and problem.mean.q else 0),
        )


class CrossEntropies(NamedTuple):
    """Of every local pair, of the softmaxes of its row and of its column, against the given and against the soft targets: (2, b).

    Of `Mean` the means, 0-D. Those against soft targets that are not there are of no account.
    """

    given: Tensor
    soft: Tensor


class CrossEntropyGradients(NamedTuple):
    """Of `CrossEntropies`; None where nothing depends on them."""

    given: Tensor | None
    soft: Tensor | None


class Gradients(NamedTuple):
    """Of this rank's features, (b, D), in `Student.gradient_dtype`; its share of the scale's, 0-D. Empty where none is wanted."""

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor


class SigmoidProblem(NamedTuple):
    """The local rows of a batch of questions.

    Attributes:
        student: the features and their scale.
        logit_bias: 0-D, of the computing dtype.
        rows: this rank's rows, of all N.
        keeps_logits: whether the forward keeps what the backward would recompute, (b, N).
        groups: `Groups.ids`; None where each pair is its own positive alone.
    """

    student: Student
    logit_bias: Tensor
    rows: slice
    keeps_logits: bool
    groups: Tensor | None = None


class SigmoidGradients(NamedTuple):
    """`Gradients`, and this rank's share of the bias's, 0-D."""

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
