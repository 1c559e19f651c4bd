"""Triton kernels of universal logit distillation: counts, signs and gradient of the rows of pairs.

Atomics add whole numbers alone, and nothing depends on the order in which they come.

A pair's row begins at an offset of its logits; probabilities are made again from the logits, the largest of
the row and the log-sum-exp below it wherever they are needed. Arguments carry no types: Triton reads
annotations as its own.
"""

import triton
import triton.language as tl


@triton.jit
def _bins(probs, FRACTION: tl.constexpr, LOWEST: tl.constexpr, HIGHEST: tl.constexpr):
    """Bins of probabilities; those of `mlot.backends.torch.uld_counts.bins_of`."""
    if probs.dtype == tl.float64:
        number = probs.to(tl.int64, bitcast=True)
    else:
        number = probs.to(tl.int32, bitcast=True)
    number = (number >> FRACTION) - LOWEST
    return tl.minimum(tl.maximum(number, 0), HIGHEST).to(tl.int32)


@triton.jit
def uld_counts(
    logits,
    starts,
    valid,
    top,
    totals,
    counts,
    vocabulary,
    FRACTION: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the probabilities of one block of a pair's row to the counts of their bins, but for the lowest."""
    pair = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < vocabulary) & (tl.load(valid + pair) != 0)
    z = tl.load(logits + tl.load(starts + pair) + at, mask=inside, other=-float("inf")).to(
        top.dtype.element_ty
    )
    probs = tl.exp(z - tl.load(top + pair) - tl.load(totals + pair))
    bins = _bins(probs, FRACTION, LOWEST, HIGHEST)
    tl.atomic_add(counts + pair * (HIGHEST + 1) + bins, 1, mask=inside & (bins > 0), sem="relaxed")


@triton.jit
def uld_bins(
    counts_s,
    counts_t,
    table,
    above_s,
    above_t,
    places_s,
    places_t,
    listed,
    student_vocabulary,
    teacher_vocabulary,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the counts of a pair's two rows say about each bin; see `mlot.backends.torch.uld_counts`.

    Written are the student's sign, 0 where a bin does not decide; how many of each side are in higher bins;
    the places from which on a bin's probabilities are listed if it does not decide; and of the pair, how many
    are listed of each side and how many of the fullest such bin.
    """
    pair = tl.program_id(0).to(tl.int64)
    below_s = tl.zeros((), tl.int32)
    below_t = tl.zeros((), tl.int32)
    open_s = tl.zeros((), tl.int32)
    open_t = tl.zeros((), tl.int32)
    fullest = tl.zeros((), tl.int32)
    for offset in range(0, BINS, BLOCK):
        bins = offset + tl.arange(0, BLOCK)
        inside = bins < BINS
        at = pair * BINS + bins
        own = tl.load(counts_s + at, mask=inside, other=0)
        other = tl.load(counts_t + at, mask=inside, other=0)
        higher = student_vocabulary - below_s - tl.cumsum(own, 0)
        higher_t = teacher_vocabulary - below_t - tl.cumsum(other, 0)
        sign = (higher >= higher_t + other).to(tl.int32) - (higher_t >= higher + own).to(tl.int32)
        undecided = inside & (sign == 0)
        listed_s = tl.where(undecided, own, 0)
        listed_t = tl.where(undecided, other, 0)
        tl.store(table + at, sign.to(tl.int8), mask=inside)
        tl.store(above_s + at, higher, mask=inside)
        tl.store(above_t + at, higher_t, mask=inside)
        tl.store(places_s + at, open_s + tl.cumsum(listed_s, 0) - listed_s, mask=inside)
        tl.store(places_t + at, open_t + tl.cumsum(listed_t, 0) - listed_t, mask=inside)
        below_s += tl.sum(own, 0)
        below_t += tl.sum(other, 0)
        open_s += tl.sum(listed_s, 0)
        open_t += tl.sum(listed_t, 0)
        fullest = tl.maximum(fullest, tl.max(tl.maximum(listed_s, listed_t), 0))
    tl.store(listed + pair * 3, open_s)
    tl.store(listed + pair * 3 + 1, open_t)
    tl.store(listed + pair * 3 + 2, fullest)


@triton.jit
def uld_signs(
    logits,
    starts,
    valid,
    top,
    totals,
    table,
    places,
    signs,
    values,
    tokens,
    sums,
    vocabulary,
    stride,
    capacity,
    SIDE: tl.constexpr,
    KEEP: tl.constexpr,
    FRACTION: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Signs of the probabilities of one block whose bins decide, their sum with these, and a list of others.

    The table is the student's; SIDE is 1 for it and -1 for the teacher. Signs are written if KEEP. A place is
    taken by whoever comes first, on which nothing depends; afterwards it is that of the bin's end.
    """
    pair = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < vocabulary) & (tl.load(valid + pair) != 0)
    start = logits + tl.load(starts + pair)
    z = tl.load(start + at, mask=inside, other=-float("inf")).to(top.dtype.element_ty)
    probs = tl.exp(z - tl.load(top + pair) - tl.load(totals + pair))
    bins = pair * (HIGHEST + 1) + _bins(probs, FRACTION, LOWEST, HIGHEST)
    sign = tl.load(table + bins, mask=inside, other=1).to(tl.int32) * SIDE
    total = tl.sum(tl.where(inside, sign.to(probs.dtype) * probs, 0.0), 0)
    tl.store(sums + pair * tl.num_programs(1) + tl.program_id(1), total)
    if KEEP:
        tl.store(signs + pair * stride + at, sign.to(tl.int8), mask=inside)
    undecided = inside & (sign == 0)
    place = pair * capacity + tl.atomic_add(places + bins, 1, mask=undecided, sem="relaxed")
    tl.store(values + place, probs, mask=undecided)
    tl.store(tokens + place, at, mask=undecided)


@triton.jit
def uld_undecided(
    values,
    tokens,
    others,
    counts,
    places,
    above,
    other_counts,
    other_places,
    other_above,
    listed,
    signs,
    capacity,
    other_capacity,
    SIDE: tl.constexpr,
    FRACTION: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Signs of one block of listed probabilities, each compared with all of its bin on both sides."""
    pair = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    length = tl.load(listed + pair * 3 + SIDE)
    inside = n < length
    own = pair * capacity
    value = tl.load(values + own + n, mask=inside, other=0.0)
    token = tl.load(tokens + own + n, mask=inside, other=0)
    bins = pair * (HIGHEST + 1) + _bins(value, FRACTION, LOWEST, HIGHEST)
    count = tl.load(other_counts + bins, mask=inside, other=0)
    first = tl.load(other_places + bins, mask=inside, other=0) - count
    larger = tl.load(other_above + bins, mask=inside, other=0)
    as_large = larger
    for m in range(tl.max(count, 0)):
        here = m < count
        another = tl.load(others + pair * other_capacity + first + m, mask=here, other=0.0)
        larger += (here & (another > value)).to(tl.int32)
        as_large += (here & (another >= value)).to(tl.int32)
    count = tl.load(counts + bins, mask=inside, other=0)
    first = tl.load(places + bins, mask=inside, other=0) - count
    rank = tl.load(above + bins, mask=inside, other=0) + 1
    # Where every rank that the bin has leads to the same sign, the own one does not matter.
    count = tl.where((rank > as_large) | (larger >= rank + count - 1), 0, count)
    for m in range(tl.max(count, 0)):
        here = m < count
        another = tl.load(values + own + first + m, mask=here, other=0.0)
        before = tl.load(tokens + own + first + m, mask=here, other=0) < token
        rank += (here & ((another > value) | ((another == value) & before))).to(tl.int32)
    sign = (rank > as_large).to(tl.int32) - (larger >= rank).to(tl.int32)
    tl.store(signs + own + n, sign.to(tl.int8), mask=inside)


@triton.jit
def uld_gradient(
    logits,
    mask,
    top,
    totals,
    edges,
    order,
    signs,
    means,
    bars,
    gradient,
    stride_b,
    stride_t,
    length,
    vocabulary,
    stride,
    BLOCK: tl.constexpr,
):
    """Gradient of one block of a position, ``p`` times the sum of ``bar (sign - mean)`` over its pairs.

    The pairs of a position follow one another in their order; where there is none, the gradient is 0.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < vocabulary) & (tl.load(mask + row) != 0)
    start = logits + (row // length) * stride_b + (row % length) * stride_t
    z = tl.load(start + at, mask=inside, other=-float("inf")).to(top.dtype.element_ty)
    probs = tl.exp(z - tl.load(top + row) - tl.load(totals + row))
    slope = tl.zeros((BLOCK,), probs.dtype)
    for n in range(tl.load(edges + row), tl.load(edges + row + 1)):
        pair = tl.load(order + n)
        sign = tl.load(signs + pair * stride + at, mask=inside, other=0).to(probs.dtype)
        slope += tl.load(bars + pair) * (sign - tl.load(means + pair))
    value = tl.where(inside, slope * probs, 0.0)
    tl.store(gradient + row * vocabulary + at, value.to(gradient.dtype.element_ty), mask=at < vocabulary)
