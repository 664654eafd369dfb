"""The sweeps that solve both transport problems of a batch. See `otter_losses.ops.transport` for the mathematics."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.features import nearest
from otter_losses.ops.triton.kernels.held import (
    CODES,
    LAST_CODE,
    LOGARITHMIC,
    OCTAVES,
    code_of,
    decoded,
    held,
    log_sum,
    logits,
    merged,
)


@triton.jit
def factors(
    v,
    t,
    a,
    b,
    peaks,
    n,
    e,
    v_row_stride,
    v_column_stride,
    t_row_stride,
    t_column_stride,
    gamma_image,
    gamma_text,
    IMAGE: tl.constexpr,
    TEXT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """``a, b`` of `Similarity.factors`, in their type; and each program's greatest squared norms of v and of t, (programs, 2).

    Without either weight, IMAGE and TEXT, they are v and t themselves, and not written.
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
        x = tl.load(v + row * v_row_stride + column * v_column_stride, mask, other=0.0).to(tl.float32)
        y = tl.load(t + row * t_row_stride + column * t_column_stride, mask, other=0.0).to(tl.float32)
        image += tl.sum(x * x, 1)
        text += tl.sum(y * y, 1)
        place = row * width + column
        kind = a.dtype.element_ty
        if IMAGE:
            tl.store(a + place, nearest(x, kind), mask)
            tl.store(b + place, nearest(y + gamma_image * x, kind), mask)
            if TEXT:
                tl.store(a + place + e, nearest(y, kind), mask)
                tl.store(b + place + e, nearest(gamma_text * y, kind), mask)
        elif TEXT:
            tl.store(a + place, nearest(x + gamma_text * y, kind), mask)
            tl.store(b + place, nearest(y, kind), mask)
    # Maxima pass a NaN over; the sums bring it back.
    tl.store(peaks + 2 * tl.program_id(0), tl.max(image, 0) + 0.0 * tl.sum(image, 0))
    tl.store(peaks + 2 * tl.program_id(0) + 1, tl.max(text, 0) + 0.0 * tl.sum(text, 0))


@triton.jit
def numbers(peaks, sharpness, out, programs, penalty, gamma_image, gamma_text, BM: tl.constexpr):
    """`held`'s numbers, with the bound of `Similarity.bound` for a shift."""
    image = tl.zeros((BM,), tl.float32)
    text = tl.zeros((BM,), tl.float32)
    lost = tl.zeros((BM,), tl.float32)
    for first in range(0, programs, BM):
        i = first + tl.arange(0, BM)
        image_part = tl.load(peaks + 2 * i, i < programs, other=0.0)
        text_part = tl.load(peaks + 2 * i + 1, i < programs, other=0.0)
        image = tl.maximum(image, image_part)
        text = tl.maximum(text, text_part)
        lost += 0.0 * (image_part + text_part)
    s = tl.load(sharpness)
    image_peak, text_peak = tl.sqrt(tl.max(image, 0)), tl.sqrt(tl.max(text, 0) + tl.sum(lost, 0))
    shift = (gamma_image * image_peak * image_peak + gamma_text * text_peak * text_peak + image_peak * text_peak) * tl.abs(s)
    tl.store(out, s)
    tl.store(out + 1, shift)
    tl.store(out + 2, shift * (2 * OCTAVES / (LAST_CODE - 1)))
    tl.store(out + 3, tl.where(penalty == float("inf"), penalty, penalty * s))


@triton.jit
def encode(
    products,
    out,
    numbers,
    totals,
    start,
    m,
    n,
    segment,
    KIND: tl.constexpr,
    WRITE: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """The opening sweep: hold the block as it is to be held, and add up its columns. `out` may be `products`."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    place = totals + tl.program_id(1).to(tl.int64) * n + j
    total = tl.zeros((BN,), tl.float32)
    top = tl.full((BN,), float("-inf"), tl.float32)
    if not FIRST:
        total = tl.load(place, j < n, other=0.0)
        if KIND == LOGARITHMIC:
            top = total
            total = tl.where(top == float("-inf"), 0.0, 1.0)
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, m)
    for first in range(begin, end, BM):
        i = first + tl.arange(0, BM)
        mask = (i < end)[:, None] & (j < n)[None, :]
        target = out + i.to(tl.int64)[:, None] * n + j[None, :]
        value = logits(products, numbers, i, j, start, n, mask)
        if KIND == LOGARITHMIC:
            top, total = merged(top, total, value, 0)
            if WRITE:
                tl.store(target, value, mask)
        elif KIND == CODES:
            code = code_of(value, numbers)
            total += tl.sum(decoded(code, numbers), 0)
            tl.store(target, (code - 32768).to(tl.int16), mask)
        else:
            value = tl.exp(value - tl.load(numbers + 1))
            total += tl.sum(value, 0)
            if WRITE:
                tl.store(target, value, mask)
    if KIND == LOGARITHMIC:
        total = log_sum(top, total)
    tl.store(place, total, j < n)


@triton.jit
def row_scalings(
    k,
    numbers,
    columns_1,
    columns_2,
    rows_1,
    rows_2,
    start,
    m,
    n,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Both problems' row scalings: what turns the sums of ``K v`` into 1."""
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    top_1 = tl.full((BM,), float("-inf"), tl.float32)
    top_2 = tl.full((BM,), float("-inf"), tl.float32)
    sum_1 = tl.zeros((BM,), tl.float32)
    sum_2 = tl.zeros((BM,), tl.float32)
    for first in range(0, n, BN):
        j = first + tl.arange(0, BN)
        mask = (i < m)[:, None] & (j < n)[None, :]
        tile = held(k, numbers, i, j, start, n, mask, KIND, RAW)
        v_1 = tl.load(columns_1 + j, j < n, other=0.0)[None, :]
        v_2 = tl.load(columns_2 + j, j < n, other=0.0)[None, :]
        if KIND == LOGARITHMIC:
            top_1, sum_1 = merged(top_1, sum_1, tile + v_1, 1)
            top_2, sum_2 = merged(top_2, sum_2, tile + v_2, 1)
        else:
            sum_1 += tl.sum(tile * v_1, 1)
            sum_2 += tl.sum(tile * v_2, 1)
    if KIND == LOGARITHMIC:
        log_1, log_2 = log_sum(top_1, sum_1), log_sum(top_2, sum_2)
        tl.store(rows_1 + i, tl.where(log_1 == float("-inf"), log_1, -log_1), i < m)
        tl.store(rows_2 + i, tl.where(log_2 == float("-inf"), log_2, -log_2), i < m)
    else:
        tl.store(rows_1 + i, 1.0 / sum_1, i < m)
        tl.store(rows_2 + i, 1.0 / sum_2, i < m)


@triton.jit
def column_totals(
    k,
    numbers,
    rows_1,
    rows_2,
    totals,
    start,
    m,
    n,
    segment,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Both problems' column sums ``u K``, of each segment of the block's rows; added to those of the blocks before."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    place = totals + tl.program_id(1).to(tl.int64) * 2 * n + j
    top_1 = tl.full((BN,), float("-inf"), tl.float32)
    top_2 = tl.full((BN,), float("-inf"), tl.float32)
    sum_1 = tl.zeros((BN,), tl.float32)
    sum_2 = tl.zeros((BN,), tl.float32)
    if not FIRST:
        sum_1 = tl.load(place, j < n, other=0.0)
        sum_2 = tl.load(place + n, j < n, other=0.0)
        if KIND == LOGARITHMIC:
            top_1, top_2 = sum_1, sum_2
            sum_1 = tl.where(top_1 == float("-inf"), 0.0, 1.0)
            sum_2 = tl.where(top_2 == float("-inf"), 0.0, 1.0)
    begin = tl.program_id(1) * segment
    end = tl.minimum(begin + segment, m)
    for first in range(begin, end, BM):
        i = first + tl.arange(0, BM)
        mask = (i < end)[:, None] & (j < n)[None, :]
        tile = held(k, numbers, i, j, start, n, mask, KIND, RAW)
        u_1 = tl.load(rows_1 + i, i < end, other=0.0)[:, None]
        u_2 = tl.load(rows_2 + i, i < end, other=0.0)[:, None]
        if KIND == LOGARITHMIC:
            top_1, sum_1 = merged(top_1, sum_1, tile + u_1, 0)
            top_2, sum_2 = merged(top_2, sum_2, tile + u_2, 0)
        else:
            sum_1 += tl.sum(tile * u_1, 0)
            sum_2 += tl.sum(tile * u_2, 0)
    if KIND == LOGARITHMIC:
        sum_1, sum_2 = log_sum(top_1, sum_1), log_sum(top_2, sum_2)
    tl.store(place, sum_1, j < n)
    tl.store(place + n, sum_2, j < n)


@triton.jit
def match(totals, out, segments, size, KIND: tl.constexpr, BN: tl.constexpr):
    """The scalings that turn column sums, (segments, size), into 1."""
    j = tl.program_id(0) * BN + tl.arange(0, BN)
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for segment in range(0, segments):
        value = tl.load(totals + segment * size + j, j < size, other=1.0)
        if KIND == LOGARITHMIC:
            new = tl.maximum(top, value)
            shift = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(top - shift) + tl.exp(value - shift)
            top = new
        else:
            total += value
    if KIND == LOGARITHMIC:
        log = log_sum(top, total)
        tl.store(out + j, tl.where(log == float("-inf"), log, -log), j < size)
    else:
        tl.store(out + j, 1.0 / total, j < size)
