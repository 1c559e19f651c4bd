"""Log-probabilities of listed tokens, which differ by position: labels, or sparse targets.

One pass over the rows forward and one back; computed in float32 at least, and no copy of the logits is made.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import RowSource, SourceLayout, row_blocks, source_gradients


def log_probs_at(rows: RowSource, ids: Tensor, mask: Tensor, temperature: float) -> Tensor:
    r"""Log-probabilities ``(B, T, K)`` of some tokens; minus infinity where there is none or nothing counts.

    .. math:: \log p_u = (z_u - m)/\tau - \log \sum_v e^{(z_v - m)/\tau}
    """
    log_probs = torch.full(ids.shape, -torch.inf, dtype=rows.dtype, device=mask.device)
    for where, logits in row_blocks(rows, mask):
        listed = ids[where]
        below = logits.gather(-1, listed.clamp(min=0)).to(rows.dtype)
        below -= logits.amax(-1, keepdim=True)
        # The probability of the largest logit is e^0 over the total.
        highest = _softmax(logits, temperature, rows.dtype).amax(-1, keepdim=True).log_()
        log_probs[where] = below.div_(temperature).add_(highest).masked_fill_(listed < 0, -torch.inf)
    return log_probs.masked_fill_(~mask[..., None], -torch.inf)


def log_probs_at_back(
    rows: RowSource, wanted: tuple[bool, ...], ids: Tensor, mask: Tensor, temperature: float, bar: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the source from those of the log-probabilities."""
    bar = bar.masked_fill(~mask[..., None] | (ids < 0), 0) / temperature
    total = bar.sum(-1, keepdim=True).neg_()

    def slope(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece: Tensor = torch.mul(_softmax(logits, temperature, rows.dtype), total[where], out=out)
        piece.scatter_add_(-1, ids[where].clamp(min=0), bar[where])
        return piece

    return source_gradients(rows, mask, wanted, slope)


def _softmax(logits: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    if temperature != 1:
        logits = logits.to(dtype) / temperature
    return logits.softmax(-1, dtype=dtype)


class LogProbsAt(torch.autograd.Function):
    """`log_probs_at` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, layout: SourceLayout, ids: Tensor, mask: Tensor, temperature: float, *tensors: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(ids, mask, *tensors)
        ctx.layout, ctx.temperature = layout, temperature
        return log_probs_at(layout.rows(tensors), ids, mask, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        ids, mask, *tensors = ctx.saved_tensors
        rows, wanted = ctx.layout.rows(tuple(tensors)), ctx.needs_input_grad[4:]
        return (None, None, None, None, *log_probs_at_back(rows, wanted, ids, mask, ctx.temperature, bar))
