"""Triton kernels: the passes over a vocabulary, and Sinkhorn on small problems.

Everything is computed in the type of the normalisers (float32, or float64 for float64 logits); low
precision is upcast as it is loaded. Factors are constants of a kernel, since Triton passes numbers as
float32. Results repeat bit by bit: nothing is added
by atomics but integers. Rows that the mask excludes are not read.
Arguments carry no types: Triton reads annotations as its own.
"""

import triton
import triton.language as tl


@triton.jit
def row_totals(
    logits,
    mask,
    left_out,
    top,
    totals,
    stride_b,
    stride_t,
    rows,
    length,
    vocabulary,
    count,
    INVERSE: tl.constexpr,
    INVERSE_EXTRA: tl.constexpr,
    EXTRA: tl.constexpr,
    DOUBLED: tl.constexpr,
    LEFT_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest logit of a row, and log-sum-exps of what lies below it at one or two temperatures.

    One program for each row; all sums are kept relative to the largest logit so far. If LEFT_OUT, the power
    of two that is not below their count, is not 0, there is one more sum at the first temperature, without
    the tokens of the row that are left out, which come in ascending order.
    """
    row = tl.program_id(0).to(tl.int64)
    start = logits + (row // length) * stride_b + (row % length) * stride_t
    dtype = top.dtype.element_ty
    width = tl.where(tl.load(mask + row) != 0, vocabulary, 0)
    highest = tl.full((), -float("inf"), dtype)
    first = tl.zeros((), dtype)
    second = tl.zeros((), dtype)
    rest = tl.zeros((), dtype)
    if LEFT_OUT:
        place = tl.arange(0, LEFT_OUT)
        tokens = tl.load(left_out + row * count + place, mask=place < count, other=2147483647)
    passed = 0
    for offset in range(0, width, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        z = tl.load(start + at, mask=at < width, other=-float("inf")).to(dtype)
        above = tl.maximum(highest, tl.max(z, 0))
        reference = tl.where(above == -float("inf"), 0.0, above)
        below = z - reference
        step = highest - reference
        if DOUBLED:
            root = tl.exp(below * INVERSE_EXTRA)
            power = root * root
            shrink = tl.exp(step * INVERSE_EXTRA)
            second = second * shrink + tl.sum(root, 0)
            shrink *= shrink
        else:
            power = tl.exp(below * INVERSE)
            shrink = tl.exp(step * INVERSE)
            if EXTRA:
                second = second * tl.exp(step * INVERSE_EXTRA) + tl.sum(tl.exp(below * INVERSE_EXTRA), 0)
        first = first * shrink + tl.sum(power, 0)
        if LEFT_OUT:
            upto = tl.sum((tokens < offset + BLOCK).to(tl.int32), 0)
            for n in range(passed, upto):  # each of them is in one block
                power = tl.where(at == tl.load(left_out + row * count + n), 0.0, power)
            rest = rest * shrink + tl.sum(power, 0)
            passed = upto
        highest = above
    empty = width == 0
    tl.store(top + row, tl.where(empty, 0.0, highest))
    tl.store(totals + row, tl.where(empty, 0.0, tl.log(tl.where(empty, 1.0, first))))
    if EXTRA:
        tl.store(totals + rows + row, tl.where(empty, 0.0, tl.log(tl.where(empty, 1.0, second))))
    if LEFT_OUT:
        last = (2 if EXTRA else 1) * rows
        nothing = tl.where(empty, 0.0, -float("inf"))
        tl.store(totals + last + row, tl.where(rest > 0, tl.log(tl.where(rest > 0, rest, 1.0)), nothing))


@triton.jit
def column_sums(
    logits,
    mask,
    top,
    totals,
    mass,
    stride_b,
    stride_t,
    length,
    vocabulary,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of each column's probabilities over the valid rows of a sequence.

    One program for each sequence and block of columns, which goes down the rows.
    """
    sequence = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dtype = mass.dtype.element_ty
    total = tl.zeros((BLOCK,), dtype)
    for offset in range(0, length, ROWS):
        t = offset + tl.arange(0, ROWS)
        row = sequence * length + t
        valid = tl.load(mask + row, mask=t < length, other=0) != 0
        highest = tl.load(top + row, mask=valid, other=0.0)
        log_total = tl.load(totals + row, mask=valid, other=0.0)
        inside = valid[:, None] & (columns < vocabulary)[None, :]
        at = sequence * stride_b + t.to(tl.int64)[:, None] * stride_t + columns[None, :]
        z = tl.load(logits + at, mask=inside, other=-float("inf")).to(dtype)
        probs = tl.exp((z - highest[:, None]) * INVERSE - log_total[:, None])
        total += tl.sum(tl.where(inside, probs, 0.0), 0)
    tl.store(mass + sequence * vocabulary + columns, total, mask=columns < vocabulary)


@triton.jit
def row_gradient(
    logits,
    mask,
    top,
    totals,
    weights,
    gradient,
    stride_b,
    stride_t,
    rows,
    length,
    vocabulary,
    INVERSE: tl.constexpr,
    INVERSE_EXTRA: tl.constexpr,
    EXTRA: tl.constexpr,
    LEFT_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of a row but for the columns that were read, the sum of p w; 0 where the mask excludes it.

    One program for each row and block of columns. The gradient is contiguous, and may be the logits' memory.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dtype = top.dtype.element_ty
    valid = tl.load(mask + row) != 0
    start = logits + (row // length) * stride_b + (row % length) * stride_t
    z = tl.load(start + at, mask=(at < vocabulary) & valid, other=-float("inf")).to(dtype)
    below = z - tl.load(top + row)
    value = tl.exp(below * INVERSE - tl.load(totals + row)) * tl.load(weights + row)
    if EXTRA:
        value += tl.exp(below * INVERSE_EXTRA - tl.load(totals + rows + row)) * tl.load(weights + rows + row)
    if LEFT_OUT:
        last = (2 if EXTRA else 1) * rows + row
        weight = tl.load(weights + last)
        total = tl.where(weight == 0, 0.0, tl.load(totals + last))
        # Only what was left out can be above, and that is not for this kernel to write.
        value += tl.exp(tl.minimum(below * INVERSE - total, 0.0)) * weight
    value = tl.where(valid, value, 0.0)
    tl.store(gradient + row * vocabulary + at, value.to(gradient.dtype.element_ty), mask=at < vocabulary)


@triton.jit
def sinkhorn_rounds(
    cost,
    a,
    b,
    us,
    vs,
    batch,
    height,
    width,
    rounds,
    INVERSE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """All rounds of one small problem in one program, its kernel held in registers."""
    n = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    inside = (i < height)[:, None] & (j < width)[None, :]
    c = tl.load(cost + n * height * width + i[:, None] * width + j[None, :], mask=inside, other=0.0)
    kernel = tl.where(inside, tl.exp(-c * INVERSE), 0.0)
    rows = tl.load(a + n * height + i, mask=i < height, other=0.0)
    columns = tl.load(b + n * width + j, mask=j < width, other=0.0)
    v = tl.where(columns > 0, 1.0, 0.0).to(kernel.dtype)
    for k in range(rounds):
        below = tl.sum(kernel * v[None, :], 1)
        u = tl.where(rows > 0, rows / tl.where(rows > 0, below, 1.0), 0.0)
        below = tl.sum(kernel * u[:, None], 0)
        v = tl.where(columns > 0, columns / tl.where(columns > 0, below, 1.0), 0.0)
        tl.store(us + (k * batch + n) * height + i, u, mask=i < height)
        tl.store(vs + (k * batch + n) * width + j, v, mask=j < width)


@triton.jit
def sinkhorn_rounds_back(
    cost,
    a,
    b,
    us,
    vs,
    log_plan_bar,
    log_kernel_bar,
    log_a_bar,
    log_b_bar,
    batch,
    height,
    width,
    rounds,
    INVERSE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The rounds of one small problem in reverse, from the stored scalings."""
    n = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    inside = (i < height)[:, None] & (j < width)[None, :]
    at = n * height * width + i[:, None] * width + j[None, :]
    kernel = tl.where(inside, tl.exp(-tl.load(cost + at, mask=inside, other=0.0) * INVERSE), 0.0)
    rows = tl.load(a + n * height + i, mask=i < height, other=0.0)
    columns = tl.load(b + n * width + j, mask=j < width, other=0.0)
    bar = tl.load(log_plan_bar + at, mask=inside, other=0.0)
    f = tl.sum(bar, 1)
    g = tl.sum(bar, 0)
    a_bar = tl.zeros_like(f)
    b_bar = tl.zeros_like(g)
    flow = tl.zeros_like(bar)
    for back in range(rounds):
        k = rounds - 1 - back
        u = tl.load(us + (k * batch + n) * height + i, mask=i < height, other=0.0)
        v = tl.load(vs + (k * batch + n) * width + j, mask=j < width, other=0.0)
        earlier = tl.maximum(k - 1, 0)
        before = tl.load(vs + (earlier * batch + n) * width + j, mask=j < width, other=0.0)
        before = tl.where(k == 0, tl.where(columns > 0, 1.0, 0.0), before)
        b_bar += g
        y = tl.where(columns > 0, g * v / tl.where(columns > 0, columns, 1.0), 0.0)
        f = f - u * tl.sum(kernel * y[None, :], 1)
        a_bar += f
        x = tl.where(rows > 0, f * u / tl.where(rows > 0, rows, 1.0), 0.0)
        g = -before * tl.sum(kernel * x[:, None], 0)
        flow += u[:, None] * y[None, :] + x[:, None] * before[None, :]
        f = tl.zeros_like(f)
    tl.store(log_kernel_bar + at, bar - kernel * flow, mask=inside)
    tl.store(log_a_bar + n * height + i, a_bar, mask=i < height)
    tl.store(log_b_bar + n * width + j, b_bar, mask=j < width)


@triton.jit
def sinkhorn_half_round(
    cost,
    weight,
    other,
    out,
    stride_n,
    stride_i,
    stride_j,
    height,
    width,
    INVERSE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scalings weight / (K other) of a block of rows of a large problem; K is made as the cost is read.

    The columns' half round is the same with the strides of the cost exchanged.
    """
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), out.dtype.element_ty)
    for offset in range(0, width, BLOCK):
        j = offset + tl.arange(0, BLOCK)
        inside = (i < height)[:, None] & (j < width)[None, :]
        at = n * stride_n + i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
        kernel = tl.where(inside, tl.exp(-tl.load(cost + at, mask=inside, other=0.0) * INVERSE), 0.0)
        total += tl.sum(kernel * tl.load(other + n * width + j, mask=j < width, other=0.0)[None, :], 1)
    w = tl.load(weight + n * height + i, mask=i < height, other=0.0)
    scaling = tl.where(w > 0, w / tl.where(w > 0, total, 1.0), 0.0)
    tl.store(out + n * height + i, scaling, mask=i < height)
