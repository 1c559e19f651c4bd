r"""Reading a source: whatever a loss needs of a vocabulary, in one walk forward and one back.

The outputs are what lies below the largest logit :math:`m` of each row, :math:`y_l - m` for the kept columns
of a sequence and for tokens listed for each position, and the normalisers :math:`N_\tau`; log-probabilities
are :math:`(y_l - m)/\tau - N_\tau`, by plain differentiation. With :math:`g` and :math:`\nu_\tau` upstream,

.. math:: \bar y = \mathrm{scatter}(g) + \sum_\tau \tfrac{\nu_\tau}{\tau}\, e^{-N_\tau} e^{(y - m)/\tau},

one gradient, written once; :math:`m` is a constant, since it cancels in every log-probability. Nothing is
kept from the forward pass but :math:`m` and :math:`N`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.exponentials import Listed, exponential, paired, weighted_exponentials
from mlot.backends.torch.rows import DenseRows, RowSource, SourceLayout, source_gradients
from mlot.backends.torch.standardize import inner, moments, through_standardization
from mlot.backends.torch.statistics import Settings, heaviest_columns, kernels_serve, reduce_rows
from mlot.traces import Traces


class Overwrite:
    """Leave to write a gradient into the memory of the logits, as long as a single pass reads them."""

    def __init__(self) -> None:
        self.passes = 0

    @property
    def granted(self) -> bool:
        """Whether no other pass needs the logits."""
        return self.passes == 1


class Request(NamedTuple):
    """What is to be read: the k heaviest columns or given ones ``(B, k)``, and tokens ``(B, T, K)``.

    A negative token is none. ``without``: whether one more normaliser is wanted, without the first so many of
    the tokens. ``overwrite``: whether the gradient may take the memory of the logits.
    """

    k: int | None
    columns: Tensor | None
    ids: Tensor | None
    without: int = 0
    overwrite: Overwrite | None = None

    def listed(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Columns and tokens, none of them where none are asked for."""
        columns, ids = self.columns, self.ids
        if columns is None:
            columns = torch.empty((len(mask), 0), dtype=torch.long, device=mask.device)
        if ids is None:
            ids = torch.empty((*mask.shape, 0), dtype=torch.long, device=mask.device)
        return columns.long(), ids.long()

    def answered(
        self,
        columns: Tensor,
        chosen: Tensor,
        mass: Tensor,
        kept: Tensor,
        listed: Tensor,
        log_totals: Tensor,
    ) -> Reading:
        """The reading, with the columns that were given or, if there are such, those that were chosen."""
        if self.k is None:
            return Reading(columns, None, kept, listed, log_totals)
        return Reading(chosen, mass, kept, listed, log_totals)


class Reading(NamedTuple):
    """What was read, with gradients for the source. Positions that are masked out hold anything."""

    columns: Tensor  #: kept columns, ``(B, k)``
    mass: Tensor | None  #: their sums, if the heaviest were asked for, ``(B, k)``
    kept: Tensor  #: their logits (standardised, if so set) less each row's largest, ``(B, T, k)``
    listed: Tensor  #: the same of the listed tokens, ``(B, T, K)``
    log_totals: Tensor  #: N at every temperature, ``(1 + n, B, T)``, and that without tokens


def traces_of(reading: Reading, mask: Tensor, vocabulary: int, settings: Settings) -> Traces:
    """Traces of the columns of a reading, which is used up."""
    base, temperature = reading.log_totals[0], settings.temperature
    kept = reading.kept if temperature == 1 else reading.kept.div_(temperature)
    log_probs = kept.sub_(base[..., None]).masked_fill_(~mask[..., None], -torch.inf)
    normalizers = [
        total - temperature / extra * base
        for total, extra in zip(reading.log_totals[1:], settings.extra, strict=False)
    ]
    stacked = torch.stack(normalizers, -1) if normalizers else log_probs.new_zeros((*mask.shape, 0))
    mass = log_probs.detach().exp().sum(1) if reading.mass is None else reading.mass
    stacked = stacked.masked_fill(~mask[..., None], 0)
    return Traces(reading.columns, log_probs, stacked, mass, mask, vocabulary, *settings)


def listed_log_probs(reading: Reading, ids: Tensor, mask: Tensor, temperature: float, place: int) -> Tensor:
    """Log-probabilities of the listed tokens at the temperature of a place; -inf where none counts."""
    log_probs = reading.listed / temperature - reading.log_totals[place][..., None]
    return log_probs.masked_fill(~mask[..., None] | (ids < 0), -torch.inf)


def unlisted_log_probs(reading: Reading, settings: Settings) -> Tensor:
    """Log-probability of all tokens but those listed, ``(B, T)``; anything where masked out."""
    return reading.log_totals[len(settings.temperatures)] - reading.log_totals[0]


# -- forward ---------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """A `Reading`, and what the way back needs beside it."""

    columns: Tensor
    mass: Tensor
    kept: Tensor
    listed: Tensor
    log_totals: Tensor
    top: Tensor
    deviation: Tensor | None


def read_rows(
    rows: RowSource,
    mask: Tensor,
    settings: Settings,
    k: int | None,
    columns: Tensor,
    ids: Tensor,
    without: int,
) -> Read:
    """Read the k heaviest columns, or given ones if k is ``None``, and listed tokens."""
    statistics = reduce_rows(rows, mask, settings, ids, sums=k is not None, without=without)
    mass = statistics.top.new_empty((len(mask), 0))
    if k is not None:
        assert statistics.mass is not None
        columns = heaviest_columns(statistics.mass, k)
        mass = statistics.mass.gather(1, columns)
    top = statistics.top[..., None]
    kept, listed = rows.columns(columns).sub_(top), statistics.listed.sub_(top)
    if statistics.deviation is not None:
        kept.div_(statistics.deviation[..., None])
        listed.div_(statistics.deviation[..., None])
    return Read(columns, mass, kept, listed, statistics.log_totals, statistics.top, statistics.deviation)


class ReadRows(torch.autograd.Function):
    """`read_rows` with its gradient; returns the fields of a `Reading`."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: SourceLayout,
        mask: Tensor,
        settings: Settings,
        k: int | None,
        columns: Tensor,
        ids: Tensor,
        without: int,
        overwrite: Overwrite | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        read = read_rows(layout.rows(tensors), mask, settings, k, columns, ids, without)
        ctx.mark_non_differentiable(read.mass)
        ctx.save_for_backward(mask, read.columns, ids, read.top, read.log_totals, read.deviation, *tensors)
        ctx.layout, ctx.settings, ctx.without, ctx.overwrite = layout, settings, without, overwrite
        chosen = columns.new_empty(0) if k is None else read.columns
        ctx.mark_non_differentiable(chosen)
        return chosen, read.mass, read.kept, read.listed, read.log_totals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        mask, columns, ids, top, log_totals, deviation, *tensors = ctx.saved_tensors
        results = read_rows_backward(
            ctx.layout.rows(tuple(tensors)),
            ctx.needs_input_grad[8:],
            mask,
            columns,
            ids,
            top,
            log_totals,
            deviation,
            ctx.settings,
            ctx.without,
            *gradients[2:],
            overwrite=ctx.overwrite is not None and ctx.overwrite.granted,
        )
        return (*(None,) * 8, *results)


# -- backward --------------------------------------------------------------------------------------------


def read_rows_backward(
    rows: RowSource,
    wanted: tuple[bool, ...],
    mask: Tensor,
    columns: Tensor,
    ids: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor | None,
    settings: Settings,
    without: int,
    g_kept: Tensor,
    g_listed: Tensor,
    nu: Tensor,
    *,
    overwrite: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of the source from those of the logits that were read and of the normalisers."""
    g_kept, g_listed, nu = masked_gradients(mask, ids, g_kept, g_listed, nu)
    if kernels_serve(rows, settings):
        temperatures = (*settings.temperatures, settings.temperature)[: len(nu)]
        weights = nu / _column(temperatures, nu)
        gradient = _backward_by_kernels(
            rows, mask, columns, ids, top, log_totals, settings, without, g_kept, g_listed, weights, overwrite
        )
        return (gradient,)
    slope = slope_of(rows, columns, ids, top, log_totals, deviation, settings, without, g_kept, g_listed, nu)

    def whole(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        piece = slope(where, logits, out)
        if deviation is None:
            return piece
        divisor, logits = deviation[where][..., None], logits.to(rows.dtype)
        mean, _, count = moments(logits)
        return through_standardization(piece, logits, divisor, mean, count, inner(piece, logits))

    return source_gradients(rows, mask, wanted, whole, in_place=deviation is None, overwrite=overwrite)


def masked_gradients(
    mask: Tensor, ids: Tensor, g_kept: Tensor, g_listed: Tensor, nu: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Upstream gradients, 0 where a position is masked out or no token listed."""
    blank = ~mask
    return (
        g_kept.masked_fill(blank[..., None], 0),
        g_listed.masked_fill(blank[..., None] | (ids < 0), 0),
        nu.masked_fill(blank, 0),
    )


def _column(temperatures: tuple[float, ...], like: Tensor) -> Tensor:
    return like.new_tensor(temperatures)[:, None, None]


def slope_of(
    rows: RowSource,
    columns: Tensor,
    ids: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor | None,
    settings: Settings,
    without: int,
    g_kept: Tensor,
    g_listed: Tensor,
    nu: Tensor,
) -> Callable[[tuple[slice, slice], Tensor, Tensor | None], Tensor]:
    """How to write the gradient of the (standardised) logits of a block."""
    temperatures = settings.temperatures
    # Of no probability at all, which nobody asks for, the inverse is infinite.
    weights = torch.where(nu == 0, 0, (-log_totals).exp() * nu)[..., None]
    left_out = Listed(ids[..., :without]) if without else None
    weights, of_listed = _weights(weights, temperatures, left_out)
    look = torch_rows.can_look(nu.device)
    places = [n for n in range(len(temperatures)) if not look or bool(weights[n].any())]
    alone = len(paired(temperatures, places)) <= 1  # then the logits are not needed once writing begins
    ids = ids.clamp(min=0)

    def slope(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        if out is None or not (alone or out.data_ptr() != logits.data_ptr()):
            out = torch.empty(logits.shape, dtype=rows.dtype, device=logits.device)
        divisor = None if deviation is None else deviation[where][..., None]
        written = None
        if left_out is not None:  # before the logits' memory is taken
            index, inside = left_out.index[where], (slice(None), *where)
            own, reference = logits.gather(-1, index), top[where][..., None]
            written = torch.zeros(own.shape, dtype=rows.dtype, device=own.device)
            for n, temperature in enumerate(temperatures):
                power = exponential(own, reference, divisor, temperature, torch.empty_like(written))
                written += power.mul_(of_listed[inside][n])
        piece = weighted_exponentials(
            logits,
            top[where][..., None],
            divisor,
            temperatures,
            weights[(slice(None), *where)],
            places,
            rows.scratch(logits.shape),
            out,
        )
        if written is not None and left_out is not None:
            piece.scatter_(2, left_out.index[where], written)
        if columns.shape[1]:
            index = columns[where[0], None, :].expand(-1, piece.shape[1], -1)
            piece.scatter_add_(2, index, g_kept[where])
        if ids.shape[2]:
            piece.scatter_add_(2, ids[where], g_listed[where])
        return piece

    return slope


def _weights(
    weights: Tensor, temperatures: tuple[float, ...], left_out: Listed | None
) -> tuple[Tensor, Tensor]:
    """Weights of the exponentials at each temperature, and those of tokens that are left out of one sum."""
    plain = weights[: len(temperatures)] / _column(temperatures, weights)[..., None]
    if left_out is None:
        return plain, plain
    whole = plain.clone()
    whole[0] += weights[-1] / temperatures[0]
    return whole, torch.where(left_out.any, plain, whole)


def _backward_by_kernels(
    rows: DenseRows,
    mask: Tensor,
    columns: Tensor,
    ids: Tensor,
    top: Tensor,
    log_totals: Tensor,
    settings: Settings,
    without: int,
    g_kept: Tensor,
    g_listed: Tensor,
    weights: Tensor,
    overwrite: bool,
) -> Tensor:
    """The kernel writes what all columns have in common, then those that were read are written whole."""
    index = torch.cat([columns[:, None].expand(-1, mask.shape[1], -1), ids.clamp(min=0)], 2)
    values = torch.cat([g_kept, g_listed], 2)
    left_out = torch.zeros_like(values)
    first = columns.shape[1]
    left_out[..., first : first + without] = ids[..., :without] >= 0
    entries, left_out = _sums_by_index(index, torch.stack([values, left_out]))
    below = rows.logits.gather(2, index).to(rows.dtype).sub_(top[..., None])
    for n, temperature in enumerate(settings.temperatures):
        entries += weights[n][..., None] * (below / temperature - log_totals[n][..., None]).exp()
    if without:
        counts = (left_out == 0) & (weights[-1][..., None] != 0)
        power = (below / settings.temperature - log_totals[-1][..., None]).exp()
        entries += torch.where(counts, power * weights[-1][..., None], 0)
    gradient = torch_kernels.row_gradient(
        rows.logits, mask, top, log_totals, weights, settings.temperatures, overwrite=overwrite
    )
    entries = entries.masked_fill_(~mask[..., None], 0).to(gradient.dtype)
    return gradient.scatter_(2, index, entries)


def _sums_by_index(index: Tensor, values: Tensor) -> Tensor:
    """For each entry ``(B, T, n)`` the sums ``(m, B, T, n)`` of all of its row with the same index."""
    if not index.numel():
        return values
    ordered, order = index.sort(-1)
    new = torch.ones_like(ordered)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    group = torch.empty_like(new).scatter_(2, order, new.cumsum(-1) - 1).expand_as(values)
    return torch.zeros_like(values).scatter_add_(3, group, values).gather(3, group)
