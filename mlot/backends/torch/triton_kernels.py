"""Triton kernels: the passes over a vocabulary.

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
    words,
    INVERSE: tl.constexpr,
    INVERSE_EXTRA: tl.constexpr,
    EXTRA: tl.constexpr,
    DOUBLED: tl.constexpr,
    LEFT_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Largest logit of a row, and log-sum-exps of what lies below it at one or two temperatures.

    One program for each row; all sums are kept relative to the largest logit so far. If LEFT_OUT, there is
    one more sum at the first temperature, without the tokens whose bits are set in the row's words.
    """
    row = tl.program_id(0).to(tl.int64)
    start = logits + (row // length) * stride_b + (row % length) * stride_t
    dtype = top.dtype.element_ty
    width = tl.where(tl.load(mask + row) != 0, vocabulary, 0)
    highest = tl.full((), -float("inf"), dtype)
    first = tl.zeros((), dtype)
    second = tl.zeros((), dtype)
    rest = tl.zeros((), dtype)
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
            word = tl.load(left_out + row * words + (at >> 5), mask=at < width, other=0)
            power = tl.where(((word >> (at & 31)) & 1) != 0, 0.0, power)
            rest = rest * shrink + tl.sum(power, 0)
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
    STRETCH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of each column's probabilities over the valid rows of a stretch of a sequence.

    One program for each sequence, block of columns and stretch of rows, which it goes down.
    """
    sequence = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(2) * STRETCH
    dtype = mass.dtype.element_ty
    total = tl.zeros((ROWS, BLOCK), dtype)
    for offset in range(0, STRETCH, ROWS):
        t = first + offset + tl.arange(0, ROWS)
        row = sequence * length + t
        valid = tl.load(mask + row, mask=t < length, other=0) != 0
        below = tl.load(top + row, mask=valid, other=0.0)
        log_total = tl.load(totals + row, mask=valid, other=0.0)
        inside = valid[:, None] & (columns < vocabulary)[None, :]
        at = sequence * stride_b + t.to(tl.int64)[:, None] * stride_t + columns[None, :]
        z = tl.load(logits + at, mask=inside, other=-float("inf")).to(dtype)
        probs = tl.exp((z - below[:, None]) * INVERSE - log_total[:, None])
        total += tl.where(inside, probs, 0.0)
    place = (sequence * tl.num_programs(2) + tl.program_id(2)) * vocabulary + columns
    tl.store(mass + place, tl.sum(total, 0), mask=columns < vocabulary)


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
