"""Batches of features, of families that are easy and hard."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = ("random", "clustered", "duplicated", "outlier", "equal", "permutation")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where Triton's kernels run: on a GPU where there is one, else in the interpreter."""


def make_features(family: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Unit rows (n, d) of two modalities that agree about as well as a half-trained model's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image, text = normal(n, d), normal(n, d)
    if family == "random":
        text = image + text
    elif family == "clustered":
        centres = normal(3, d)[torch.randint(3, (n,), generator=generator)]
        image, text = centres + 0.1 * image, centres + 0.2 * text
    elif family == "duplicated":
        source = torch.randint(max(n // 2, 1), (n,), generator=generator)
        image, text = image[source], (image + text)[source]
    elif family == "outlier":
        centre = normal(1, d)
        image, text = centre + 0.05 * image, centre + 0.05 * text
        image[0] = -centre[0]
    elif family == "equal":
        image = text = normal(1, d).expand(n, d)
    elif family == "permutation":
        text = image[torch.randperm(n, generator=generator)] + 0.05 * text
    else:
        raise ValueError(family)
    return F.normalize(image, dim=1).to(dtype), F.normalize(text, dim=1).to(dtype)


@dataclass(frozen=True)
class Batch:
    """Leaves that require a gradient, and a teacher."""

    x: Tensor
    y: Tensor
    scale: Tensor
    v: Tensor
    t: Tensor

    def to(self, dtype: torch.dtype) -> "Batch":
        """The same numbers, rounded to the dtype, as fresh leaves; the scale keeps its own."""
        x, y = (each.detach().to(dtype).requires_grad_() for each in (self.x, self.y))
        scale = self.scale.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
        return Batch(x, y, scale, self.v.to(dtype), self.t.to(dtype))

    def gradients(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, scale = torch.autograd.grad(value, (self.x, self.y, self.scale))
        return x, y, scale

    def teacher(self) -> dict[str, Tensor]:
        return {"dist_image_features": self.v, "dist_text_features": self.t}


def make_batch(
    n: int, d: int, seed: int = 0, scale: float = 14.3, family: str = "random", dtype: torch.dtype = torch.float64
) -> Batch:
    """Student features of the family, rounded to float32 so that float32 and float64 see one problem; a teacher d + 3 wide."""
    x, y = (each.float() for each in make_features(family, n, d, seed))
    v, t = (each.float() for each in make_features(family, n, d + 3, seed + 1))
    return Batch(x, y, torch.tensor(scale), v, t).to(dtype)


def on_device(batch: Batch, dtype: torch.dtype = torch.float32) -> Batch:
    tensors = (batch.x, batch.y, batch.scale, batch.v, batch.t)
    return Batch(*(tensor.detach().to(DEVICE, dtype).requires_grad_(tensor.requires_grad) for tensor in tensors))
