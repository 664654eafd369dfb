"""Features to compute losses of, made up: what speed, accuracy and scaling are measured on."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

Value = Callable[[], Tensor]
"""Computes a loss of a batch, ready to be differentiated."""


class Batch:
    """Student features with gradient, a teacher's without, and a learned scale: N unit vectors of width D that form clusters.

    The features are of the dtype asked for; the scale, as it is learned, in float32. `amp` is the dtype of the autocast region
    that the loss is called in, if it is.
    """

    def __init__(
        self,
        pairs: int,
        width: int,
        device: str,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        amp: torch.dtype | None = None,
    ) -> None:
        self.amp = amp
        generator = torch.Generator(device).manual_seed(seed)
        centres = torch.randn(max(pairs // 16, 1), width, generator=generator, device=device)

        def features() -> Tensor:
            noise = torch.randn(pairs, width, generator=generator, device=device)
            return F.normalize(centres[torch.arange(pairs, device=device) % len(centres)] + noise, dim=-1).to(dtype)

        self.x, self.y = features().requires_grad_(), features().requires_grad_()
        self.v, self.t = features(), features()
        self.scale = torch.tensor(14.3, device=device, requires_grad=True)

    def autocast(self) -> AbstractContextManager[None]:
        """How eager losses are run: half precision in products, float32 in exponentials and sums, unless all is to be float32."""
        dtype = self.amp or self.x.dtype
        return torch.autocast(self.x.device.type, dtype, enabled=dtype != torch.float32)

    def inside(self, value: Value) -> Value:
        """A value computed in the region that the loss is called in."""
        if self.amp is None:
            return value

        def within() -> Tensor:
            with self.autocast():
                return value()

        return within


class Problems:
    """Scores of so many transport problems of a size, (count, size, size)."""

    def __init__(self, size: int, count: int, device: str, seed: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.scores = torch.rand(count, size, size, generator=generator, device=device)
