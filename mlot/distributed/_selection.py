r"""Selection over a sharded vocabulary, and its gradient.

As in `mlot.backends.torch.select`, but what a row sums over the vocabulary is summed over the processes
between two passes: first the largest logits and totals, then column masses under the common normalisers. The
gradient of a shard needs nothing from the others: with :math:`g` and :math:`\nu_\tau` upstream, the same on
every process,

.. math:: \bar y = \tfrac{1}{\tau_0}\mathrm{scatter}(g) - p\Big(\tfrac{1}{\tau_0}\sum_l g_l
          + \sum_\tau \tfrac{\nu_\tau}{\tau}\Big) + \sum_\tau \tfrac{\nu_\tau}{\tau}\,p^{(\tau)}

holds column by column. Only hidden states, which feed all shards, and standard deviations need a sum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import HeadRows, RowSource, SourceLayout, row_blocks, source_gradients
from mlot.backends.torch.select import (
    STD_OFFSET,
    Settings,
    heaviest_columns,
    normalized,
    reduce_block,
)
from mlot.distributed._partition import VocabularyPartition
from mlot.traces import Traces


class GlobalStatistics(NamedTuple):
    """What rows have in common on all processes; 0 (scale: 1) where they are masked out."""

    top: Tensor  #: largest logit of the vocabulary, before it is standardised, ``(B, T)``
    log_totals: Tensor  #: log-sum-exp relative to it at every temperature, ``(1 + n, B, T)``
    deviation: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mean: Tensor | None  #: mean logit, ``(B, T)``, if there is a scale


@torch.compiler.disable  # type: ignore[untyped-decorator]
def select_columns(
    layout: SourceLayout, partition: VocabularyPartition, mask: Tensor, k: int, settings: Settings
) -> Traces:
    """Traces of the ``k`` heaviest columns of the whole vocabulary, the same on every process."""
    with torch.autocast(mask.device.type, enabled=False):
        with torch.no_grad():
            rows = layout.rows(layout.tensors)
            statistics = global_statistics(rows, partition, mask, settings)
            columns, mass = _merge(_column_mass(rows, mask, statistics, settings.temperature), partition, k)
        return _gathered(layout, partition, columns, mask, statistics, settings, mass)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def traces_of(
    layout: SourceLayout, partition: VocabularyPartition, columns: Tensor, mask: Tensor, settings: Settings
) -> Traces:
    """Traces of given columns of the whole vocabulary."""
    with torch.autocast(mask.device.type, enabled=False):
        with torch.no_grad():
            statistics = global_statistics(layout.rows(layout.tensors), partition, mask, settings)
        return _gathered(layout, partition, columns.long(), mask, statistics, settings, None)


def _gathered(
    layout: SourceLayout,
    partition: VocabularyPartition,
    columns: Tensor,
    mask: Tensor,
    statistics: GlobalStatistics,
    settings: Settings,
    mass: Tensor | None,
) -> Traces:
    log_probs, normalizers = _GatherColumns.apply(  # type: ignore[no-untyped-call]
        layout.without_tensors(), partition, columns, mask, statistics, settings, *layout.tensors
    )
    if mass is None:
        mass = log_probs.detach().exp().sum(1)
    return Traces(columns, log_probs, normalizers, mass, mask, partition.vocabulary, *settings)


# -- what is common to all processes ---------------------------------------------------------------------


def global_statistics(
    rows: RowSource, partition: VocabularyPartition, mask: Tensor, settings: Settings
) -> GlobalStatistics:
    """Reduce the columns of this process, and combine the result with the others'."""
    deviation, mean = _deviation(rows, partition, mask) if settings.standardize else (None, None)
    top = torch.full(mask.shape, -torch.inf, dtype=rows.dtype, device=mask.device)
    log_totals = top.new_zeros((1 + len(settings.extra), *mask.shape))
    for where, logits in _row_blocks(rows, mask):
        valid = mask[where]
        divisor = None if deviation is None else deviation[where][..., None]
        totals, _ = reduce_block(logits, divisor, valid, rows.dtype, settings, False)
        top[where] = torch.where(valid, logits.amax(-1).to(rows.dtype), -torch.inf)
        log_totals[(slice(None), *where)] = totals
    highest = partition.maximum(top.clone())
    here = mask & ~torch.isneginf(top)  # a shard may be empty, or exclude all of its columns
    below = torch.where(here, top - highest, 0)
    if deviation is not None:
        below = below / deviation
    for n, temperature in enumerate((settings.temperature, *settings.extra)):
        log_totals[n] = torch.where(here, (log_totals[n] + below / temperature).exp_(), 0)
    log_totals = torch.where(mask, partition.total(log_totals), 1).log_()
    return GlobalStatistics(torch.where(mask, highest, 0), log_totals, deviation, mean)


def _row_blocks(rows: RowSource, mask: Tensor) -> Any:
    """Slices of the valid positions; none of a shard without columns."""
    return row_blocks(rows, mask) if rows.shape[2] else ()


def _deviation(rows: RowSource, partition: VocabularyPartition, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What to divide logits by, and their means, over the whole vocabulary.

    In two exchanges, so that the squares are of differences from the mean.
    """
    own = torch.zeros((2, *mask.shape), dtype=rows.dtype, device=mask.device)
    for where, logits in _row_blocks(rows, mask):
        logits = logits.to(rows.dtype)
        centre = logits.mean(-1, keepdim=True)
        own[(0, *where)] = torch.where(mask[where], centre.squeeze(-1), 0)
        squares = (logits - centre).square_().sum(-1)
        own[(1, *where)] = torch.where(mask[where], squares, 0)
    width, vocabulary = rows.shape[2], partition.vocabulary
    mean = partition.total(own[0] * (width / vocabulary))
    if vocabulary == 1:
        return torch.ones_like(mean), mean  # no deviation, and whatever the divisor, the probability is 1
    squares = partition.total(own[1] + width * (own[0] - mean).square())
    deviation = (squares / (vocabulary - 1)).sqrt_().add_(STD_OFFSET)
    return torch.where(mask, deviation, 1), mean


def log_probability(
    logits: Tensor, where: Any, statistics: GlobalStatistics, settings: Settings, n: int
) -> Tensor:
    """Log-probabilities of some logits at the temperature of number n, a new tensor."""
    below = logits.to(statistics.top.dtype) - statistics.top[where][..., None]
    if statistics.deviation is not None:
        below /= statistics.deviation[where][..., None]
    below *= 1 / (settings.temperature, *settings.extra)[n]
    return below.sub_(statistics.log_totals[(n, *where)][..., None])


def _column_mass(rows: RowSource, mask: Tensor, statistics: GlobalStatistics, temperature: float) -> Tensor:
    """Sums of the probabilities of this process's columns, ``(B, V_rank)``."""
    settings = Settings(temperature, (), statistics.deviation is not None)
    mass = statistics.top.new_zeros((mask.shape[0], rows.shape[2]))
    for where, logits in _row_blocks(rows, mask):
        probs = log_probability(logits, where, statistics, settings, 0).exp_()
        mass[where[0]] += probs.masked_fill_(~mask[where][..., None], 0).sum(1)
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


# -- kept columns, differentiable ------------------------------------------------------------------------


class _GatherColumns(torch.autograd.Function):
    """Log-probabilities ``(B, T, k)`` of given columns, and normalisers ``(B, T, n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: SourceLayout,
        partition: VocabularyPartition,
        columns: Tensor,
        mask: Tensor,
        statistics: GlobalStatistics,
        settings: Settings,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(columns, mask, *statistics, *tensors)
        ctx.layout, ctx.partition, ctx.settings = layout, partition, settings
        rows = layout.rows(tensors)
        here, index = partition.locate(columns)
        shape = (*mask.shape, columns.shape[1])
        kept = rows.columns(index) if rows.shape[2] else statistics.top.new_zeros(shape)
        kept = torch.where(here[:, None, :] & mask[..., None], kept - statistics.top[..., None], 0)
        return normalized(partition.total(kept), statistics.log_totals, statistics.deviation, mask, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, nu: Tensor) -> tuple[Tensor | None, ...]:
        columns, mask, top, log_totals, deviation, mean, *tensors = ctx.saved_tensors
        statistics, settings, partition = (
            GlobalStatistics(top, log_totals, deviation, mean),
            ctx.settings,
            ctx.partition,
        )
        here, index = partition.locate(columns)
        g = g.masked_fill(~mask[..., None], 0) / settings.temperature
        extra_coefficients = nu.masked_fill(~mask[..., None], 0)
        for n, extra in enumerate(settings.extra):
            extra_coefficients[..., n] /= extra
        coefficient = g.sum(-1) + extra_coefficients.sum(-1)
        g = g.masked_fill(~here[:, None, :], 0)

        def slope(where: tuple[slice, slice], logits: Tensor) -> Tensor:
            """By the standardised logits of a block."""
            piece = (
                log_probability(logits, where, statistics, settings, 0)
                .exp_()
                .mul_(-coefficient[where][..., None])
            )
            for n in range(len(settings.extra)):
                probs = log_probability(logits, where, statistics, settings, n + 1).exp_()
                piece.addcmul_(probs, extra_coefficients[where][..., n, None])
            return piece.scatter_add_(2, index[where[0], None, :].expand(-1, piece.shape[1], -1), g[where])

        rows = full_precision_rows(ctx.layout, tensors)
        gradients = local_gradients(
            rows, partition, mask, ctx.needs_input_grad[6:], slope, statistics, tensors
        )
        return (None, None, None, None, None, None, *gradients)


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
) -> list[Tensor | None]:
    """Gradients of the tensors of this process, from the slope by the (standardised) logits of each block."""
    along = None
    if statistics.deviation is not None:
        along = torch.zeros_like(statistics.top)
        for where, logits in _row_blocks(rows, mask):
            along[where] = (slope(where, logits) * logits).sum(-1)
        along = partition.total(along.masked_fill_(~mask, 0))

    def whole(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece: Tensor = slope(where, logits)
        if along is None:
            return piece
        return _through_standardization(
            piece, logits, where, statistics, along[where][..., None], partition.vocabulary
        )

    if rows.shape[2]:
        gradients = list(source_gradients(rows, mask, wanted, whole, in_place=False))
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


def _through_standardization(
    gradient: Tensor, logits: Tensor, where: Any, statistics: GlobalStatistics, along: Tensor, vocabulary: int
) -> Tensor:
    r"""Gradient of z from that of :math:`z / (\mathrm{std}(z) + \delta)`, the sum over columns given."""
    assert statistics.deviation is not None
    assert statistics.mean is not None
    deviation, mean = statistics.deviation[where][..., None], statistics.mean[where][..., None]
    if vocabulary == 1:
        return gradient / deviation
    std = deviation - STD_OFFSET
    # At std = 0 the derivative of std is taken as 0.
    slope = torch.where(std > 0, along / (deviation.square() * std * (vocabulary - 1)), 0)
    return gradient / deviation - slope * (logits.to(gradient.dtype) - mean)
