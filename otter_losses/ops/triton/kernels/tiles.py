"""How the transport kernel ``K = exp(L - shift)`` is held, and how a tile of it is read.

PLAIN holds ``K`` in float32, LOGARITHMIC holds ``L`` in float32, for potentials that add where scalings would multiply. CODES
holds ``log K`` in 16 bits, in equal steps over its range: half the memory of float32, and an error of K of at most half a step
(3e-4 at a spread of 40), where K in bfloat16 would have 4e-3 and L in bfloat16 more than 1e-1. RAW is a product that has still
to become L: times a gain, its diagonal lowered. `numbers` holds gain, shift, step (in octaves) and what the diagonal is lowered
by.
"""

import triton
import triton.language as tl

PLAIN = tl.constexpr(0)
LOGARITHMIC = tl.constexpr(1)
CODES = tl.constexpr(2)
LAST_CODE = tl.constexpr(65535)
OCTAVES = tl.constexpr(1.4426950408889634)
"""Of an exponent of e."""


@triton.jit
def logits(products, numbers, i, j, start, n, mask):
    """A tile of ``L`` from its product; nothing beyond the edge."""
    value = tl.load(products + i.to(tl.int64)[:, None] * n + j[None, :], mask, other=0.0) * tl.load(numbers)
    value = tl.where((i + start)[:, None] == j[None, :], value - tl.load(numbers + 3), value)
    return tl.where(mask, value, float("-inf"))


@triton.jit
def code_of(value, numbers):
    """The code of a logit, 1 to 65535 up to the shift; 0 is nothing."""
    code = tl.floor((value - tl.load(numbers + 1)) * OCTAVES / tl.load(numbers + 2) + (LAST_CODE + 0.5))
    code = tl.minimum(tl.maximum(code, 1.0), LAST_CODE + 0.0)
    return tl.where(value == float("-inf"), 0, code.to(tl.int32))


@triton.jit
def decoded(code, numbers):
    return tl.where(code > 0, tl.exp2((code - LAST_CODE).to(tl.float32) * tl.load(numbers + 2)), 0.0)


@triton.jit
def held(k, numbers, i, j, start, n, mask, KIND: tl.constexpr, RAW: tl.constexpr):
    """A tile of ``K``, or of ``L`` where LOGARITHMIC."""
    if RAW:
        tile = logits(k, numbers, i, j, start, n, mask)
        if KIND != LOGARITHMIC:
            tile = tl.exp(tile - tl.load(numbers + 1))
    else:
        place = k + i.to(tl.int64)[:, None] * n + j[None, :]
        if KIND == CODES:
            tile = decoded(tl.load(place, mask, other=-32768).to(tl.int32) + 32768, numbers)
        elif KIND == LOGARITHMIC:
            tile = tl.load(place, mask, other=float("-inf"))
        else:
            tile = tl.load(place, mask, other=0.0)
    return tile


@triton.jit
def merged(top, total, values, AXIS: tl.constexpr):
    """Running maximum and sum of exponentials about it, after one more tile."""
    new = tl.maximum(top, tl.max(values, AXIS))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(top - shift) + tl.sum(tl.exp(values - tl.expand_dims(shift, AXIS)), AXIS)


@triton.jit
def log_sum(top, total):
    return tl.where(total == 0.0, float("-inf"), tl.where(top == float("-inf"), 0.0, top) + tl.log(total))
