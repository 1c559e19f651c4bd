"""Universal logit distillation: sorted probabilities compared pair by pair, a few pairs at a time.

The distance is a sum of probabilities with signs, and so is its gradient. On the host the signs come from
counts (see `uld_counts`), as in the kernels (`uld_kernels`); on accelerators without these, where a list of
unknown length would have to be waited for, from a sort. For the backward pass only signs are kept: on the
host one byte for each bin of a row, on accelerators one for each logit of a paired position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import SourceLayout, rows_in_slice, zero_gradient
from mlot.backends.torch.uld_counts import Signs, bins_of_rows, compare, fraction_bits

_ARRAYS = 4  # of a slice's size that are in use at a time


class Uld(torch.autograd.Function):
    """Distance ``(n,)`` of each of n pairs of positions, given as indices into batch and positions."""

    @staticmethod
    def forward(
        ctx: Any,
        student: SourceLayout,
        teacher: SourceLayout,
        valid: Tensor,
        index: tuple[Tensor, Tensor, Tensor],
        *tensors: Tensor | None,
    ) -> Tensor:
        sides = _sides(student, teacher, index, tensors)
        wanted = [any(wants) for wants in _wanted(student, ctx.needs_input_grad[4:])]
        widest = max(rows.shape[2] for rows, _ in sides)
        dtype = torch.promote_types(*(rows.dtype for rows, _ in sides))
        ctx.bits = fraction_bits(widest) if torch_rows.can_look(valid.device) else None
        ctx.pieces = _pieces(valid, widest, dtype.itemsize)
        ctx.dtype = dtype
        distance = valid.new_zeros(len(valid), dtype=dtype)
        means = [torch.zeros_like(distance) if wants else None for wants in wanted]
        kept: list[list[Signs]] = [[], []]
        for piece in ctx.pieces:
            s, t = (rows.read(_at(where, piece)).softmax(-1, dtype=dtype) for rows, where in sides)
            signs, spread = sorted_signs(s, t) if ctx.bits is None else _counted(s, t, ctx.bits)
            for side, values in enumerate((s, t)):
                total = values.mul_(spread[side]).sum(1, dtype=torch.float64).to(dtype)
                distance[piece] += total
                mean = means[side]
                if mean is not None:
                    mean[piece] = total
                    kept[side].append(signs[side])
            del s, t, spread
        joined = [
            field
            for each in kept
            for field in (map(torch.cat, zip(*each, strict=True)) if each else [None] * 3)
        ]
        ctx.lengths = [[len(signs.listed) for signs in each] for each in kept]
        ctx.save_for_backward(*means, *joined, *index, valid, *tensors)
        ctx.layouts = student, teacher
        return distance.masked_fill_(~valid, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        means, joined, (b, i, j, valid), tensors = (
            saved[:2],
            (saved[2:5], saved[5:8]),
            saved[8:12],
            saved[12:],
        )
        student, teacher = ctx.layouts
        sides = _sides(student, teacher, (b, i, j), tuple(tensors))
        wanted = _wanted(student, ctx.needs_input_grad[4:])
        results: list[Tensor | None] = []
        for (rows, where), mean, signs, lengths, wants in zip(
            sides, means, joined, ctx.lengths, wanted, strict=True
        ):
            if not any(wants):
                results += [None] * len(wants)
                continue
            gradient = zero_gradient(rows, wants)
            if signs[0] is not None:
                table, listed, exact = signs
                parts = zip(ctx.pieces, listed.split(lengths), exact.split(lengths), strict=True)
                for piece, *undecided in parts:
                    here = _at(where, piece)
                    logits = rows.read(here)
                    probs = logits.softmax(-1, dtype=ctx.dtype)
                    columns = (bar[piece, None], mean[piece, None])
                    if ctx.bits is None:
                        slope = table[piece].to(ctx.dtype).sub_(columns[1]).mul_(columns[0])
                    else:
                        slope = Signs(table[piece], *undecided).spread(
                            bins_of_rows(probs, ctx.bits), *columns
                        )
                    slope = rows.through_activation(logits, slope.mul_(probs).to(rows.dtype))
                    slope.masked_fill_(~valid[piece, None], 0)  # excluded rows may hold anything
                    gradient.add(here, slope, None if ctx.bits is not None else valid[piece])
            results += gradient.result()
        return (None, None, None, None, *results)


def _sides(
    student: SourceLayout,
    teacher: SourceLayout,
    index: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor | None, ...],
) -> Any:
    b, i, j = index
    return (student.rows(tensors[: student.count]), (b, i)), (teacher.rows(tensors[student.count :]), (b, j))


def _wanted(student: SourceLayout, needs: tuple[bool, ...]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    return needs[: student.count], needs[student.count :]


def _pieces(valid: Tensor, vocabulary: int, itemsize: int) -> list[slice]:
    step = rows_in_slice(valid.device, vocabulary, _ARRAYS * itemsize)
    return [slice(start, start + step) for start in range(0, len(valid), step)]


def _at(where: tuple[Tensor, Tensor], piece: slice) -> tuple[Tensor, Tensor]:
    return where[0][piece], where[1][piece]


def _counted(student: Tensor, teacher: Tensor, bits: int) -> tuple[list[Signs], list[Tensor]]:
    """Signs of both sides from counts, and spread over their probabilities."""
    bins = bins_of_rows(student, bits), bins_of_rows(teacher, bits)
    signs = compare((student, teacher), bins, bits)
    one, none = student.new_ones(len(student), 1), student.new_zeros(len(student), 1)
    return signs, [each.spread(own, one, none) for each, own in zip(signs, bins, strict=True)]


def sorted_signs(student: Tensor, teacher: Tensor) -> tuple[list[Signs], list[Tensor]]:
    """Signs of both sides from a sort: those of all probabilities, none of them listed."""
    ordered = [probs.sort(dim=-1, descending=True) for probs in (student, teacher)]
    width = min(student.shape[1], teacher.shape[1])
    difference = (ordered[0].values[:, :width] - ordered[1].values[:, :width]).sign().to(torch.int8)
    spread = []
    for order, flip in zip((each.indices for each in ordered), (1, -1), strict=True):
        signs = torch.ones(order.shape, dtype=torch.int8, device=order.device)  # without a partner: whole
        signs[:, :width] = difference * flip
        spread.append(torch.empty_like(signs).scatter_(1, order, signs))
    nothing = spread[0].new_empty(0)
    return [Signs(each, nothing, nothing) for each in spread], spread
