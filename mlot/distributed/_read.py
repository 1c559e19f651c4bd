r"""Reading a sharded vocabulary, and the gradient.

As in `mlot.backends.torch.read`, but what a row sums over the vocabulary is summed over the processes between
two walks: first the largest logits and totals, then column masses under the common normalisers. The gradient
of a shard needs nothing from the others: with upstream gradients that are the same on every process, it holds
column by column. Only hidden states, which feed all shards, and standard deviations need a sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.exponentials import exponential
from mlot.backends.torch.read import Overwrite, Reading, Request, masked_gradients, slope_of
from mlot.backends.torch.rows import HeadRows, RowSource, SourceLayout, row_blocks, source_gradients
from mlot.backends.torch.standardize import STD_OFFSET, inner, moments, through_standardization
from mlot.backends.torch.statistics import Settings, heaviest_columns, reduce_rows
from mlot.distributed._partition import VocabularyPartition


class GlobalStatistics(NamedTuple):
    """What rows have in common on all processes; 0 (deviation: 1) where they are masked out."""

    top: Tensor  #: largest logit of the vocabulary, before it is standardised, ``(B, T)``
    log_totals: Tensor  #: log-sum-exp relative to it at every temperature, ``(1 + n, B, T)``
    deviation: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mean: Tensor | None  #: mean of the logits that are not -inf, ``(B, T)``, if there is a deviation
    possible: Tensor | None  #: number of those logits, ``(B, T)``, if there is a deviation


@torch.compiler.disable  # type: ignore[untyped-decorator]
def read(
    layout: SourceLayout, partition: VocabularyPartition, mask: Tensor, settings: Settings, request: Request
) -> Reading:
    """Answer a request, the same on every process."""
    if request.overwrite is not None:
        request.overwrite.passes += 1
    columns, ids = request.listed(mask)
    with torch.autocast(mask.device.type, enabled=False):
        fields = _Read.apply(  # type: ignore[no-untyped-call]
            layout.without_tensors(),
            partition,
            mask,
            settings,
            request.k,
            columns,
            ids,
            request.without,
            request.overwrite,
            *layout.tensors,
        )
    return request.answered(columns, *fields)


# -- what is common to all processes ---------------------------------------------------------------------


def global_statistics(
    rows: RowSource,
    partition: VocabularyPartition,
    mask: Tensor,
    settings: Settings,
    ids: Tensor,
    without: int,
) -> tuple[GlobalStatistics, Tensor]:
    """Reduce the columns of this process, and combine the result with the others'; its logits of tokens."""
    deviation, mean, possible = (
        _deviation(rows, partition, mask) if settings.standardize else (None, None, None)
    )
    own = reduce_rows(rows, mask, settings, ids, sums=False, without=without, deviation=deviation)
    # A shard may be empty, or exclude all of its columns.
    top = own.top.masked_fill(~mask, -torch.inf) if rows.shape[2] else torch.full_like(own.top, -torch.inf)
    highest = partition.maximum(top.clone())
    here = mask & ~torch.isneginf(top)
    below = torch.where(here, top - highest, 0)
    if deviation is not None:
        below = below / deviation
    log_totals = own.log_totals
    for n, temperature in enumerate((*settings.temperatures, settings.temperature)[: len(log_totals)]):
        log_totals[n] = torch.where(here, (log_totals[n] + below / temperature).exp_(), 0)
    log_totals = torch.where(mask, partition.total(log_totals), 1).log_()
    statistics = GlobalStatistics(torch.where(mask, highest, 0), log_totals, deviation, mean, possible)
    return statistics, own.listed


def _deviation(
    rows: RowSource, partition: VocabularyPartition, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What to divide logits by, their means and how many there are, over the whole vocabulary, -inf left out.

    In two exchanges, so that the squares are of differences from the mean.
    """
    own = torch.zeros((3, *mask.shape), dtype=rows.dtype, device=mask.device)
    for where, logits in row_blocks(rows, mask):
        parts = torch.stack(moments(logits.to(rows.dtype))).squeeze(-1)
        own[(slice(None), *where)] = torch.where(mask[where], parts, 0)
    centre, squares, width = own
    sums, count = partition.total(torch.stack((centre * width, width)))
    mean = sums / count.clamp(min=1)
    squares = partition.total(squares + width * (centre - mean).square())
    deviation = (squares / (count - 1).clamp(min=1)).sqrt_().add_(STD_OFFSET)
    # Of a single token there is no deviation, and whatever the divisor, its probability is 1.
    return torch.where(mask & (count > 1), deviation, 1), mean, count


def _column_mass(rows: RowSource, mask: Tensor, statistics: GlobalStatistics, temperature: float) -> Tensor:
    """Sums of the probabilities of this process's columns, ``(B, V_rank)``."""
    mass = statistics.top.new_zeros((mask.shape[0], rows.shape[2]))
    weights = (-statistics.log_totals[0]).exp()
    for where, logits in row_blocks(rows, mask):
        divisor = None if statistics.deviation is None else statistics.deviation[where][..., None]
        probs = exponential(
            logits, statistics.top[where][..., None], divisor, temperature, rows.scratch(logits.shape)
        )
        probs.mul_(weights[where][..., None]).masked_fill_(~mask[where][..., None], 0)
        mass[where[0]] += probs.sum(1)
    return mass


def _merge(mass: Tensor, partition: VocabularyPartition, k: int) -> tuple[Tensor, Tensor]:
    """The k heaviest columns of all shards, and their masses, in descending order; ties by lower index."""
    widths = [min(k, size) for size in partition.sizes]
    local = heaviest_columns(mass, widths[partition.rank])
    # Shards come in the order of columns, each with ties by lower index: a stable sort keeps both.
    masses = partition.gather(mass.gather(1, local), widths)
    columns = partition.gather(local + partition.start, widths)
    order = masses.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns.gather(1, order), masses.gather(1, order)


# -- differentiable --------------------------------------------------------------------------------------


class _Read(torch.autograd.Function):
    """The fields of a `Reading`, with their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: SourceLayout,
        partition: VocabularyPartition,
        mask: Tensor,
        settings: Settings,
        k: int | None,
        columns: Tensor,
        ids: Tensor,
        without: int,
        overwrite: Overwrite | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows = layout.rows(tensors)
        listed_here, local_ids = _located(partition, ids)
        statistics, picked = global_statistics(rows, partition, mask, settings, local_ids, without)
        mass, chosen = statistics.top.new_empty((len(mask), 0)), columns.new_empty(0)
        if k is not None:
            own_mass = _column_mass(rows, mask, statistics, settings.temperature)
            columns, mass = _merge(own_mass, partition, k)
            chosen = columns
        ctx.mark_non_differentiable(chosen, mass)
        kept_here, index = partition.locate(columns)
        top = statistics.top[..., None]
        kept = rows.columns(index) if rows.shape[2] else top.new_zeros((*mask.shape, columns.shape[1]))
        both = torch.cat([kept, picked], 2)
        here = torch.cat([kept_here[:, None].expand(kept.shape), listed_here], 2) & mask[..., None]
        below = partition.total(torch.where(here, both - top, 0))
        if statistics.deviation is not None:
            below /= statistics.deviation[..., None]
        widths = [columns.shape[1], ids.shape[2]]
        kept, listed = (part.clone() for part in torch.split(below, widths, 2))
        ctx.save_for_backward(mask, columns, ids, *statistics, *tensors)
        ctx.layout, ctx.partition, ctx.settings = layout, partition, settings
        ctx.without, ctx.overwrite = without, overwrite
        return chosen, mass, kept, listed, statistics.log_totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, columns, ids, *rest = ctx.saved_tensors
        statistics, tensors = GlobalStatistics(*rest[:5]), rest[5:]
        partition, wanted = ctx.partition, ctx.needs_input_grad[9:]
        g_kept, g_listed, nu = masked_gradients(mask, ids, *gradients[2:])
        kept_here, index = partition.locate(columns)
        listed_here, local_ids = _located(partition, ids)
        rows = full_precision_rows(ctx.layout, tensors)
        slope = slope_of(
            rows,
            index,
            local_ids,
            *statistics[:3],
            ctx.settings,
            ctx.without,
            g_kept.masked_fill_(~kept_here[:, None], 0),
            g_listed.masked_fill_(~listed_here, 0),
            nu,
        )
        overwrite = ctx.overwrite is not None and ctx.overwrite.granted
        results = local_gradients(rows, partition, mask, wanted, slope, statistics, tensors, overwrite)
        return (*(None,) * 9, *results)


def _located(partition: VocabularyPartition, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are here, and their columns, -1 for the others."""
    here, index = partition.locate(ids)
    return here, torch.where(here, index, -1)


def full_precision_rows(layout: SourceLayout, tensors: Any) -> RowSource:
    """Rows for a backward pass: gradients of hidden states are summed over processes, then rounded."""
    rows = layout.rows(tuple(tensors))
    if isinstance(rows, HeadRows) and rows.hidden.dtype != rows.dtype:
        return layout.rows((rows.hidden.to(rows.dtype), *tensors[1:]))
    return rows


def local_gradients(
    rows: RowSource,
    partition: VocabularyPartition,
    mask: Tensor,
    wanted: tuple[bool, ...],
    slope: Any,
    statistics: GlobalStatistics,
    tensors: Any,
    overwrite: bool,
) -> list[Tensor | None]:
    """Gradients of the tensors of this process, from the slope by the (standardised) logits of each block."""
    along = None
    if statistics.deviation is not None:
        along = torch.zeros_like(statistics.top)
        for where, logits in row_blocks(rows, mask):
            along[where] = inner(slope(where, logits, None), logits.to(rows.dtype)).squeeze(-1)
        along = partition.total(along.masked_fill_(~mask, 0))

    def whole(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece: Tensor = slope(where, logits, out)
        if along is None:
            return piece
        divisor, mean, count = (part[where][..., None] for part in statistics[2:] if part is not None)
        logits = logits.to(rows.dtype)
        return through_standardization(piece, logits, divisor, mean, count, along[where][..., None])

    if rows.shape[2]:
        in_place = along is None
        gradients = list(source_gradients(rows, mask, wanted, whole, in_place=in_place, overwrite=overwrite))
    else:
        gradients = [
            torch.zeros_like(t) if want and t is not None else None
            for t, want in zip(_tensors_of(rows), wanted, strict=True)
        ]
    if isinstance(rows, HeadRows) and gradients[0] is not None:
        gradients[0] = partition.total(gradients[0].contiguous()).to(tensors[0].dtype)
    return gradients


def _tensors_of(rows: RowSource) -> tuple[Tensor | None, ...]:
    return (rows.hidden, rows.weight, rows.bias) if isinstance(rows, HeadRows) else (rows.logits,)
