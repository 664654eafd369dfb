"""The core of the sigmoid loss: two vectors of the logits ``z = s x y^T + b``.

    row_softplus_i = sum_j log(1 + exp z_ij)      pair_i = z_ii

Since ``-log sigmoid(z) = softplus(z) - z``, the loss of labels +1 on the diagonal and -1 off it is
``mean(row_softplus - pair)``. The gradient of the logits is ``G_ij = a_i sigmoid(z_ij) + c_i delta_ij`` for incoming ``a, c``;
then ``dx = s G y``, ``dy = s G^T x``, ``ds = <x, G y>``, ``db = sum G``. No matrix is kept where one does not fit `max_memory`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.soft_target import refuse_second_derivative, stores

ROW_SOFTPLUS, PAIR = range(2)


@torch.library.custom_op("otter_losses::sigmoid", mutates_args=())
def sigmoid(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, max_memory: int) -> tuple[Tensor, Tensor]:
    """Statistics (2, N) of features x, y (N, D), 0-D scale and bias, and the logits (N, N), empty if not kept."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        xs = x * scale
        logits = (xs @ y.T).add_(bias) if stores(n, 1, x.element_size(), max_memory) else None
        statistics = x.new_empty(2, n)
        for rows in row_chunks(n, n, x.device):
            z = (xs[rows] @ y.T).add_(bias) if logits is None else logits[rows]
            statistics[ROW_SOFTPLUS, rows] = F.softplus(z).sum(1)
            statistics[PAIR, rows] = z.diagonal(rows.start)
        return statistics, x.new_empty(0) if logits is None else logits


@sigmoid.register_fake
def _(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, max_memory: int) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    kept = stores(n, 1, x.element_size(), max_memory)
    return x.new_empty(2, n), x.new_empty(n, n) if kept else x.new_empty(0)


@torch.library.custom_op("otter_losses::sigmoid_backward", mutates_args=())
def sigmoid_backward(
    gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, scale and bias for the gradient (2, N) of the statistics."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        xs = x * scale
        dx, dy, dbias = torch.empty_like(x), torch.zeros_like(y), x.new_zeros(())
        for rows in row_chunks(n, n, x.device):
            z = logits[rows] if logits.numel() else (xs[rows] @ y.T).add_(bias)
            g = z.sigmoid().mul_(gradient[ROW_SOFTPLUS, rows, None])
            g.diagonal(rows.start).add_(gradient[PAIR, rows])
            dbias += g.sum()
            torch.mm(g, y, out=dx[rows])
            dy.addmm_(g.T, xs[rows])
        dscale = (x * dx).sum()
        return dx.mul_(scale), dy, dscale, dbias


@sigmoid_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y), x.new_empty(()), x.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    return (*sigmoid_backward(gradient, *ctx.saved_tensors), None)


sigmoid.register_autograd(_backward, setup_context=_save)
sigmoid_backward.register_autograd(refuse_second_derivative)
