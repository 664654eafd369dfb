"""The core of the sigmoid loss: the summed loss of every row of questions, N a batch.

    row_loss_i = sum_j -log sigmoid(l_ij z_ij),   z = s x y^T + b,   l_ii = 1 and l_ij = -1

For an incoming gradient ``a`` the gradient of the logits is ``G_ij = -l_ij a_i sigmoid(-l_ij z_ij)``; then ``dx = s G y``,
``dy = s G^T x``, ``ds = <x, G y>``, ``db = sum G``. ``-l z`` is kept from forward to backward where it fits `max_memory`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.soft_target import refuse_second_derivative, stores, wanted, wanted_gradients


def _unlikely(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, rows: slice) -> Tensor:
    """``-l z`` of a row block: large where the answer is wrong."""
    z = (x[rows] @ y.T).mul_(scale).add_(bias)
    z.diagonal(rows.start).neg_()
    return z


@torch.library.custom_op("otter_losses::sigmoid", mutates_args=())
def sigmoid(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, max_memory: int, fused: bool) -> tuple[Tensor, Tensor]:
    """Row losses (N,) of features x, y (N, D), 0-D scale and bias; and ``-l z`` (fused: ``x y^T``), (N, N), empty if not kept."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        dense = stores(n, 1, x.element_size(), max_memory)
        losses = x.new_empty(n)
        if fused:
            from otter_losses.ops.fused import passes

            kept = x @ y.T if dense else x.new_empty(0)
            for rows in row_chunks(n, n, x.device):
                passes.sigmoid_losses(kept[rows] if dense else x[rows] @ y.T, scale, bias, rows, losses[rows])
            return losses, kept
        kept = _unlikely(x, y, scale, bias, slice(0, n)) if dense else x.new_empty(0)
        for rows in row_chunks(n, n, x.device):
            unlikely = kept[rows] if dense else _unlikely(x, y, scale, bias, rows)
            losses[rows] = -F.logsigmoid(-unlikely).sum(1)
        return losses, kept


@sigmoid.register_fake
def _(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, max_memory: int, fused: bool) -> tuple[Tensor, Tensor]:
    n = x.shape[0]
    dense = stores(n, 1, x.element_size(), max_memory)
    return x.new_empty(n), x.new_empty(n, n) if dense else x.new_empty(0)


@torch.library.custom_op("otter_losses::sigmoid_backward", mutates_args=())
def sigmoid_backward(
    gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, kept: Tensor, fused: bool, wants_dx: bool, wants_dy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, scale and bias for the gradient (N,) of the row losses; see `soft_target_backward`."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        n = len(x)
        gradient = gradient.contiguous()  # a sum's gradient is one number seen N times
        dx, dy, dbias = wanted(x, wants_dx), wanted(y, wants_dy), x.new_zeros(())
        for rows in row_chunks(n, n, x.device):
            if fused:
                from otter_losses.ops.fused import passes

                g = x[rows] @ y.T if not kept.numel() else torch.empty_like(kept[rows])
                dbias += passes.sigmoid_gradient(kept[rows] if kept.numel() else g, scale, bias, gradient, rows, g)
            else:
                unlikely = kept[rows] if kept.numel() else _unlikely(x, y, scale, bias, rows)
                g = unlikely.sigmoid().mul_(gradient[rows, None])
                g.diagonal(rows.start).neg_()
                dbias += g.sum()
            if wants_dx:
                torch.mm(g, y, out=dx[rows])
            if wants_dy:
                dy.addmm_(g.T, x[rows], beta=min(rows.start, 1))  # the first block overwrites
        dscale = ((x * dx) if wants_dx else (y * dy)).sum()
        return dx.mul_(scale), dy.mul_(scale), dscale, dbias


@sigmoid_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, kept: Tensor, fused: bool, wants_dx: bool, wants_dy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return wanted(x, wants_dx), wanted(y, wants_dy), x.new_empty(()), x.new_empty(())


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.fused = inputs[5]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 6
    wants_dx, wants_dy = wanted_gradients(ctx)
    dx, dy, dscale, dbias = sigmoid_backward(gradient, *ctx.saved_tensors, ctx.fused, wants_dx, wants_dy)
    return dx if wants_dx else None, dy if wants_dy else None, dscale, dbias, None, None


sigmoid.register_autograd(_backward, setup_context=_save)
sigmoid_backward.register_autograd(refuse_second_derivative)
