"""Cross-entropy from the rows of a source: computed in float32 at least, no copy of the logits made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlot.backends.torch.rows import Kind, RowSource, walk, walk_back


def losses(rows: RowSource, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability ``(B, T)`` of one target ``(B, T)`` for each valid position, 0 elsewhere."""
    loss = torch.zeros(mask.shape, dtype=rows.dtype, device=mask.device)
    for where, logits in walk(rows, mask):
        picked = logits.gather(-1, targets[where][..., None]).to(rows.dtype)
        below = picked - logits.amax(-1, keepdim=True).to(rows.dtype)
        # The probability of the largest logit is e^0 over the total.
        highest = logits.softmax(-1, dtype=rows.dtype).amax(-1)
        loss[where] = -highest.log_() - below.squeeze(-1)
    return loss.masked_fill_(~mask, 0)


def losses_back(
    rows: RowSource, wanted: tuple[bool, ...], targets: Tensor, mask: Tensor, bar: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the source from those of the losses."""
    bar = bar.masked_fill(~mask, 0)[..., None]

    def slope(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece: Tensor = torch.mul(logits.softmax(-1, dtype=rows.dtype), bar[where], out=out)
        piece.scatter_add_(-1, targets[where][..., None], -bar[where])
        return piece

    return walk_back(rows, mask, wanted, slope)


class CrossEntropy(torch.autograd.Function):
    """`losses` with their gradient."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, targets: Tensor, mask: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(targets, mask, *tensors)
        ctx.kind = kind
        return losses(kind.rows(tensors), targets, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        targets, mask, *tensors = ctx.saved_tensors
        rows = ctx.kind.rows(tuple(tensors))
        return (None, None, None, *losses_back(rows, ctx.needs_input_grad[3:], targets, mask, bar))
