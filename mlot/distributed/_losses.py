"""Cross-entropy over a sharded vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlot.backends.torch.rows import HeadRows, Kind, RowSource
from mlot.backends.torch.select import Settings
from mlot.distributed._place import Place
from mlot.distributed._selection import RowStatistics, back, log_probability, scan, whole_precision

_SETTINGS = Settings(1.0, (), False)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def cross_entropy(kind: Kind, place: Place, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-probability ``(B, T)`` of one target of the vocabulary for each valid position, else 0."""
    with torch.autocast(mask.device.type, enabled=False):
        losses: Tensor = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
            kind.forget(), place, targets.masked_fill(~mask, 0), mask, *kind.tensors
        )
        return losses


class _CrossEntropy(torch.autograd.Function):
    """`cross_entropy` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, kind: Kind, place: Place, targets: Tensor, mask: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        rows = kind.rows(tensors)
        found = scan(rows, place, mask, _SETTINGS)
        here, index = place.locate(targets)
        here &= mask
        picked = _picked(rows, index) if rows.shape[2] else torch.zeros_like(found.top)
        picked = place.total(torch.where(here, picked - found.top, 0))
        ctx.save_for_backward(targets, mask, found.top, found.log_totals, *tensors)
        ctx.kind, ctx.place = kind, place
        return (found.log_totals[0] - picked).masked_fill_(~mask, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        targets, mask, top, log_totals, *tensors = ctx.saved_tensors
        found, place = RowStatistics(top, log_totals, None, None), ctx.place
        here, index = place.locate(targets)
        bar = bar.masked_fill(~mask, 0)
        hit = torch.where(here, -bar, 0)

        def slope(where: tuple[slice, slice], logits: Tensor) -> Tensor:
            piece = log_probability(logits, where, found, _SETTINGS, 0).exp_().mul_(bar[where][..., None])
            return piece.scatter_add_(-1, index[where][..., None], hit[where][..., None])

        rows = whole_precision(ctx.kind, tensors)
        gradients = back(rows, place, mask, ctx.needs_input_grad[4:], slope, found, tensors)
        return (None, None, None, None, *gradients)


def _picked(rows: RowSource, index: Tensor) -> Tensor:
    """Logit ``(B, T)`` of one column for each position."""
    if not isinstance(rows, HeadRows):
        return rows.logits.gather(2, index[..., None]).squeeze(2).to(rows.dtype)
    # Every position as a sequence of its own, which has its own column.
    hidden = rows.hidden.flatten(0, 1)[:, None]
    alone = HeadRows(hidden, rows.weight, rows.bias, rows.softcap, rows.scale)
    return alone.columns(index.reshape(-1, 1)).view(index.shape)
