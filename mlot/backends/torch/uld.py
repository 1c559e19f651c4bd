"""Universal logit distillation: sorted probabilities compared pair by pair, a few pairs at a time.

For the backward pass only signs are kept, one byte for each logit of a paired position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import SourceLayout, rows_in_slice, zero_gradient


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
        wanted = _wanted(student, ctx.needs_input_grad[4:])
        (s_rows, s_where), (t_rows, t_where) = sides
        dtype = torch.promote_types(s_rows.dtype, t_rows.dtype)
        signs: list[list[Tensor]] = [[], []]
        parts = []
        for piece in _pieces(valid, max(s_rows.shape[2], t_rows.shape[2]), dtype.itemsize):
            s, s_order = _descending(s_rows.read(_at(s_where, piece)).to(dtype), any(wanted[0]))
            t, t_order = _descending(t_rows.read(_at(t_where, piece)).to(dtype), any(wanted[1]))
            width = min(s.shape[1], t.shape[1])
            difference = s[:, :width] - t[:, :width]
            tails = s[:, width:].sum(1) + t[:, width:].sum(1)
            parts.append(torch.where(valid[piece], difference.abs().sum(1) + tails, 0))
            for side, (order, flip) in enumerate(((s_order, 1), (t_order, -1))):
                if order is not None:
                    signs[side].append(_signs(difference, order, flip, valid[piece]))
        kept = [torch.cat(each) if each else None for each in signs]
        ctx.save_for_backward(*kept, *index, valid, *tensors)
        ctx.layouts = student, teacher
        return torch.cat(parts) if parts else valid.new_zeros(0, dtype=dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        s_signs, t_signs, b, i, j, valid, *tensors = ctx.saved_tensors
        student, teacher = ctx.layouts
        sides = _sides(student, teacher, (b, i, j), tuple(tensors))
        wanted = _wanted(student, ctx.needs_input_grad[4:])
        results: list[Tensor | None] = []
        for (rows, where), signs, wants in zip(sides, (s_signs, t_signs), wanted, strict=True):
            if not any(wants):
                results += [None] * len(wants)
                continue
            gradient = zero_gradient(rows, wants)
            if signs is not None:
                for piece in _pieces(valid, rows.shape[2], rows.dtype.itemsize):
                    here = _at(where, piece)
                    logits = rows.read(here)
                    probs = logits.to(rows.dtype).softmax(-1)
                    slope = probs * signs[piece]
                    slope -= probs.mul_(slope.sum(-1, keepdim=True))
                    slope *= bar[piece, None]
                    slope = rows.through_activation(logits, slope)
                    slope.masked_fill_(~valid[piece, None], 0)  # excluded rows may hold anything
                    gradient.add(here, slope, None if torch_rows.can_look(valid.device) else valid[piece])
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
    step = rows_in_slice(valid.device, vocabulary, itemsize)
    return [slice(start, start + step) for start in range(0, len(valid), step)]


def _at(where: tuple[Tensor, Tensor], piece: slice) -> tuple[Tensor, Tensor]:
    return where[0][piece], where[1][piece]


def _descending(logits: Tensor, order: bool) -> tuple[Tensor, Tensor | None]:
    """Probabilities in descending order, and the columns they come from if wanted."""
    probs, columns = logits.softmax(-1).sort(dim=-1, descending=True)
    return probs, columns if order else None


def _signs(difference: Tensor, order: Tensor, flip: int, valid: Tensor) -> Tensor:
    """Derivative of the distance by each probability, in the order of the vocabulary."""
    signs = torch.ones(order.shape, dtype=torch.int8, device=order.device)  # what has no partner counts whole
    signs[:, : difference.shape[1]] = difference.sign().mul_(flip)
    return torch.empty_like(signs).scatter_(1, order, signs)
