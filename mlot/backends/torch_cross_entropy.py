"""Cross-entropy from the rows of a source: computed in float32 at least, no copy of the logits made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlot.backends.torch_rows import Kind, walk, walk_back


class CrossEntropy(torch.autograd.Function):
    """Negative log-probability ``(B, T)`` of one target ``(B, T)`` for each valid position, 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, kind: Kind, targets: Tensor, mask: Tensor, *tensors: Tensor | None) -> Tensor:
        rows = kind.rows(tensors)
        loss = torch.zeros(mask.shape, dtype=rows.dtype, device=mask.device)
        for where, logits in walk(rows, mask):
            picked = logits.gather(-1, targets[where][..., None]).to(rows.dtype)
            below = picked - logits.amax(-1, keepdim=True).to(rows.dtype)
            # The probability of the largest logit is e^0 over the total.
            highest = logits.softmax(-1, dtype=rows.dtype).amax(-1)
            loss[where] = -highest.log_() - below.squeeze(-1)
        ctx.save_for_backward(targets, mask, *tensors)
        ctx.kind = kind
        return loss.masked_fill_(~mask, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        targets, mask, *tensors = ctx.saved_tensors
        rows = ctx.kind.rows(tuple(tensors))
        bar = bar.masked_fill(~mask, 0)[..., None]

        def slope(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
            piece: Tensor = torch.mul(logits.softmax(-1, dtype=rows.dtype), bar[where], out=out)
            piece.scatter_add_(-1, targets[where][..., None], -bar[where])
            return piece

        return (None, None, None, *walk_back(rows, mask, ctx.needs_input_grad[3:], slope))


def cross_entropy(source: Any, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability ``(B, T)`` of the targets where the mask is true, 0 elsewhere."""
    kind = Kind(source)
    with torch.autocast(device_type=mask.device.type, enabled=False):
        targets = targets.masked_fill(~mask, 0)
        return CrossEntropy.apply(kind.forget(), targets, mask, *kind.tensors)  # type: ignore[no-any-return, no-untyped-call]
