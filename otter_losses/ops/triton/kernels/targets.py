"""Both plans of a batch's transport, written out."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import log_sum, merged, negated_log, plan_tile
from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC, gibbs_tile
from otter_losses.ops.triton.launch import Kernel


@triton.jit
def write_plans(
    gibbs,
    params,
    image_columns,
    text_rows,
    text_columns,
    text_plan,
    n,
    KIND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The image problem's plan in place of a stored kernel, its last row normalisation included, and the text problem's."""
    row = tl.program_id(0) * BM
    i = row + tl.arange(0, BM)
    u_text = tl.load(text_rows + i, i < n, other=0.0)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        tile = gibbs_tile(gibbs, params, False, row, first, n, n, n, KIND, False, False, BM, BN)
        v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
        if KIND == LOGARITHMIC:
            top, total = merged(top, total, tile + v, 1)
        else:
            total += tl.sum(tile * v, 1)
    u = negated_log(log_sum(top, total)) if KIND == LOGARITHMIC else 1.0 / total
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < n)[:, None] & (j < n)[None, :]
        tile = gibbs_tile(gibbs, params, False, row, first, n, n, n, KIND, False, False, BM, BN)
        v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
        v_text = tl.load(text_columns + j, j < n, other=0.0)[None, :]
        place = i.to(tl.int64)[:, None] * n + j[None, :]
        tl.store(text_plan + place, plan_tile(tile, u_text[:, None], v_text, KIND), mask)
        tl.store(gibbs + place, plan_tile(tile, u[:, None], v, KIND), mask)


WRITE_PLANS = Kernel(write_plans, ({"BM": 4, "BN": 256, "num_warps": 4},), reads=("K", "K"), writes=("K", "K"))
