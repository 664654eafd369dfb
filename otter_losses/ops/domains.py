"""The two ways to hold a transport kernel: as numbers (`Scaling`) or as their logarithms (`Logarithmic`).

A Sinkhorn-Knopp step is the same sentence in both: add up a row, match the sum to its marginal. Everything that solves a
transport problem is written once against this vocabulary. All functions take leading batch dimensions.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from otter_losses.ops.reduction import Reduction


class Domain(Protocol):
    """What a solver needs to know about how the kernel is held.

    Scalings and sums are opaque to it but for their last dimension, that of rows (..., M) or columns (..., N), and so is the
    kernel, (..., M, N), once it is opened.
    """

    def open(self, held: Tensor) -> Tensor:
        """The kernel, of a matrix that is held in memory."""

    def enter(self, values: Tensor) -> Tensor:
        """Bring plain non-negative numbers (marginals) into the domain."""

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        """``sum_j K_ij v_j`` for kernel (..., M, N) and column scalings (..., N)."""

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        """``sum_i u_i K_ij`` for kernel (..., M, N) and row scalings (..., M)."""

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two partial sums."""

    def all_reduce(self, partial: Tensor, reduce: Reduction) -> Tensor:
        """Add the partial sums of all ranks."""

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        """The scaling that turns `sums` into `marginal`; nothing where the marginal or the sum is zero."""

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Of two vectors, as plain numbers."""

    def logarithm(self, scaling: Tensor) -> Tensor:
        """In one float."""

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """``u_i K_ij v_j`` as plain numbers."""


class Scaling:
    """Plain numbers. Safe while the kernel's logarithms span less than `safe_range`, which leaves no sum at zero."""

    def open(self, held: Tensor) -> Tensor:
        return held

    def enter(self, values: Tensor) -> Tensor:
        return values

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        return kernel @ columns if columns.dim() == 1 else (kernel @ columns.unsqueeze(-1)).squeeze(-1)

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        return rows @ kernel if rows.dim() == 1 else (rows.unsqueeze(-2) @ kernel).squeeze(-2)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right

    def all_reduce(self, partial: Tensor, reduce: Reduction) -> Tensor:
        return reduce.all_reduce_sum_(partial)

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        return marginal / sums

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right

    def logarithm(self, scaling: Tensor) -> Tensor:
        return scaling.log()

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return (kernel * rows.unsqueeze(-1)).mul_(columns.unsqueeze(-2))


@dataclass(frozen=True, eq=False)
class Logarithmic:
    """Logarithms. Safe for any spread, exact for any epsilon, and differentiable by autograd; several times the cost.

    One float as large as ``score / epsilon`` would round the plan by factors of ``exp(6e-8 score / epsilon)``. So scalings, sums
    and the opened kernel are sums of two floats, (2, ...). First parts are multiples of one power of two, and sums of them have
    no rounding error, however large they are: they do the same with maxima that the whole does with sums. Second parts are what
    is left, small numbers. Gradients flow through these, to which the first are constants.

    Attributes:
        pivot: larger than any sum of first parts by as much as the largest logit, (..., 1, 1) or 0-D.
    """

    pivot: Tensor

    @classmethod
    def up_to(cls, largest: Tensor) -> "Logarithmic":
        """For logits, and potentials to start from, of at most that magnitude."""
        return cls(5 * largest)  # the maxima converge within one iteration, and their sums with logits stay within 4 times that

    def hold(self, logits: Tensor) -> Tensor:
        """Logits as they may be stored: those so large that their second parts would not be small are without them; in place."""
        is_exact = self.pivot <= 16 / torch.finfo(logits.dtype).eps
        first = torch.where(is_exact, logits.detach(), self.maximum(logits))
        if is_tracked(logits) or is_tracked(self.pivot):
            return logits + (first - logits.detach()).nan_to_num(nan=0.0)
        return logits.copy_(first)

    def open(self, held: Tensor) -> Tensor:
        """The kernel, (2, ..., M, N)."""
        first = self.maximum(held)
        if is_tracked(held):
            return torch.stack((first, (held - first).nan_to_num(nan=0.0)))  # of nothing less nothing, NaN
        kernel = first.new_empty(2, *first.shape)
        torch.sub(held, kernel[0].copy_(first), out=kernel[1]).nan_to_num_(nan=0.0)
        return kernel

    def maximum(self, logits: Tensor) -> Tensor:
        """The first part of logits, or of potentials no larger than they."""
        return (logits.detach() + self.pivot).sub_(self.pivot)

    def enter(self, values: Tensor) -> Tensor:
        positive = values > 0
        maximum = torch.zeros_like(values).masked_fill(~positive, -torch.inf)
        return torch.stack((maximum, torch.where(positive, values, torch.ones_like(values)).log()))

    def row_sums(self, kernel: Tensor, columns: Tensor) -> Tensor:
        return self._log_sum(kernel, columns.unsqueeze(-2), -1)

    def column_sums(self, kernel: Tensor, rows: Tensor) -> Tensor:
        return self._log_sum(kernel, rows.unsqueeze(-1), -2)

    def _log_sum(self, kernel: Tensor, scalings: Tensor, dim: int) -> Tensor:
        first, second = kernel.unbind()
        sums = first.detach() + scalings[0].detach()
        if sums.shape[dim] == 0:
            top = sums.new_full(sums.sum(dim, keepdim=True).shape, -torch.inf)
        else:
            top = sums.amax(dim, keepdim=True)
        sums.sub_(_or_zero(top))
        if is_tracked(second) or is_tracked(scalings):
            sums.masked_fill_(top == -torch.inf, 0.0)  # of nothing the gradient is zero rather than NaN
            logarithms = (second + scalings[1]).add_(sums)
        else:
            logarithms = sums.add_(second).add_(scalings[1])
        top = top.squeeze(dim)
        return torch.stack((top, _settled(top, logarithms.logsumexp(dim))))

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        top = torch.maximum(left[0], right[0])
        return torch.stack((top, _settled(top, torch.logaddexp(_about(top, left), _about(top, right)))))

    def all_reduce(self, partial: Tensor, reduce: Reduction) -> Tensor:
        top = reduce.all_reduce_max(partial[0])
        return torch.stack((top, _settled(top, reduce.all_reduce_logsumexp_(_about(top, partial)))))

    def match(self, marginal: Tensor, sums: Tensor) -> Tensor:
        possible = (marginal[0] > -torch.inf) & (sums[0] > -torch.inf)
        maximum, rest = (marginal - sums.where(possible, torch.zeros_like(sums))).unbind()
        maximum = maximum.where(possible, torch.full_like(maximum, -torch.inf))
        return torch.stack((maximum, _settled(maximum, rest)))

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return self.logarithm(left + right).exp()

    def logarithm(self, scaling: Tensor) -> Tensor:
        return torch.add(scaling[0], scaling[1])

    def plan(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        first, second = kernel.unbind()
        exponents = first.detach() + rows[0].detach().unsqueeze(-1)
        exponents.add_(columns[0].detach().unsqueeze(-2))
        row_rest, column_rest = rows[1].unsqueeze(-1), columns[1].unsqueeze(-2)
        if any(is_tracked(rest) for rest in (second, rows, columns)):
            return (second + row_rest).add_(column_rest).add_(exponents).exp()
        return exponents.add_(second).add_(row_rest).add_(column_rest).exp_()


def _about(top: Tensor, logarithm: Tensor) -> Tensor:
    """A logarithm in one float, less a maximum."""
    return logarithm[0] - _or_zero(top) + logarithm[1]


def _settled(maximum: Tensor, rest: Tensor) -> Tensor:
    """The second part of a logarithm: of nothing it is 0."""
    return rest.masked_fill(maximum == -torch.inf, 0.0)


def _or_zero(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum == -torch.inf, 0.0)


SCALING = Scaling()


def has_numbers(tensor: Tensor) -> bool:
    """Whether there are numbers to look at: not where somebody traces, in fake and meta tensors, in torch.func's transforms."""
    return not (
        torch.compiler.is_compiling()
        or get_proxy_mode() is not None
        or tensor.device.type == "meta"
        or isinstance(tensor, (FakeTensor, FunctionalTensor))
        or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        or torch._C._functorch.is_legacy_batchedtensor(tensor)  # of autograd's is_grads_batched
    )


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation goes through it."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def is_tracked(tensor: Tensor) -> bool:
    """Whether derivatives of it may be asked for, in whatever mode; memory that holds it is then not reused."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or not has_numbers(tensor) or has_tangent(tensor)


def reads_freely(tensor: Tensor) -> bool:
    """Whether a look at the tensor's numbers costs nothing. Elsewhere than on the CPU it would stop the device at every step."""
    return tensor.device.type == "cpu" and has_numbers(tensor)


def safe_range(dtype: torch.dtype) -> float:
    """The spread of exponents, max minus min, that `Scaling` survives: half of what the type's exponent can hold.

    float32 holds exponents of e from -87 (normal) to 88, and scalings take up to the kernel's spread again on the other
    side, so 80 is the limit; measured without a failure up to it and with NaN from 90 on.
    """
    return 80.0 if dtype == torch.float32 else 640.0


def largest_logit(dtype: torch.dtype) -> float:
    """In magnitude, far enough within the type for sums of logits and potentials."""
    return torch.finfo(dtype).max / 2**20


NEARLY_NORMALISED = 1.05
"""By how much features that are to have unit norm may stretch their logits' spread beyond `safe_range`."""
