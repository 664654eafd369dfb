"""The factors of the teacher's product, and the numbers that its Gibbs kernel is read with. See `otter_losses.ops.similarity`."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import nearest
from otter_losses.ops.triton.kernels.features import store_split
from otter_losses.ops.triton.kernels.tiles import LAST_CODE, OCTAVES
from otter_losses.ops.triton.launch import FEATURES, Kernel


@triton.jit
def similarity_factors(
    v,
    t,
    a,
    b,
    peaks,
    n,
    e,
    v_row_stride,
    v_stride,
    t_row_stride,
    t_stride,
    gamma_image,
    gamma_text,
    lift,
    IMAGE: tl.constexpr,
    TEXT: tl.constexpr,
    PLANES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``a, b`` of `Similarity.factors`; and each program's greatest squared norms of v and of t, (programs, 2).

    In their own type; or in PLANES of float16, times the lift, as `features.split` has them. Without either
    weight, IMAGE and TEXT, they are v and t themselves, and in their own type not written.
    """
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    row = i.to(tl.int64)[:, None]
    image = tl.zeros((BM,), tl.float32)
    text = tl.zeros((BM,), tl.float32)
    width = e
    if IMAGE and TEXT:
        width = 2 * e
    for first in range(0, e, BN):
        j = first + tl.arange(0, BN)
        column = j.to(tl.int64)[None, :]
        mask = (i < n)[:, None] & (j < e)[None, :]
        x = tl.load(v + row * v_row_stride + column * v_stride, mask, other=0.0).to(tl.float32)
        y = tl.load(t + row * t_row_stride + column * t_stride, mask, other=0.0).to(tl.float32)
        image += tl.sum(x * x, 1)
        text += tl.sum(y * y, 1)
        if IMAGE:
            _store_factors(x, y + gamma_image * x, a, b, lift, row, column, width, mask, PLANES)
            if TEXT:
                _store_factors(y, gamma_text * y, a + e, b + e, lift, row, column, width, mask, PLANES)
        elif TEXT:
            _store_factors(x + gamma_text * y, y, a, b, lift, row, column, width, mask, PLANES)
        elif PLANES > 0:
            _store_factors(x, y, a, b, lift, row, column, width, mask, PLANES)
    # Maxima pass a NaN over; the sums bring it back.
    tl.store(peaks + 2 * tl.program_id(0), tl.max(image, 0) + 0.0 * tl.sum(image, 0))
    tl.store(peaks + 2 * tl.program_id(0) + 1, tl.max(text, 0) + 0.0 * tl.sum(text, 0))


@triton.jit
def _store_factors(left, right, a, b, lift, row, column, width, mask, PLANES: tl.constexpr):
    if PLANES > 0:
        place = row * ((2 * PLANES - 1) * width) + column
        store_split(left * lift, a + place, width, mask, PLANES, False)
        store_split(right * lift, b + place, width, mask, PLANES, True)
    else:
        place = row * width + column
        tl.store(a + place, nearest(left, a.dtype.element_ty), mask)
        tl.store(b + place, nearest(right, b.dtype.element_ty), mask)


@triton.jit
def gibbs_params(peaks, inv_epsilon, out, programs, unlift, penalty, gamma_image, gamma_text, limit, BM: tl.constexpr):
    """What `gibbs_tile` reads a Gibbs kernel with; the bound of `Similarity.bound` is its shift.

    A product is multiplied with ``1 / epsilon``, and with `unlift` where its factors were lifted.
    Beyond the limit, where plain numbers might be lost, it is not a number, and so is everything made with it.
    """
    image = tl.zeros((BM,), tl.float32)
    text = tl.zeros((BM,), tl.float32)
    nan = tl.zeros((BM,), tl.float32)
    for first in range(0, programs, BM):
        i = first + tl.arange(0, BM)
        image_part = tl.load(peaks + 2 * i, i < programs, other=0.0)
        text_part = tl.load(peaks + 2 * i + 1, i < programs, other=0.0)
        image = tl.maximum(image, image_part)
        text = tl.maximum(text, text_part)
        nan += 0.0 * (image_part + text_part)
    s = tl.load(inv_epsilon)
    image_peak, text_peak = tl.sqrt(tl.max(image, 0)), tl.sqrt(tl.max(text, 0) + tl.sum(nan, 0))
    shift = (gamma_image * image_peak * image_peak + gamma_text * text_peak * text_peak + image_peak * text_peak) * tl.abs(s)
    shift = tl.where(shift <= limit, shift, float("nan"))
    tl.store(out, s * unlift)
    tl.store(out + 1, shift)
    tl.store(out + 2, shift * (2 * OCTAVES / (LAST_CODE - 1)))
    tl.store(out + 3, tl.where(penalty == float("inf"), penalty, penalty * s))
    unused = tl.arange(0, 4)
    tl.store(out + 4 + unused, tl.zeros((4,), tl.float32), unused < 3)


SIMILARITY_FACTORS = Kernel(similarity_factors, (FEATURES,))
GIBBS_PARAMS = Kernel(gibbs_params, ({"BM": 1024, "num_warps": 4},))
