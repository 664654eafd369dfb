"""The sigmoid loss of `otter_losses.ops.sigmoid` and its gradient in plain torch; ``-l z`` is what is kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops.contract import computing, wanted
from otter_losses.ops.similarity import row_chunks
from otter_losses.ops.world import World


def _unlikely(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, rows: slice, start: int) -> Tensor:
    """``-l z`` of a row block: large where the answer is wrong."""
    z = (x[rows] @ y.T).mul_(scale).add_(bias)
    z.diagonal(start + rows.start).neg_()
    return z


def forward(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, keep: bool, world: World) -> tuple[Tensor, Tensor]:
    b, n, start = len(x), len(y), world.start
    x, y = x.to(computing(x)), y.to(computing(x))
    losses = x.new_empty(b)
    kept = _unlikely(x, y, scale, bias, slice(0, b), start) if keep else x.new_empty(0)
    for rows in row_chunks(b, n, x.device):
        unlikely = kept[rows] if keep else _unlikely(x, y, scale, bias, rows, start)
        losses[rows] = -F.logsigmoid(-unlikely).sum(1)
    return losses, kept


def backward(
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    kept: Tensor,
    wants_dx: bool,
    wants_dy: bool,
    world: World,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, n, start, dtype = len(x), len(y), world.start, x.dtype
    x, y = x.to(computing(x)), y.to(computing(x))
    dx, dy, dbias = wanted(x, wants_dx), wanted(y, wants_dy), x.new_zeros(())
    for rows in row_chunks(b, n, x.device):
        unlikely = kept[rows] if kept.numel() else _unlikely(x, y, scale, bias, rows, start)
        g = unlikely.sigmoid().mul_(gradient[rows, None])
        g.diagonal(start + rows.start).neg_()
        dbias += g.sum()
        if wants_dx:
            torch.mm(g, y, out=dx[rows])
        if wants_dy:
            dy.addmm_(g.T, x[rows], beta=min(rows.start, 1))  # the first block overwrites
    dscale = ((x * dx) if wants_dx else (y * dy)).sum()
    dy = world.scatter(dy.mul_(scale)) if wants_dy else dy
    return dx.mul_(scale).to(dtype), dy.to(dtype), dscale, dbias
