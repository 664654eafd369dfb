"""The student's logits as kernels compute them."""

from dataclasses import dataclass

from torch import Tensor

from otter_losses.ops import products
from otter_losses.ops.problem import Student
from otter_losses.ops.products import HALVES
from otter_losses.ops.reduction import Reduction
from otter_losses.ops.triton.features import Split, split
from otter_losses.ops.triton.gemm import TileSource


@dataclass(frozen=True, eq=False)
class Logits:
    """Tiles of a product, and what makes logits of them.

    Attributes:
        source: features of the rows and of the columns; float32 ones in parts, where kernels compute tiles.
        scale: what the products are multiplied with, 0-D.
        parts: float32 features in two planes; None where there are none.
    """

    source: TileSource
    scale: Tensor
    parts: Split | None

    @classmethod
    def of(cls, student: Student, reduce: Reduction) -> "Logits":
        x, y, scale = student.image_features, student.all_text_features, student.logit_scale
        if x.dtype in HALVES or not products.computes_tiles(x.device, x.dtype):
            return cls(TileSource.of(x, y), scale, None)
        parts = split(x, y, scale, 2, reduce)
        return cls(TileSource.of(parts.x, parts.y), parts.scale, parts)

    def split(self, student: Student, reduce: Reduction) -> Split | None:
        """The features as they meet the logits' gradient in float16; None where that stays float32."""
        x, y = student.image_features, student.all_text_features
        return split(x, y, student.logit_scale, 1, reduce) if x.dtype in HALVES else self.parts
