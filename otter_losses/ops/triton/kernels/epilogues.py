"""What is done to a tile of logits, wherever it came from: statistics, gradients, encoding."""

import triton
import triton.language as tl

from otter_losses.ops.triton.kernels.tiles import CODES, LOGARITHMIC, code_of, decoded


@triton.jit
def merged(top, total, values, AXIS: tl.constexpr):
    """Running maximum and sum of exponentials about it, after one more tile."""
    new = tl.maximum(top, tl.max(values, AXIS))
    shift = tl.where(new == float("-inf"), 0.0, new)
    return new, total * tl.exp(top - shift) + tl.sum(tl.exp(values - tl.expand_dims(shift, AXIS)), AXIS)


@triton.jit
def log_sum(top, total):
    """Logarithm of a sum of exponentials, from its maximum and its sum about that."""
    return tl.where(total == 0.0, float("-inf"), tl.where(top == float("-inf"), 0.0, top) + tl.log(total))


@triton.jit
def negated_log(log):
    """The logarithm of the scaling that turns a sum into 1; nothing for nothing."""
    return tl.where(log == float("-inf"), log, -log)


@triton.jit
def plan_tile(gibbs, rows, columns, KIND: tl.constexpr):
    """A tile of a plan, from that of its Gibbs kernel and both scalings."""
    # Kernel times row scaling first: row times column scaling of a removed entry can overflow.
    return tl.exp(gibbs + rows + columns) if KIND == LOGARITHMIC else gibbs * rows * columns


# ---- statistics ----


@triton.jit
def store_log_sum_exps(z, i, j, m, n, row_parts, column_parts, EVEN: tl.constexpr):
    """The tile's share of the log-sum-exps of its rows, (m,), and of its columns, (n,); all in octaves."""
    if not EVEN:
        z = tl.where((i < m)[:, None] & (j < n)[None, :], z, float("-inf"))
    top = tl.max(z, 1)
    if not EVEN:
        top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(row_parts, top + tl.log2(tl.sum(tl.exp2(z - top[:, None]), 1)), i < m)
    top = tl.max(z, 0)
    if not EVEN:
        top = tl.where(top == float("-inf"), 0.0, top)
    tl.store(column_parts, top + tl.log2(tl.sum(tl.exp2(z - top[None, :]), 0)), j < n)


@triton.jit
def store_expected_logits(
    z,
    gibbs,
    i,
    j,
    m,
    n,
    image_columns,
    text_rows,
    text_columns,
    row_parts,
    column_parts,
    rows,
    columns,
    DIVERGENCE: tl.constexpr,
    KIND: tl.constexpr,
):
    """The tile's share of the logits' sums under both plans, behind the log-sum-exps in the parts.

    Of rows: of the image problem's weights ``w = K v``, which its last normalisation has still to scale, their sum, and sums of
    ``w z`` and ``w log w``. Where LOGARITHMIC: log of the sum, and means of ``z`` and ``log w`` instead. Of columns: sum of the
    text problem's plan times ``z``, and its entropy. Each is `rows` or `columns` numbers behind the one before.
    """
    v = tl.load(image_columns + j, j < n, other=0.0)[None, :]
    u_text = tl.load(text_rows + i, i < m, other=0.0)[:, None]
    v_text = tl.load(text_columns + j, j < n, other=0.0)
    if KIND == LOGARITHMIC:
        log_weight = gibbs + v
        top = tl.max(log_weight, 1)
        top = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp(log_weight - top[:, None])
        total = tl.sum(weight, 1)
        share = weight / tl.where(total > 0.0, total, 1.0)[:, None]
        total = log_sum(top, total)
        column = tl.sum(plan_tile(gibbs, u_text, v_text[None, :], KIND) * z, 0)
    else:
        share = gibbs * v
        total = tl.sum(share, 1)
        column = tl.sum(gibbs * z * u_text, 0) * v_text
    tl.store(row_parts + rows, total, i < m)
    tl.store(row_parts + 2 * rows, tl.sum(share * z, 1), i < m)
    tl.store(column_parts + columns, column, j < n)
    if DIVERGENCE:
        if KIND != LOGARITHMIC:
            log_weight = tl.log(tl.where(share > 0.0, share, 1.0))
        tl.store(row_parts + 3 * rows, tl.sum(tl.where(share > 0.0, share * log_weight, 0.0), 1), i < m)
        text_plan = plan_tile(gibbs, u_text, v_text[None, :], KIND)
        log_plan = tl.log(tl.where(text_plan > 0.0, text_plan, 1.0))
        tl.store(column_parts + 2 * columns, -tl.sum(text_plan * log_plan, 0), j < n)


@triton.jit
def store_diagonal(value, out, i, j, m, n, diagonal):
    """The given pairs' entries of a tile that has some, (m,)."""
    pair = i + diagonal
    own = tl.sum(tl.where(pair[:, None] == j[None, :], value, 0.0), 1)
    tl.store(out + i, own, (i < m) & (pair >= tl.min(j, 0)) & (pair <= tl.max(j, 0)) & (pair < n))


# ---- gradients ----


@triton.jit
def store_gradient(
    value,
    i,
    j,
    m,
    n,
    plane,
    gain,
    g,
    row_residual,
    column_residual,
    EVEN: tl.constexpr,
    PLANES: tl.constexpr,
):
    """The gradient of a tile of logits, (m, n): in float32; or times the gain, without its diagonal, in PLANES of float16.

    Two planes add up to it, the second `plane` numbers behind the first. Of one plane the rounding residuals are added up over
    the tile's rows, (m,), and its columns, (n,): given to the diagonal, the losses weigh ``y_j - y_i`` instead of ``y_j``, so
    that duplicates and a direction common to all cancel.
    """
    mask = (i < m)[:, None] & (j < n)[None, :]
    place = g + i.to(tl.int64)[:, None] * n + j[None, :]
    if PLANES == 0:
        tl.store(place, value, mask)
    else:
        value *= gain
        if not EVEN:
            value = tl.where(mask, value, 0.0)
        rounded = value.to(tl.float16)
        tl.store(place, rounded, mask)
        value -= rounded.to(tl.float32)
        if PLANES == 2:
            tl.store(place + plane, value.to(tl.float16), mask)
        else:
            tl.store(row_residual, tl.sum(value, 1), i < m)
            tl.store(column_residual, tl.sum(value, 0), j < n)


# ---- encoding ----


@triton.jit
def store_encoded(value, params, out, mask, KIND: tl.constexpr, WRITE: tl.constexpr):
    """The tile as it is read in sums of columns: ``K``, or where LOGARITHMIC ``L``; stored as KIND says, where WRITE."""
    if KIND == CODES:
        code = code_of(value, params)
        value = decoded(code, params)
        if WRITE:
            tl.store(out, (code - 32768).to(tl.int16), mask)
    else:
        if KIND != LOGARITHMIC:
            value = tl.exp(value - tl.load(params + 1))
        if WRITE:
            tl.store(out, value, mask)
    return value


@triton.jit
def nearest(value, DTYPE: tl.constexpr):
    """Rounded to the nearest of another float type, ties to even, as the hardware does; the interpreter truncates bfloat16."""
    if tl.bfloat16 == DTYPE:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)
    return value.to(DTYPE)
