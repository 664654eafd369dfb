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

    The features are of the dtype asked for; the scale, as it is learned, in float32.
    """

    def __init__(self, pairs: int, width: int, device: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        centres = torch.randn(max(pairs // 16, 1), width, generator=generator, device=device)

        def features() -> Tensor:
            noise = torch.randn(pairs, width, generator=generator, device=device)
            return F.normalize(centres[torch.arange(pairs, device=device) % len(centres)] + noise, dim=-1).to(dtype)

        self.x, self.y = features().requires_grad_(), features().requires_grad_()
        self.v, self.t = features(), features()
        self.scale = torch.tensor(14.3, device=device, requires_grad=True)

    def autocast(self) -> AbstractContextManager[None]:
        """How eager losses are run on half-precision features: products in that dtype, exponentials and sums in float32."""
        return torch.autocast(self.x.device.type, self.x.dtype, enabled=self.x.dtype != torch.float32)
