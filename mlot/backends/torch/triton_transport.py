"""Triton kernels of costs and transport: distances of points, and Sinkhorn's rounds there and back.

Everything is computed in the type of the cost. Factors are constants of a kernel, since Triton passes numbers
as float32. Nothing is added by atomics, so results repeat bit by bit. Arguments carry no types: Triton reads
annotations as its own.
"""

import triton
import triton.language as tl


@triton.jit
def pairwise_l1(x, y, cost, height, width, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Distances of one block of points from another; the coordinates ``(d, n)`` and ``(d, m)`` come first."""
    problem = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), cost.dtype.element_ty)
    for axis in range(depth):
        one = tl.load(x + (problem * depth + axis) * height + i, mask=i < height, other=0.0)
        other = tl.load(y + (problem * depth + axis) * width + j, mask=j < width, other=0.0)
        total += tl.abs(one[:, None] - other[None, :])
    inside = (i < height)[:, None] & (j < width)[None, :]
    tl.store(cost + problem * height * width + i[:, None] * width + j[None, :], total, mask=inside)


@triton.jit
def pairwise_l1_back(
    x,
    y,
    cost_bar,
    x_bar,
    stride_n,
    stride_i,
    stride_j,
    height,
    width,
    depth,
    ROWS: tl.constexpr,
    AXES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Gradient of a block of points ``(n, d)`` in some of their coordinates; 0 at ties."""
    problem = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    axis = tl.program_id(2) * AXES + tl.arange(0, AXES)
    at = (problem * height + i)[:, None] * depth + axis[None, :]
    here = (i < height)[:, None] & (axis < depth)[None, :]
    one = tl.load(x + at, mask=here, other=0.0)
    total = tl.zeros((ROWS, AXES), x_bar.dtype.element_ty)
    for offset in range(0, width, COLUMNS):
        j = offset + tl.arange(0, COLUMNS)
        there = (axis < depth)[:, None] & (j < width)[None, :]
        other = tl.load(y + (problem * width + j)[None, :] * depth + axis[:, None], mask=there, other=0.0)
        inside = (i < height)[:, None] & (j < width)[None, :]
        place = problem * stride_n + i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
        bar = tl.load(cost_bar + place, mask=inside, other=0.0)
        apart = one[:, :, None] - other[None, :, :]
        sign = tl.where(apart > 0, 1.0, 0.0) - tl.where(apart < 0, 1.0, 0.0)
        total += tl.sum(sign.to(bar.dtype) * bar[:, None, :], 2)
    tl.store(x_bar + at, total, mask=here)


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


@triton.jit
def sinkhorn_half_round_back(
    cost,
    start,
    scale,
    slope,
    scaling,
    marginal,
    quotient,
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
    """A half round in reverse, start - scale (K q) with q = slope scaling / marginal, of a block of rows.

    The columns' half round is the same with the strides of the cost exchanged. The quotient is written, too.
    """
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), out.dtype.element_ty)
    for offset in range(0, width, BLOCK):
        j = offset + tl.arange(0, BLOCK)
        inside = (i < height)[:, None] & (j < width)[None, :]
        at = n * stride_n + i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
        kernel = tl.where(inside, tl.exp(-tl.load(cost + at, mask=inside, other=0.0) * INVERSE), 0.0)
        own = n * width + j
        weight = tl.load(marginal + own, mask=j < width, other=0.0)
        flow = tl.load(slope + own, mask=j < width, other=0.0) * tl.load(
            scaling + own, mask=j < width, other=0.0
        )
        q = tl.where(weight > 0, flow / tl.where(weight > 0, weight, 1.0), 0.0)
        tl.store(quotient + own, q, mask=(j < width) & (tl.program_id(1) == 0))
        total += tl.sum(kernel * q[None, :], 1)
    first = tl.load(start + n * height + i, mask=i < height, other=0.0)
    factor = tl.load(scale + n * height + i, mask=i < height, other=0.0)
    tl.store(out + n * height + i, first - factor * total, mask=i < height)
