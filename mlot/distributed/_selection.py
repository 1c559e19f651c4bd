r"""Selection over a sharded vocabulary, and its gradient.

As in `mlot.backends.torch.select`, but what a row sums over the vocabulary is summed over the processes
between two walks: first the largest logits and totals, then column masses under the common normalisers. The
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
from mlot.backends.torch.rows import HeadRows, Kind, RowSource, walk, walk_back
from mlot.backends.torch.select import STD_OFFSET, Settings, heaviest_columns, normalized, reduce_columns
from mlot.distributed._place import Place
from mlot.traces import Traces


class RowStatistics(NamedTuple):
    """What rows have in common on all processes; 0 (scale: 1) where they are masked out."""

    top: Tensor  #: largest logit of the vocabulary, before it is standardised, ``(B, T)``
    log_totals: Tensor  #: log-sum-exp relative to it at every temperature, ``(1 + n, B, T)``
    scale: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mean: Tensor | None  #: mean logit, ``(B, T)``, if there is a scale


@torch.compiler.disable  # type: ignore[untyped-decorator]
def select(kind: Kind, place: Place, mask: Tensor, k: int, settings: Settings) -> Traces:
    """Traces of the ``k`` heaviest columns of the whole vocabulary, the same on every process."""
    with torch.autocast(mask.device.type, enabled=False):
        with torch.no_grad():
            rows = kind.rows(kind.tensors)
            statistics = scan(rows, place, mask, settings)
            columns, mass = _merge(_column_mass(rows, mask, statistics, settings.temperature), place, k)
        return _traces(kind, place, columns, mask, statistics, settings, mass)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def take(kind: Kind, place: Place, columns: Tensor, mask: Tensor, settings: Settings) -> Traces:
    """Traces of given columns of the whole vocabulary."""
    with torch.autocast(mask.device.type, enabled=False):
        with torch.no_grad():
            statistics = scan(kind.rows(kind.tensors), place, mask, settings)
        return _traces(kind, place, columns.long(), mask, statistics, settings, None)


def _traces(
    kind: Kind,
    place: Place,
    columns: Tensor,
    mask: Tensor,
    statistics: RowStatistics,
    settings: Settings,
    mass: Tensor | None,
) -> Traces:
    log_probs, normalizers = _Take.apply(  # type: ignore[no-untyped-call]
        kind.forget(), place, columns, mask, statistics, settings, *kind.tensors
    )
    if mass is None:
        mass = log_probs.detach().exp().sum(1)
    return Traces(columns, log_probs, normalizers, mass, mask, place.vocabulary, *settings)


# -- what is common to all processes ---------------------------------------------------------------------


def scan(rows: RowSource, place: Place, mask: Tensor, settings: Settings) -> RowStatistics:
    """Walk over the columns of this process, and combine what was found with the others."""
    scale, mean = _deviation(rows, place, mask) if settings.standardize else (None, None)
    top = torch.full(mask.shape, -torch.inf, dtype=rows.dtype, device=mask.device)
    log_totals = top.new_zeros((1 + len(settings.extra), *mask.shape))
    for where, logits in _walk(rows, mask):
        valid = mask[where]
        divisor = None if scale is None else scale[where][..., None]
        totals, _ = reduce_columns(logits, divisor, valid, rows.dtype, settings, False)
        top[where] = torch.where(valid, logits.amax(-1).to(rows.dtype), -torch.inf)
        log_totals[(slice(None), *where)] = totals
    highest = place.maximum(top.clone())
    here = mask & ~torch.isneginf(top)  # a shard may be empty, or exclude all of its columns
    below = torch.where(here, top - highest, 0)
    if scale is not None:
        below = below / scale
    for n, temperature in enumerate((settings.temperature, *settings.extra)):
        log_totals[n] = torch.where(here, (log_totals[n] + below / temperature).exp_(), 0)
    log_totals = torch.where(mask, place.total(log_totals), 1).log_()
    return RowStatistics(torch.where(mask, highest, 0), log_totals, scale, mean)


def _walk(rows: RowSource, mask: Tensor) -> Any:
    """Slices of the valid positions; none of a shard without columns."""
    return walk(rows, mask) if rows.shape[2] else ()


def _deviation(rows: RowSource, place: Place, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What to divide logits by, and their means, over the whole vocabulary.

    In two exchanges, so that the squares are of differences from the mean.
    """
    own = torch.zeros((2, *mask.shape), dtype=rows.dtype, device=mask.device)
    for where, logits in _walk(rows, mask):
        logits = logits.to(rows.dtype)
        centre = logits.mean(-1, keepdim=True)
        own[(0, *where)] = torch.where(mask[where], centre.squeeze(-1), 0)
        squares = (logits - centre).square_().sum(-1)
        own[(1, *where)] = torch.where(mask[where], squares, 0)
    width, vocabulary = rows.shape[2], place.vocabulary
    mean = place.total(own[0] * (width / vocabulary))
    if vocabulary == 1:
        return torch.ones_like(mean), mean  # no deviation, and whatever the divisor, the probability is 1
    squares = place.total(own[1] + width * (own[0] - mean).square())
    scale = (squares / (vocabulary - 1)).sqrt_().add_(STD_OFFSET)
    return torch.where(mask, scale, 1), mean


def log_probability(
    logits: Tensor, where: Any, statistics: RowStatistics, settings: Settings, n: int
) -> Tensor:
    """Log-probabilities of some logits at the temperature of number n, a new tensor."""
    below = logits.to(statistics.top.dtype) - statistics.top[where][..., None]
    if statistics.scale is not None:
        below /= statistics.scale[where][..., None]
    below *= 1 / (settings.temperature, *settings.extra)[n]
    return below.sub_(statistics.log_totals[(n, *where)][..., None])


def _column_mass(rows: RowSource, mask: Tensor, statistics: RowStatistics, temperature: float) -> Tensor:
    """Sums of the probabilities of this process's columns, ``(B, V_rank)``."""
    settings = Settings(temperature, (), statistics.scale is not None)
    mass = statistics.top.new_zeros((mask.shape[0], rows.shape[2]))
    for where, logits in _walk(rows, mask):
        probs = log_probability(logits, where, statistics, settings, 0).exp_()
        mass[where[0]] += probs.masked_fill_(~mask[where][..., None], 0).sum(1)
    return mass


def _merge(mass: Tensor, place: Place, k: int) -> tuple[Tensor, Tensor]:
    """The k heaviest columns of all shards, and their masses, in descending order; ties by lower index."""
    widths = [min(k, size) for size in place.sizes]
    local = heaviest_columns(mass, widths[place.rank])
    # Shards come in the order of columns, each with ties by lower index: a stable sort keeps both.
    masses = place.gather(mass.gather(1, local), widths)
    columns = place.gather(local + place.start, widths)
    order = masses.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return columns.gather(1, order), masses.gather(1, order)


# -- kept columns, differentiable ------------------------------------------------------------------------


class _Take(torch.autograd.Function):
    """Log-probabilities ``(B, T, k)`` of given columns, and normalisers ``(B, T, n)``."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        place: Place,
        columns: Tensor,
        mask: Tensor,
        statistics: RowStatistics,
        settings: Settings,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(columns, mask, *statistics, *tensors)
        ctx.kind, ctx.place, ctx.settings = kind, place, settings
        rows = kind.rows(tensors)
        here, index = place.locate(columns)
        shape = (*mask.shape, columns.shape[1])
        kept = rows.columns(index) if rows.shape[2] else statistics.top.new_zeros(shape)
        kept = torch.where(here[:, None, :] & mask[..., None], kept - statistics.top[..., None], 0)
        return normalized(place.total(kept), statistics.log_totals, statistics.scale, mask, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, nu: Tensor) -> tuple[Tensor | None, ...]:
        columns, mask, top, log_totals, scale, mean, *tensors = ctx.saved_tensors
        statistics, settings, place = RowStatistics(top, log_totals, scale, mean), ctx.settings, ctx.place
        here, index = place.locate(columns)
        g = g.masked_fill(~mask[..., None], 0) / settings.temperature
        shares = nu.masked_fill(~mask[..., None], 0)
        for n, extra in enumerate(settings.extra):
            shares[..., n] /= extra
        pull = g.sum(-1) + shares.sum(-1)
        g = g.masked_fill(~here[:, None, :], 0)

        def slope(where: tuple[slice, slice], logits: Tensor) -> Tensor:
            """By the standardised logits of a block."""
            piece = (
                log_probability(logits, where, statistics, settings, 0).exp_().mul_(-pull[where][..., None])
            )
            for n in range(len(settings.extra)):
                probs = log_probability(logits, where, statistics, settings, n + 1).exp_()
                piece.addcmul_(probs, shares[where][..., n, None])
            return piece.scatter_add_(2, index[where[0], None, :].expand(-1, piece.shape[1], -1), g[where])

        rows = whole_precision(ctx.kind, tensors)
        gradients = back(rows, place, mask, ctx.needs_input_grad[6:], slope, statistics, tensors)
        return (None, None, None, None, None, None, *gradients)


def whole_precision(kind: Kind, tensors: Any) -> RowSource:
    """Rows for a backward walk: gradients of hidden states are summed over processes, then rounded."""
    rows = kind.rows(tuple(tensors))
    if isinstance(rows, HeadRows) and rows.hidden.dtype != rows.dtype:
        return kind.rows((rows.hidden.to(rows.dtype), *tensors[1:]))
    return rows


def back(
    rows: RowSource,
    place: Place,
    mask: Tensor,
    wanted: tuple[bool, ...],
    slope: Any,
    statistics: RowStatistics,
    tensors: Any,
) -> list[Tensor | None]:
    """Gradients of the tensors of this process, from the slope by the (standardised) logits of each block."""
    along = None
    if statistics.scale is not None:
        along = torch.zeros_like(statistics.top)
        for where, logits in _walk(rows, mask):
            along[where] = (slope(where, logits) * logits).sum(-1)
        along = place.total(along.masked_fill_(~mask, 0))

    def whole(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece: Tensor = slope(where, logits)
        if along is None:
            return piece
        return _through_scale(piece, logits, where, statistics, along[where][..., None], place.vocabulary)

    if rows.shape[2]:
        gradients = list(walk_back(rows, mask, wanted, whole, in_place=False))
    else:
        gradients = [
            torch.zeros_like(t) if want and t is not None else None
            for t, want in zip(_tensors_of(rows), wanted, strict=True)
        ]
    if isinstance(rows, HeadRows) and gradients[0] is not None:
        gradients[0] = place.total(gradients[0].contiguous()).to(tensors[0].dtype)
    return gradients


def _tensors_of(rows: RowSource) -> tuple[Tensor | None, ...]:
    return (rows.hidden, rows.weight, rows.bias) if isinstance(rows, HeadRows) else (rows.logits,)


def _through_scale(
    gradient: Tensor, logits: Tensor, where: Any, statistics: RowStatistics, along: Tensor, vocabulary: int
) -> Tensor:
    r"""Gradient of z from that of :math:`z / (\mathrm{std}(z) + \delta)`, the sum over columns given."""
    assert statistics.scale is not None
    assert statistics.mean is not None
    scale, mean = statistics.scale[where][..., None], statistics.mean[where][..., None]
    if vocabulary == 1:
        return gradient / scale
    std = scale - STD_OFFSET
    # At std = 0 the derivative of std is taken as 0.
    slope = torch.where(std > 0, along / (scale.square() * std * (vocabulary - 1)), 0)
    return gradient / scale - slope * (logits.to(gradient.dtype) - mean)
