"""Transport between given marginals, a problem a program: all rounds in one launch. `ops.eager.matching` has the mathematics.

A program reads its matrix once a round: the row sums of a tile of whole rows give these rows' scalings, and those the tile's
share of the column sums. It looks at its own scores: while they span little enough it works on plain numbers, beyond on
logarithms in two floats, as `ops.domains.Logarithmic` has them. The matrix stands where the plan is to be.
"""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.tiles import LOGARITHMIC, PLAIN
from otter_losses.ops.triton.launch import Kernel

NOTHING = tl.constexpr(float("-inf"))

SAFE_RANGE = tl.constexpr(80.0)
"""`ops.domains.safe_range` of float32."""

LARGEST_EXACT = tl.constexpr(2.0**27)
"""Pivot up to which `ops.domains.Logarithmic` keeps second parts: 16 / eps."""

PLAN_ROUNDING = tl.constexpr(2.0**-22)
"""By how much entries of the plan may be rounded."""


@triton.jit
def or_zero(maximum):
    return tl.where(maximum == NOTHING, 0.0, maximum)


@triton.jit
def opened(logits, pivot):
    """Both parts of logarithms."""
    first = (logits + pivot) - pivot
    return first, tl.where(logits == NOTHING, 0.0, logits - first)


@triton.jit
def held(logits, pivot):
    """Logarithms as they are kept: those so large that their second parts would not be small are without them."""
    return tl.where(pivot <= LARGEST_EXACT, logits, (logits + pivot) - pivot)


@triton.jit
def matched(marginal, top, rest):
    """The scaling, in two parts, that turns a sum into a marginal; nothing where either is."""
    possible = (marginal != 0.0) & (top != NOTHING)
    log = tl.log(tl.where(marginal != 0.0, marginal, 1.0))
    return tl.where(possible, -top, NOTHING), tl.where(possible, log - rest, 0.0)


@triton.jit
def settled(top, peak, total):
    """The second part of the logarithm of a sum, which is `total` about the peak: of nothing it is 0."""
    return tl.where(top == NOTHING, 0.0, peak + tl.log(total))


@triton.jit
def exponential(first, rows, columns, second, row_rest, column_rest):
    """Of a tile of logarithms and its scalings: what is large adds up exactly, and first."""
    return tl.exp((first + rows[:, None] + columns[None, :]) + (second + row_rest[:, None] + column_rest[None, :]))


@triton.jit
def log_ratio(high, low):
    """Of the largest and the least positive number; 0 where there is none."""
    return tl.where(high > 0.0, tl.log(tl.where(high > 0.0, high, 1.0)) - tl.log(tl.where(high > 0.0, low, 1.0)), 0.0)


@triton.jit
def row_error(rows, before, now, m, KIND: tl.constexpr, BM: tl.constexpr):
    """L1 distance of row sums from their marginal with the scalings before, where those of now match them; rounding included."""
    error = tl.zeros((BM,), tl.float32)
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        a = tl.load(rows + i, i < m, other=0.0)
        old = tl.load(before + i, i < m, other=0.0)
        new = tl.load(now + i, i < m, other=0.0)
        if KIND == LOGARITHMIC:
            rest = tl.load(before + m + i, i < m, other=0.0) - tl.load(now + m + i, i < m, other=0.0)
            ratio = tl.where(new == NOTHING, 0.0, tl.exp((old - or_zero(new)) + rest))
        else:
            ratio = tl.where(new == 0.0, 0.0, old / new)
        error += a * (tl.abs(ratio - 1.0) + PLAN_ROUNDING)
    return tl.sum(error, 0)


@triton.jit
def solve(
    matrix,
    rows,
    columns,
    start,
    scalings,
    row_potentials,
    column_potentials,
    row_history,
    column_history,
    done,
    offset,
    pivot,
    tolerance,
    history_stride,
    m,
    n,
    iterations,
    KIND: tl.constexpr,
    START: tl.constexpr,
    STOP: tl.constexpr,
    HISTORY: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """All rounds of one problem, from its matrix to its plan.

    Of sums in a history the second parts are `history_stride` problems further. `scalings`: (2, 2, M), of the rows in this round
    and in the one before, in two parts.
    """
    j = tl.arange(0, BN)
    inside = j < n
    b = tl.load(columns + j, inside, other=0.0)
    v = tl.where(inside, 0.0, NOTHING) if KIND == LOGARITHMIC else tl.where(inside, 1.0, 0.0)
    v_rest = tl.zeros((BN,), tl.float32)
    if START:
        v, v_rest = opened(held(tl.load(start + j, inside, other=NOTHING), pivot), pivot)
    step = 0
    stopped = 0
    while (step < iterations) & (stopped == 0):
        now = scalings + (step % 2) * 2 * m
        before = scalings + (1 - step % 2) * 2 * m
        top = tl.full((BN,), NOTHING, tl.float32)
        peak = tl.full((BN,), NOTHING, tl.float32)
        total = tl.zeros((BN,), tl.float32)
        sums = tl.zeros((BM, BN), tl.float32)
        for begin in range(0, m, BM):
            i = begin + tl.arange(0, BM)
            mask = (i < m)[:, None] & inside[None, :]
            place = matrix + i[:, None] * n + j[None, :]
            a = tl.load(rows + i, i < m, other=0.0)
            if KIND == LOGARITHMIC:
                first, second = opened(tl.load(place, mask, other=NOTHING), pivot)
                logs = first + v[None, :]
                row_top = tl.max(logs, 1)
                # What is left of the largest may be large where potentials diverge, so it has a maximum of its own.
                logs = (logs - or_zero(row_top)[:, None]) + (second + v_rest[None, :])
                row_peak = or_zero(tl.max(logs, 1))
                row_rest = settled(row_top, row_peak, tl.sum(tl.exp(logs - row_peak[:, None]), 1))
                u, u_rest = matched(a, row_top, row_rest)
                logs = first + u[:, None]
                new_top = tl.maximum(top, tl.max(logs, 0))
                logs = (logs - or_zero(new_top)[None, :]) + (second + u_rest[:, None])
                peak += top - or_zero(new_top)
                new_peak = tl.maximum(peak, tl.max(logs, 0))
                shift = or_zero(new_peak)
                total = total * tl.exp(peak - shift) + tl.sum(tl.exp(logs - shift[None, :]), 0)
                top = new_top
                peak = new_peak
                tl.store(now + m + i, u_rest, i < m)
            else:
                tile = tl.load(place, mask, other=0.0)
                row_total = tl.sum(tile * v[None, :], 1)
                u = tl.where(row_total == 0.0, 0.0, a / row_total)
                sums += tile * u[:, None]
                if HISTORY:
                    row_top, row_rest = opened(tl.log(row_total), pivot)
            tl.store(now + i, u, i < m)
            if HISTORY:
                history = row_history + 2 * history_stride * m * step + i
                tl.store(history, row_top, i < m)
                tl.store(history + history_stride * m, row_rest, i < m)
        if STOP:
            tl.debug_barrier()
            error = row_error(rows, before, now, m, KIND, BN)
            stopped = tl.where((step > 0) & (error <= tolerance), 1, 0)
        if stopped == 0:
            if KIND == LOGARITHMIC:
                rest = settled(top, or_zero(peak), total)
                v, v_rest = matched(b, top, rest)
            else:
                total = tl.sum(sums, 0)
                v = tl.where(total == 0.0, 0.0, b / total)
                if HISTORY:
                    top, rest = opened(tl.log(total), pivot)
            if HISTORY:
                column_place = column_history + 2 * history_stride * n * step + j
                tl.store(column_place, top, inside)
                tl.store(column_place + history_stride * n, rest, inside)
            step += 1
        tl.debug_barrier()
    now = scalings + (1 - step % 2) * 2 * m
    sums = tl.zeros((BM, BN), tl.float32)
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        mask = (i < m)[:, None] & inside[None, :]
        place = matrix + i[:, None] * n + j[None, :]
        u = tl.load(now + i, i < m, other=0.0)
        if KIND == LOGARITHMIC:
            u_rest = tl.load(now + m + i, i < m, other=0.0)
            first, second = opened(tl.load(place, mask, other=NOTHING), pivot)
            plan = exponential(first, u, v, second, u_rest, v_rest)
            sums += tl.where(mask, plan, 0.0)
            potential = u + u_rest
        else:
            plan = tl.load(place, mask, other=0.0) * u[:, None] * v[None, :]
            potential = tl.log(u)
        tl.store(place, plan, mask)
        tl.store(row_potentials + i, potential - offset, i < m)
    if KIND == LOGARITHMIC:
        # Columns that sum to their marginal, also where logarithms that diverge were rounded in thousands of rounds.
        total = tl.sum(sums, 0)
        correction = tl.where(total > 0.0, b / total, 1.0)
        tl.debug_barrier()
        for begin in range(0, m, BM):
            i = begin + tl.arange(0, BM)
            mask = (i < m)[:, None] & inside[None, :]
            place = matrix + i[:, None] * n + j[None, :]
            tl.store(place, tl.load(place, mask, other=0.0) * correction[None, :], mask)
        tl.store(column_potentials + j, v + v_rest, inside)
    else:
        tl.store(column_potentials + j, tl.log(v), inside)
    tl.store(done, step)


@triton.jit
def matching(
    scores,
    rows,
    columns,
    start,
    plan,
    scalings,
    row_potentials,
    column_potentials,
    row_history,
    column_history,
    done,
    bounds,
    epsilon,
    tolerance,
    problem_stride,
    row_stride,
    column_stride,
    m,
    n,
    iterations,
    START: tl.constexpr,
    STOP: tl.constexpr,
    HISTORY: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """A problem's plan and potentials, the rounds it took, its pivot and centre.

    Where HISTORY, of every round the sums; then it takes the rounds that it is told in `done`, at most `iterations`.
    """
    problem = tl.program_id(0).to(tl.int64)
    problems = tl.num_programs(0).to(tl.int64)
    scores += problem * problem_stride
    rows += problem * m
    columns += problem * n
    matrix = plan + problem * m * n
    j = tl.arange(0, BN)
    inside = j < n
    # What the scores span: with and without forbidden pairs.
    highest = tl.full((BM, BN), NOTHING, tl.float32)
    lowest = tl.full((BM, BN), float("inf"), tl.float32)
    lowest_finite = tl.full((BM, BN), float("inf"), tl.float32)
    a_high = tl.zeros((BM,), tl.float32)
    a_low = tl.full((BM,), float("inf"), tl.float32)
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        mask = (i < m)[:, None] & inside[None, :]
        place = scores + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * column_stride
        tile = tl.load(place, mask, other=0.0).to(tl.float32)
        highest = tl.where(mask, tl.maximum(highest, tile), highest)
        lowest = tl.where(mask, tl.minimum(lowest, tile), lowest)
        lowest_finite = tl.where(mask & (tile != NOTHING), tl.minimum(lowest_finite, tile), lowest_finite)
        a = tl.load(rows + i, i < m, other=0.0)
        a_high = tl.maximum(a_high, a)
        a_low = tl.where(a > 0.0, tl.minimum(a_low, a), a_low)
    b = tl.load(columns + j, inside, other=0.0)
    b_low = tl.min(tl.where(b > 0.0, b, float("inf")), 0)
    span = log_ratio(tl.max(a_high, 0), tl.min(a_low, 0)) + log_ratio(tl.max(b, 0), b_low)
    high = tl.max(tl.max(highest, 1), 0)
    span += (high - tl.min(tl.min(lowest, 1), 0)) / epsilon
    high = or_zero(high)
    low = tl.minimum(tl.min(tl.min(lowest_finite, 1), 0), high)
    plain = span <= (NOTHING if START else SAFE_RANGE)
    centre = tl.where(plain | (high - low <= tl.abs(high) / 2), high, 0.0)
    largest = tl.maximum(high - centre, centre - low) / epsilon
    if START:
        potential = tl.load(start + problem * n + j, inside, other=0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(or_zero(potential)), 0))
    pivot = 5 * largest
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        mask = (i < m)[:, None] & inside[None, :]
        place = scores + i.to(tl.int64)[:, None] * row_stride + j.to(tl.int64)[None, :] * column_stride
        logits = tl.div_rn(tl.load(place, mask, other=0.0).to(tl.float32) - centre, epsilon)
        value = tl.where(plain, tl.exp(logits), held(logits, pivot))
        tl.store(matrix + i[:, None] * n + j[None, :], value, mask)
    if HISTORY:
        iterations = tl.load(done + problem)
    tl.store(bounds + problem, pivot)
    tl.store(bounds + problems + problem, centre)
    tl.debug_barrier()
    if plain:
        solve(
            matrix,
            rows,
            columns,
            start + problem * n,
            scalings + problem * 4 * m,
            row_potentials + problem * m,
            column_potentials + problem * n,
            row_history + problem * m,
            column_history + problem * n,
            done + problem,
            centre / epsilon,
            pivot,
            tolerance,
            problems,
            m,
            n,
            iterations,
            KIND=PLAIN,
            START=False,
            STOP=STOP,
            HISTORY=HISTORY,
            BM=4 * BM,
            BN=BN,
        )
    else:
        solve(
            matrix,
            rows,
            columns,
            start + problem * n,
            scalings + problem * 4 * m,
            row_potentials + problem * m,
            column_potentials + problem * n,
            row_history + problem * m,
            column_history + problem * n,
            done + problem,
            centre / epsilon,
            pivot,
            tolerance,
            problems,
            m,
            n,
            iterations,
            KIND=LOGARITHMIC,
            START=START,
            STOP=STOP,
            HISTORY=HISTORY,
            BM=BM,
            BN=BN,
        )


@triton.jit
def inverse(top):
    """First part of the logarithm of one over a sum; nothing of nothing."""
    return tl.where(top == NOTHING, NOTHING, -top)


@triton.jit
def matching_gradient(
    scores,
    rows,
    columns,
    start,
    plan,
    by_plan,
    by_row_potential,
    by_column_potential,
    row_history,
    column_history,
    done,
    bounds,
    logits,
    gradient,
    by_rows,
    by_columns,
    by_start,
    epsilon,
    problem_stride,
    row_stride,
    column_stride,
    by_problem_stride,
    by_row_stride,
    by_column_stride,
    m,
    n,
    START: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Gradients by a problem's scores, marginals and start, back through its rounds: `ops.eager.matching.differentiate`.

    `logits`: memory for them. A round's tile of rows takes the columns' gradients to these rows' and at once on to the columns of
    the round before.
    """
    problem = tl.program_id(0).to(tl.int64)
    problems = tl.num_programs(0).to(tl.int64)
    scores += problem * problem_stride
    by_plan += problem * by_problem_stride
    plan += problem * m * n
    rows += problem * m
    columns += problem * n
    by_rows += problem * m
    by_columns += problem * n
    row_history += problem * m
    column_history += problem * n
    matrix = logits + problem * m * n
    out = gradient + problem * m * n
    j = tl.arange(0, BN)
    inside = j < n
    pivot = tl.load(bounds + problem)
    centre = tl.load(bounds + problems + problem)
    rounds = tl.load(done + problem)
    b = tl.load(columns + j, inside, other=0.0)
    sums = tl.zeros((BM, BN), tl.float32)
    last = row_history + 2 * problems * m * (rounds - 1)
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        mask = (i < m)[:, None] & inside[None, :]
        wide, across = i.to(tl.int64)[:, None], j.to(tl.int64)[None, :]
        score = tl.load(scores + wide * row_stride + across * column_stride, mask, other=0.0)
        place = i[:, None] * n + j[None, :]
        tl.store(matrix + place, held(tl.div_rn(score.to(tl.float32) - centre, epsilon), pivot), mask)
        weighted = tl.load(by_plan + wide * by_row_stride + across * by_column_stride, mask, other=0.0)
        weighted *= tl.load(plan + place, mask, other=0.0)
        tl.store(out + place, weighted, mask)
        sums += weighted
        a = tl.load(rows + i, i < m, other=0.0)
        is_there = (a != 0.0) & (tl.load(last + i, i < m, other=NOTHING) != NOTHING)
        by_u = tl.sum(weighted, 1) + tl.load(by_row_potential + problem * m + i, i < m, other=0.0)
        tl.store(by_rows + i, tl.where(is_there, by_u, 0.0), i < m)
    last_columns = column_history + 2 * problems * n * (rounds - 1) + j
    top = tl.load(last_columns, inside, other=NOTHING)
    by_v = tl.sum(sums, 0) + tl.load(by_column_potential + problem * n + j, inside, other=0.0)
    by_v = tl.where((b != 0.0) & (top != NOTHING), by_v, 0.0)
    tl.store(by_columns + j, tl.zeros((BN,), tl.float32), inside)
    tl.debug_barrier()
    for back in range(0, rounds):
        step = rounds - 1 - back
        v = tl.where(inside, 0.0, NOTHING)
        v_rest = tl.zeros((BN,), tl.float32)
        if START:
            v, v_rest = opened(held(tl.load(start + problem * n + j, inside, other=NOTHING), pivot), pivot)
        after = column_history + 2 * problems * n * step + j
        top = inverse(tl.load(after, inside, other=NOTHING))
        rest = -tl.load(after + problems * n, inside, other=0.0)
        before = column_history + 2 * problems * n * tl.maximum(step - 1, 0) + j
        top_before = tl.load(before, inside, other=NOTHING)
        rest_before = tl.load(before + problems * n, inside, other=0.0)
        v_before, v_before_rest = matched(tl.load(columns + j, inside, other=0.0), top_before, rest_before)
        v = tl.where(step > 0, v_before, v)
        v_rest = tl.where(step > 0, v_before_rest, v_rest)
        sums = tl.zeros((BM, BN), tl.float32)
        for begin in range(0, m, BM):
            i = begin + tl.arange(0, BM)
            mask = (i < m)[:, None] & inside[None, :]
            place = i[:, None] * n + j[None, :]
            first, second = opened(tl.load(matrix + place, mask, other=NOTHING), pivot)
            history = row_history + 2 * problems * m * step + i
            row_top = tl.load(history, i < m, other=NOTHING)
            row_rest = tl.load(history + problems * m, i < m, other=0.0)
            u, u_rest = matched(tl.load(rows + i, i < m, other=0.0), row_top, row_rest)
            taken = exponential(first, u, top, second, u_rest, rest) * by_v[None, :]
            by_u = -tl.sum(taken, 1)
            total = by_u + tl.load(by_rows + i, i < m, other=0.0)
            tl.store(by_rows + i, total, i < m)
            by_u = tl.where(back == 0, total, by_u)
            handed = exponential(first, inverse(row_top), v, second, -row_rest, v_rest) * by_u[:, None]
            sums += handed
            tl.store(out + place, tl.load(out + place, mask, other=0.0) - taken - handed, mask)
        tl.store(by_columns + j, by_v + tl.load(by_columns + j, inside, other=0.0), inside)
        by_v = -tl.sum(sums, 0)
        tl.debug_barrier()
    for begin in range(0, m, BM):
        i = begin + tl.arange(0, BM)
        mask = (i < m)[:, None] & inside[None, :]
        place = i[:, None] * n + j[None, :]
        tl.store(out + place, tl.load(out + place, mask, other=0.0) / epsilon, mask)
        a = tl.load(rows + i, i < m, other=0.0)
        tl.store(by_rows + i, tl.where(a > 0.0, tl.load(by_rows + i, i < m, other=0.0) / a, 0.0), i < m)
    b = tl.load(columns + j, inside, other=0.0)
    tl.store(by_columns + j, tl.where(b > 0.0, tl.load(by_columns + j, inside, other=0.0) / b, 0.0), inside)
    tl.store(by_start + problem * n + j, by_v, inside)


WHOLE_ROWS = (
    {"BM": 32, "BN": 64, "num_warps": 16},
    {"BM": 8, "BN": 256, "num_warps": 16},
    {"BM": 2, "BN": 1024, "num_warps": 16},
)
"""Of programs that own problems of at most so many columns. Derived: what one has in flight at a time, within its registers."""

WHOLE_ROWS_BACK = (
    {"BM": 16, "BN": 64, "num_warps": 8},
    {"BM": 16, "BN": 256, "num_warps": 16},
    {"BM": 2, "BN": 1024, "num_warps": 16},
)
"""The same on the way back."""

MATCHING = Kernel(matching, WHOLE_ROWS, reads=("K",), writes=("K",))
MATCHING_GRADIENT = Kernel(matching_gradient, WHOLE_ROWS_BACK, reads=("K", "G"), writes=("K", "G"))
