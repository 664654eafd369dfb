"""The logits' statistics and their gradient. See `otter_losses.ops.statistics` for the mathematics.

Logits and their log-sum-exps are in octaves, which exp2 takes and log2 gives, until they become losses.
"""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.epilogues import (
    log_sum,
    negated_log,
    plan_tile,
    store_diagonal,
    store_expected_logits,
    store_gradient,
    store_log_sum_exps,
)
from otter_losses.ops.triton.kernels.tiles import (
    CODES,
    LOGARITHMIC,
    OCTAVES,
    cosine_tile,
    gibbs_tile,
    meets_diagonal,
    own_entries,
    program_tile,
    wide,
)
from otter_losses.ops.triton.launch import (
    COMPUTED,
    COMPUTED_BESIDE_ANOTHER,
    COMPUTED_BESIDE_CODES,
    COMPUTED_WRITTEN,
    LOADED,
    MERGE,
    VECTOR,
    Kernel,
)


@triton.jit
def statistics(
    left,
    right,
    width,
    scale,
    gibbs,
    params,
    image_columns,
    text_rows,
    text_columns,
    apart_rows,
    apart_columns,
    row_parts,
    column_parts,
    own_logit,
    diagonal,
    m,
    n,
    stride,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    APART: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """What one tile adds to the statistics of its rows, (4, tiles, m), and of its columns, (3, tiles, n)."""
    row_tile, column_tile = program_tile(m, n, BM, BN)
    row, column = row_tile * BM, column_tile * BN
    i = row + tl.arange(0, BM)
    j = column + tl.arange(0, BN)
    cosines = cosine_tile(left, right, width, row, column, m, n, stride, EVEN, COMPUTED, WHOLE, DESCRIPTORS, BM, BN, BK)
    z = cosines * (tl.load(scale) * OCTAVES)
    if meets_diagonal(row, column, diagonal, BM, BN):
        store_diagonal(z, own_logit, i, j, m, n, diagonal)
    row_parts += column_tile.to(tl.int64) * m + i
    column_parts += row_tile.to(tl.int64) * n + j
    store_log_sum_exps(z, i, j, m, n, row_parts, column_parts, EVEN)
    if SOFT:
        described: tl.constexpr = DESCRIPTORS and KIND == CODES and not RAW
        own = own_entries(apart_rows, apart_columns, i, j, diagonal, m, n, APART)
        tile = gibbs_tile(gibbs, params, own, row, column, m, n, stride, KIND, RAW, described, BM, BN)
        store_expected_logits(
            z,
            tile,
            i,
            j,
            m=m,
            n=n,
            image_columns=image_columns,
            text_rows=text_rows,
            text_columns=text_columns,
            row_parts=row_parts,
            column_parts=column_parts,
            rows=wide(tl.cdiv(n, BN)) * m,
            columns=wide(tl.cdiv(m, BM)) * n,
            DIVERGENCE=DIVERGENCE,
            KIND=KIND,
        )


@triton.jit
def merge_statistics(
    row_parts,
    column_parts,
    scaling,
    row_lse,
    row_expected_logit,
    row_entropy,
    column_lse,
    column_expected_logit,
    column_entropy,
    row_tiles,
    column_tiles,
    m,
    n,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Statistics from their parts, BM of them at a time: programs (., 0) those of a block's rows, (., 1) of its columns.

    Of rows with soft targets also the image problem's last row scaling; columns are added to those of the blocks before.
    """
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    if tl.program_id(1) == 0:
        _merge_rows(row_parts, scaling, row_lse, row_expected_logit, row_entropy, row_tiles, m, i, SOFT, DIVERGENCE, KIND, BM, BN)
    else:
        _merge_columns(
            column_parts, column_lse, column_expected_logit, column_entropy, column_tiles, n, i, SOFT, DIVERGENCE, FIRST, BM, BN
        )


@triton.jit
def _merge_rows(
    parts,
    scaling,
    lse,
    expected_logit,
    entropy,
    tiles,
    m,
    i,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    size = wide(tiles) * m
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    weight_top = tl.full((BN,), float("-inf"), tl.float32)
    weight = tl.zeros((BN,), tl.float32)
    expected = tl.zeros((BN,), tl.float32)
    disorder = tl.zeros((BN,), tl.float32)
    for first in range(0, tiles, BM):
        tile = first + tl.arange(0, BM)
        mask = (tile < tiles)[:, None] & (i < m)[None, :]
        place = parts + tile.to(tl.int64)[:, None] * m + i[None, :]
        value = tl.load(place, mask, other=float("-inf"))
        top, total = _merged(top, total, value)
        if SOFT:
            if KIND == LOGARITHMIC:
                part = tl.load(place + size, mask, other=float("-inf"))
                new = tl.maximum(weight_top, tl.max(part, 0))
                shift = tl.where(new == float("-inf"), 0.0, new)
                before = tl.exp(weight_top - shift)
                share = tl.exp(part - shift[None, :])
                weight_top = new
                weight = weight * before + tl.sum(share, 0)
                expected = expected * before + tl.sum(share * tl.load(place + 2 * size, mask, other=0.0), 0)
                if DIVERGENCE:
                    disorder = disorder * before + tl.sum(share * tl.load(place + 3 * size, mask, other=0.0), 0)
            else:
                weight += tl.sum(tl.load(place + size, mask, other=0.0), 0)
                expected += tl.sum(tl.load(place + 2 * size, mask, other=0.0), 0)
                if DIVERGENCE:
                    disorder += tl.sum(tl.load(place + 3 * size, mask, other=0.0), 0)
    tl.store(lse + i, top + tl.log2(total), i < m)
    if SOFT:
        if KIND == LOGARITHMIC:
            log = log_sum(weight_top, weight)
            normaliser = tl.where(weight > 0.0, weight, 1.0)
            tl.store(scaling + i, negated_log(log), i < m)
        else:
            log = tl.log(weight)
            normaliser = weight
            tl.store(scaling + i, 1.0 / weight, i < m)
        tl.store(expected_logit + i, expected / normaliser, i < m)
        if DIVERGENCE:
            tl.store(entropy + i, log - disorder / normaliser, i < m)


@triton.jit
def _merge_columns(
    parts,
    lse,
    expected_logit,
    entropy,
    tiles,
    n,
    j,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    size = wide(tiles) * n
    top = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    expected = tl.zeros((BN,), tl.float32)
    disorder = tl.zeros((BN,), tl.float32)
    if not FIRST:
        top = tl.load(lse + j, j < n, other=0.0)
        total += 1.0
        if SOFT:
            expected = tl.load(expected_logit + j, j < n, other=0.0)
            if DIVERGENCE:
                disorder = tl.load(entropy + j, j < n, other=0.0)
    for first in range(0, tiles, BM):
        tile = first + tl.arange(0, BM)
        mask = (tile < tiles)[:, None] & (j < n)[None, :]
        place = parts + tile.to(tl.int64)[:, None] * n + j[None, :]
        top, total = _merged(top, total, tl.load(place, mask, other=float("-inf")))
        if SOFT:
            expected += tl.sum(tl.load(place + size, mask, other=0.0), 0)
            if DIVERGENCE:
                disorder += tl.sum(tl.load(place + 2 * size, mask, other=0.0), 0)
    tl.store(lse + j, top + tl.log2(total), j < n)
    if SOFT:
        tl.store(expected_logit + j, expected, j < n)
        if DIVERGENCE:
            tl.store(entropy + j, disorder, j < n)


@triton.jit
def _merged(top, total, parts):
    """Running maximum and sum of powers of 2 about it, with more log-sum-exps, (BM, BN)."""
    new = tl.maximum(top, tl.max(parts, 0))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp2(top - shift) + tl.sum(tl.exp2(parts - shift[None, :]), 0)


@triton.jit
def pair_losses(
    row_lse,
    column_lse,
    row_own,
    column_own,
    row_expected_logit,
    column_expected_logit,
    row_entropy,
    column_entropy,
    on_pair,
    uniform,
    logit_sums,
    prior,
    alpha,
    factor,
    q,
    given,
    soft,
    slopes,
    b,
    SOFT: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr,
    MEAN: tl.constexpr,
    PER_PAIR: tl.constexpr,
    ROBUST: tl.constexpr,
    BN: tl.constexpr,
):
    """Every pair's cross entropies of rows and columns, (2, b); or MEAN: of all together, 0-D, times the factor.

    A mean's pairs weigh alpha in those against the given targets and the rest in those against the soft ones; PER_PAIR that is
    `prior`, (b,). ROBUST: the given ones become ``(1 - p^q) / q``, and `slopes` ``p^q``, (2, b). In GROUPS `on_pair` and
    `uniform` have one number for each pair.
    """
    given_total = tl.zeros((BN,), tl.float32)
    soft_total = tl.zeros((BN,), tl.float32)
    for first in range(tl.program_id(0) * BN, b, tl.num_programs(0) * BN):
        i = first + tl.arange(0, BN)
        row = tl.load(row_lse + i, i < b, other=0.0)
        column = tl.load(column_lse + i, i < b, other=0.0)
        own_1 = tl.load(row_own + i, i < b, other=0.0)
        own_2 = tl.load(column_own + i, i < b, other=0.0)
        soft_row, soft_column = row, column
        if SOFT:
            soft_row = (row - tl.load(row_expected_logit + i, i < b, other=0.0)) / OCTAVES
            soft_column = (column - tl.load(column_expected_logit + i, i < b, other=0.0)) / OCTAVES
            if DIVERGENCE:
                soft_row -= tl.load(row_entropy + i, i < b, other=0.0)
                soft_column -= tl.load(column_entropy + i, i < b, other=0.0)
        if UNIFORM or GROUPS:
            share = tl.load(on_pair + i, i < b, other=0.0) if GROUPS else tl.load(on_pair)
            own_1 *= share
            own_2 *= share
        row = (row - own_1) / OCTAVES
        column = (column - own_2) / OCTAVES
        if UNIFORM:
            share = tl.load(uniform + i, i < b, other=0.0) if GROUPS else tl.load(uniform)
            row -= share * tl.load(logit_sums + i, i < b, other=0.0)
            column -= share * tl.load(logit_sums + b + i, i < b, other=0.0)
        if ROBUST:
            row, slope = _generalised(row, q)
            tl.store(slopes + i, slope, i < b)
            column, slope = _generalised(column, q)
            tl.store(slopes + b + i, slope, i < b)
        if MEAN:
            weight = tl.load(prior + i, i < b, other=0.0) if PER_PAIR else tl.zeros((BN,), tl.float32) + alpha
            given_total += weight * (row + column)
            soft_total += (1.0 - weight) * (soft_row + soft_column)
        else:
            tl.store(given + i, row, i < b)
            tl.store(given + b + i, column, i < b)
            if SOFT:
                tl.store(soft + i, soft_row, i < b)
                tl.store(soft + b + i, soft_column, i < b)
    if MEAN:
        tl.store(given, tl.sum(given_total, 0) * factor)
        if SOFT:
            tl.store(soft, tl.sum(soft_total, 0) * factor)


@triton.jit
def _generalised(entropy, q):
    """``(1 - p^q) / q`` of a cross entropy ``-log p``, and its slope ``p^q``."""
    exponent = -q * entropy
    slope = tl.exp(exponent)
    # exp(exponent) - 1, exact also where the power rounds to 1.
    less = tl.where(slope == 1.0, exponent, (slope - 1.0) * (exponent / tl.where(slope == 1.0, 1.0, tl.log(slope))))
    return -tl.where(slope < 0.5, slope - 1.0, less) / q, slope


@triton.jit
def pair_weights(
    given_gradient,
    soft_gradient,
    prior,
    slopes,
    alpha,
    factor,
    given,
    soft,
    magnitude,
    n,
    GIVEN: tl.constexpr,
    SOFT: tl.constexpr,
    PER_PAIR: tl.constexpr,
    ROBUST: tl.constexpr,
    BN: tl.constexpr,
):
    """The gradient of every pair's cross entropies, (n,), of rows as of columns, for that of their means; over its magnitude.

    ROBUST: of the given ones those of the rows and of the columns differ, (2, n).
    """
    of_given = tl.load(given_gradient) * factor if GIVEN else 0.0 * factor
    of_soft = tl.load(soft_gradient) * factor if SOFT else 0.0 * factor
    peak = tl.maximum(tl.maximum(tl.abs(of_given), tl.abs(of_soft)), 1.1754943508222875e-38)
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    weight = tl.load(prior + i, i < n, other=0.0) if PER_PAIR else tl.zeros((BN,), tl.float32) + alpha
    of_given = weight * (of_given / peak)
    if ROBUST:
        tl.store(given + i, of_given * tl.load(slopes + i, i < n, other=0.0), i < n)
        tl.store(given + n + i, of_given * tl.load(slopes + n + i, i < n, other=0.0), i < n)
    else:
        tl.store(given + i, of_given, i < n)
    tl.store(soft + i, (1.0 - weight) * (of_soft / peak), i < n)
    if tl.program_id(0) == 0:
        tl.store(magnitude, peak)


@triton.jit
def logits_gradient(
    left,
    right,
    width,
    scale,
    gibbs,
    params,
    image_rows,
    text_rows,
    image_columns,
    text_columns,
    row_lse,
    column_lse,
    given_rows,
    soft_rows,
    given_columns,
    soft_columns,
    on_pair,
    uniform_rows,
    uniform_columns,
    row_groups,
    column_groups,
    apart_rows,
    apart_columns,
    g,
    on_diagonal,
    row_residual,
    column_residual,
    diagonal,
    m,
    n,
    stride,
    plane,
    gain,
    SOFT: tl.constexpr,
    KIND: tl.constexpr,
    RAW: tl.constexpr,
    UNIFORM: tl.constexpr,
    GROUPS: tl.constexpr,
    APART: tl.constexpr,
    PLANES: tl.constexpr,
    EVEN: tl.constexpr,
    COMPUTED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """The gradient of one tile of logits, for those of rows' and columns' cross entropies; `g` may be the stored block `left`.

    In GROUPS `on_pair` has one number for each row; UNIFORM then has one for each row and column.
    """
    row_tile, column_tile = program_tile(m, n, BM, BN)
    row, column = row_tile * BM, column_tile * BN
    i = row + tl.arange(0, BM)
    j = column + tl.arange(0, BN)
    cosines = cosine_tile(left, right, width, row, column, m, n, stride, EVEN, COMPUTED, WHOLE, DESCRIPTORS, BM, BN, BK)
    z = cosines * (tl.load(scale) * OCTAVES)
    given_row = tl.load(given_rows + i, i < m, other=0.0)
    given_column = tl.load(given_columns + j, j < n, other=0.0)
    row_weight = given_row
    column_weight = given_column
    if SOFT:
        soft_row = tl.load(soft_rows + i, i < m, other=0.0)
        soft_column = tl.load(soft_columns + j, j < n, other=0.0)
        row_weight += soft_row
        column_weight += soft_column
    value = row_weight[:, None] * tl.exp2(z - tl.load(row_lse + i, i < m, other=0.0)[:, None])
    value += column_weight[None, :] * tl.exp2(z - tl.load(column_lse + j, j < n, other=0.0)[None, :])
    if SOFT:
        described: tl.constexpr = DESCRIPTORS and KIND == CODES and not RAW
        own = own_entries(apart_rows, apart_columns, i, j, diagonal, m, n, APART)
        tile = gibbs_tile(gibbs, params, own, row, column, m, n, stride, KIND, RAW, described, BM, BN)
        u = tl.load(image_rows + i, i < m, other=0.0)
        v = tl.load(image_columns + j, j < n, other=0.0)
        u_text = tl.load(text_rows + i, i < m, other=0.0)
        v_text = tl.load(text_columns + j, j < n, other=0.0)
        if KIND == LOGARITHMIC:
            value -= soft_row[:, None] * plan_tile(tile, u[:, None], v[None, :], KIND)
            value -= soft_column[None, :] * plan_tile(tile, u_text[:, None], v_text[None, :], KIND)
        else:
            # Kernel times row scalings first: row times column scaling of a removed entry can overflow.
            value -= tile * (soft_row * u)[:, None] * v[None, :]
            value -= tile * u_text[:, None] * (soft_column * v_text)[None, :]
    if UNIFORM:
        if GROUPS:
            value -= (given_row * tl.load(uniform_rows + i, i < m, other=0.0))[:, None]
            value -= (given_column * tl.load(uniform_columns + j, j < n, other=0.0))[None, :]
        else:
            value -= tl.load(uniform_rows) * (given_row[:, None] + given_column[None, :])
    if GROUPS:
        share = tl.load(on_pair + i, i < m, other=0.0)[:, None]
        positive = own_entries(row_groups, column_groups, i, j, diagonal, m, n, True)
        value -= tl.where(positive, share * (given_row[:, None] + given_column[None, :]), 0.0)
    if meets_diagonal(row, column, diagonal, BM, BN):
        own = (i + diagonal)[:, None] == j[None, :]
        if not GROUPS:
            share = tl.load(on_pair) if UNIFORM else 1.0
            value -= tl.where(own, share * (given_row[:, None] + given_column[None, :]), 0.0)
        if PLANES > 0:
            store_diagonal(value, on_diagonal, i, j, m, n, diagonal)
            value = tl.where(own, 0.0, value)
    store_gradient(
        value,
        i,
        j,
        m=m,
        n=n,
        plane=plane,
        gain=gain,
        g=g,
        row_residual=row_residual + column_tile.to(tl.int64) * m + i,
        column_residual=column_residual + row_tile.to(tl.int64) * n + j,
        EVEN=EVEN,
        PLANES=PLANES,
    )


_READS = ("cosines", "K")

STATISTICS = Kernel(statistics, LOADED, COMPUTED, _READS)
STATISTICS_BESIDE_CODES = Kernel(statistics, LOADED, COMPUTED_BESIDE_CODES, _READS)
STATISTICS_BESIDE_ANOTHER = Kernel(statistics, LOADED, COMPUTED_BESIDE_ANOTHER, _READS)
MERGE_STATISTICS = Kernel(merge_statistics, (MERGE,))
PAIR_LOSSES = Kernel(pair_losses, (VECTOR,))
PAIR_WEIGHTS = Kernel(pair_weights, (VECTOR,))
GRADIENT = Kernel(logits_gradient, LOADED, COMPUTED_WRITTEN, _READS, ("G",))
GRADIENT_BESIDE_CODES = Kernel(logits_gradient, LOADED, COMPUTED_BESIDE_CODES, _READS, ("G",))
GRADIENT_BESIDE_ANOTHER = Kernel(logits_gradient, LOADED, COMPUTED_BESIDE_ANOTHER, _READS, ("G",))
