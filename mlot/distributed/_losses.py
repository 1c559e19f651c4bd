"""Log-probabilities of listed tokens over a sharded vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import HeadRows, RowSource, SourceLayout
from mlot.backends.torch.select import Settings
from mlot.distributed._partition import VocabularyPartition
from mlot.distributed._selection import (
    GlobalStatistics,
    full_precision_rows,
    global_statistics,
    local_gradients,
    log_probability,
)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def log_probs_at(
    layout: SourceLayout, partition: VocabularyPartition, ids: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """Log-probabilities ``(B, T, K)`` of tokens of the whole vocabulary; minus infinity where none counts."""
    with torch.autocast(mask.device.type, enabled=False):
        log_probs: Tensor = _LogProbsAt.apply(  # type: ignore[no-untyped-call]
            layout.without_tensors(), partition, ids, mask, Settings(temperature, (), False), *layout.tensors
        )
        return log_probs


class _LogProbsAt(torch.autograd.Function):
    """`log_probs_at` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: SourceLayout,
        partition: VocabularyPartition,
        ids: Tensor,
        mask: Tensor,
        settings: Settings,
        *tensors: Tensor | None,
    ) -> Tensor:
        rows = layout.rows(tensors)
        statistics = global_statistics(rows, partition, mask, settings)
        listed = mask[..., None] & (ids >= 0)
        here, index = partition.locate(ids)
        top = statistics.top[..., None]
        picked = _picked(rows, index) if rows.shape[2] else torch.zeros_like(top).expand(ids.shape)
        below = partition.total(torch.where(here & listed, picked - top, 0))
        ctx.save_for_backward(ids, listed, mask, statistics.top, statistics.log_totals, *tensors)
        ctx.layout, ctx.partition, ctx.settings = layout, partition, settings
        log_probs = below / settings.temperature - statistics.log_totals[0][..., None]
        return log_probs.masked_fill_(~listed, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        ids, listed, mask, top, log_totals, *tensors = ctx.saved_tensors
        statistics, partition, settings = (
            GlobalStatistics(top, log_totals, None, None),
            ctx.partition,
            ctx.settings,
        )
        here, index = partition.locate(ids)
        bar = bar.masked_fill(~listed, 0) / settings.temperature
        total, hit = -bar.sum(-1, keepdim=True), torch.where(here, bar, 0)

        def slope(where: tuple[slice, slice], logits: Tensor) -> Tensor:
            piece = log_probability(logits, where, statistics, settings, 0).exp_().mul_(total[where])
            return piece.scatter_add_(-1, index[where], hit[where]) if logits.shape[-1] else piece

        rows = full_precision_rows(ctx.layout, tensors)
        gradients = local_gradients(
            rows, partition, mask, ctx.needs_input_grad[5:], slope, statistics, tensors
        )
        return (None, None, None, None, None, *gradients)


def _picked(rows: RowSource, index: Tensor) -> Tensor:
    """Logits ``(B, T, K)`` of some columns for each position."""
    if not isinstance(rows, HeadRows):
        return rows.logits.gather(2, index).to(rows.dtype)
    # Every position as a sequence of its own, which has its own columns.
    hidden = rows.hidden.flatten(0, 1)[:, None]
    alone = HeadRows(hidden, rows.weight, rows.bias, rows.softcap, rows.scale)
    return alone.columns(index.flatten(0, 1)).view(index.shape)
