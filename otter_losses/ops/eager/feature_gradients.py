"""``dx = f G y``, ``dy = f G^T x`` and ``<x, G y>`` from row blocks of the logits' gradient as they come."""

import torch
from torch import Tensor

from otter_losses.ops.memory import wanted
from otter_losses.ops.problem import Student
from otter_losses.ops.products import HALVES, add_product, as_multiplied, parts
from otter_losses.ops.reduction import Reduction

GAIN = 2.0**12
"""Of G in float16: its entries are at most 8, and small ones stay above the least float16."""


class FeatureGradients:
    """Products with float32 sums; of half-precision features G goes in two parts of their dtype, so that nothing is lost."""

    def __init__(self, student: Student, wants_image: bool, wants_text: bool) -> None:
        self.student, self.wants_image, self.wants_text = student, wants_image, wants_text
        self.x, self.y = as_multiplied(student.image_features), as_multiplied(student.all_text_features)
        dtype = student.logit_scale.dtype
        self.dx, self.dy = wanted(self.x, wants_image, dtype), wanted(self.y, wants_text, dtype)  # dy: of all texts
        self.gain = GAIN if self.x.dtype == torch.float16 else 1.0

    def add(self, g: Tensor, rows: slice) -> None:
        """A row block of G, which is overwritten."""
        if self.gain != 1:
            g.mul_(self.gain)
        for index, part in enumerate(parts(g, self.x.dtype) if self.x.dtype in HALVES else [g]):
            if self.wants_image:
                add_product(self.dx[rows], part, self.y, first=index == 0)
            if self.wants_text:
                add_product(self.dy, part.T, self.x[rows], first=rows.start == index == 0)

    def finish(self, factor: Tensor, reduce: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Both gradients, of this rank's rows and f times the sums, and ``<x, G y>`` of them."""
        inner = (self.x * self.dx if self.wants_image else self.y * self.dy).sum()
        if self.gain != 1:
            inner, factor = inner / self.gain, factor / self.gain
        dy = reduce.reduce_scatter(self.dy.mul_(factor)) if self.wants_text else self.dy
        dtype = self.student.gradient_dtype
        return self.dx.mul_(factor).to(dtype), dy.to(dtype), inner
