"""Triton kernels of universal logit distillation: counts, signs and gradient of the rows of pairs.

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
def uld_signs(
    logits,
    starts,
    valid,
    top,
    totals,
    table,
    signs,
    values,
    places,
    distance,
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
    """Signs of the probabilities whose bins decide, their sum with these, and a list of the others.

    One program for each pair. The table is the student's; SIDE is 1 for it and -1 for the teacher. Signs are
    written if KEEP.
    """
    pair = tl.program_id(0).to(tl.int64)
    start = logits + tl.load(starts + pair)
    highest = tl.load(top + pair)
    log_total = tl.load(totals + pair)
    width = tl.where(tl.load(valid + pair) != 0, vocabulary, 0)
    total = tl.zeros((), tl.float64)
    listed = tl.zeros((), tl.int32)
    for offset in range(0, width, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        inside = at < width
        z = tl.load(start + at, mask=inside, other=-float("inf")).to(top.dtype.element_ty)
        probs = tl.exp(z - highest - log_total)
        bins = _bins(probs, FRACTION, LOWEST, HIGHEST)
        sign = tl.load(table + pair * (HIGHEST + 1) + bins, mask=inside, other=1).to(tl.int32) * SIDE
        total += tl.sum(tl.where(inside, sign.to(probs.dtype) * probs, 0.0), 0).to(tl.float64)
        if KEEP:
            tl.store(signs + pair * stride + at, sign.to(tl.int8), mask=inside)
        undecided = (sign == 0).to(tl.int32)
        place = pair * capacity + listed + tl.cumsum(undecided, 0) - 1
        tl.store(values + place, probs, mask=undecided != 0)
        tl.store(places + place, at, mask=undecided != 0)
        listed += tl.sum(undecided, 0)
    tl.store(distance + pair, total)


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
