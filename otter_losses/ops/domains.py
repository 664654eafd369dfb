"""The two ways to hold a transport kernel: as numbers (`Scaling`) or as their logarithms (`Logarithmic`).

A Sinkhorn-Knopp step is the same sentence in both: add up a row, match the sum to its marginal. Everything that solves a
transport problem is written once against this vocabulary. All functions take leading batch dimensions.
"""

from typing import Protocol

import torch
from torch import Tensor


class Domain(Protocol):
    """What a solver needs to know about how the kernel is held."""

    def enter(self, values: Tensor) -> Tensor:
        """Bring plain non-negative numbers (marginals) into the domain."""

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        """``sum_j K_ij v_j`` for kernel (..., M, N) and column scalings (..., N)."""

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        """``sum_i u_i K_ij`` for kernel (..., M, N) and row scalings (..., M)."""

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two partial sums."""

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        """The scaling that turns `sums` into `marginal`; nothing where the marginal or the sum is zero."""

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """``u_i K_ij v_j`` as plain numbers."""


class Scaling:
    """Plain numbers. Safe while the kernel's logarithms span less than `safe_range`, which leaves no sum at zero."""

    def enter(self, values: Tensor) -> Tensor:
        return values

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        return kernel @ columns if columns.dim() == 1 else (kernel @ columns.unsqueeze(-1)).squeeze(-1)

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        return rows @ kernel if rows.dim() == 1 else (rows.unsqueeze(-2) @ kernel).squeeze(-2)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        return marginal / sums

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return (kernel * rows.unsqueeze(-1)).mul_(columns.unsqueeze(-2))


class Logarithmic:
    """Logarithms. Safe for any spread, and differentiable by autograd; several times the cost."""

    def enter(self, values: Tensor) -> Tensor:
        positive = values > 0
        return torch.where(positive, values, torch.ones_like(values)).log().masked_fill(~positive, -torch.inf)

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        return _log_sum(kernel + columns.unsqueeze(-2), -1)

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        return _log_sum(kernel + rows.unsqueeze(-1), -2)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.logaddexp(left, right)

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        possible = (marginal > -torch.inf) & (sums > -torch.inf)
        finite_sums = torch.where(possible, sums, torch.zeros_like(sums))
        return torch.where(possible, marginal - finite_sums, torch.full_like(sums, -torch.inf))

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return (kernel + rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp()


def _log_sum(values: Tensor, dim: int) -> Tensor:
    """``logsumexp``, with a gradient of zero rather than NaN where every value is -inf."""
    if not values.requires_grad:
        return values.logsumexp(dim)
    empty = (values == -torch.inf).all(dim)
    return values.masked_fill(empty.unsqueeze(dim), 0.0).logsumexp(dim).masked_fill(empty, -torch.inf)


SCALING = Scaling()
LOGARITHMIC = Logarithmic()


def reads_freely(tensor: Tensor) -> bool:
    """Whether a look at the tensor's numbers costs nothing. Elsewhere than on the CPU it would stop the device at every step."""
    return tensor.device.type == "cpu"


def safe_range(dtype: torch.dtype) -> float:
    """The spread of exponents, max minus min, that `Scaling` survives: half of what the type's exponent can hold.

    float32 holds exponents of e from -87 (normal) to 88, and scalings take up to the kernel's spread again on the other
    side, so 80 is the limit; measured without a failure up to it and with NaN from 90 on.
    """
    return 80.0 if dtype == torch.float32 else 640.0
