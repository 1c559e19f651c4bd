r"""Selection: column sums and normalisers in one pass over the rows, the gradient in another.

With :math:`y = z / \sigma` (:math:`\sigma = 1` unless logits are standardised), :math:`m = \max_v y_v`
and :math:`N_\tau = \log \sum_v e^{(y_v - m)/\tau}`, the outputs are :math:`\log p_l = (y_l - m)/\tau_0 -
N_{\tau_0}` for the kept columns and :math:`n_\tau = N_\tau - (\tau_0/\tau)\,N_{\tau_0}` for the other
temperatures: differences of small numbers, whatever the size of the logits. For upstream gradients
:math:`g` and :math:`\nu_\tau`,

.. math:: \bar y = \tfrac{1}{\tau_0}\mathrm{scatter}(g) - p\Big(\tfrac{1}{\tau_0}\sum_l g_l
          + \sum_\tau \tfrac{\nu_\tau}{\tau}\Big) + \sum_\tau \tfrac{\nu_\tau}{\tau}\,p^{(\tau)},

so nothing is kept from the forward pass but :math:`m` and :math:`N`. At twice the base temperature
:math:`p \propto (p^{(2\tau_0)})^2`, which spares a second pass of exponentials.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.derivatives import once_differentiable
from mlot.backends.torch.rows import DenseRows, RowSource, SourceLayout, row_blocks, source_gradients

STD_OFFSET = 1e-4  # added to the standard deviation, as the released code does


class Settings(NamedTuple):
    """Temperatures and whether to standardise."""

    temperature: float
    extra: tuple[float, ...]
    standardize: bool


class RowStatistics(NamedTuple):
    """What one pass over the rows computes."""

    top: Tensor  #: largest logit of each row, before it is standardised, ``(B, T)``; 0 where masked out
    log_totals: Tensor  #: N at every temperature, ``(1 + n, B, T)``; 0 where masked out
    deviation: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mass: Tensor | None  #: column sums ``(B, V)``, if wanted


# -- one pass for statistics -----------------------------------------------------------------------------


def reduce_rows(rows: RowSource, mask: Tensor, settings: Settings, *, sums: bool) -> RowStatistics:
    """One pass over the rows for normalisers and, if wanted, column sums."""
    if _kernels_serve(rows, settings):
        return _reduce_rows_by_kernels(rows.logits, mask, settings, rows.dtype, sums=sums)
    batch, length, vocabulary = rows.shape
    top = torch.zeros((batch, length), dtype=rows.dtype, device=rows.device)
    log_totals = top.new_zeros((1 + len(settings.extra), batch, length))
    deviation = torch.ones_like(top) if settings.standardize else None
    mass = top.new_zeros((batch, vocabulary)) if sums else None
    for where, logits in row_blocks(rows, mask):
        valid = mask[where]
        highest = logits.amax(-1).to(rows.dtype)
        divisor = None
        if deviation is not None:
            divisor = _divisor(logits, rows.dtype)
            deviation[where] = torch.where(valid, divisor.squeeze(-1), 1)
        totals, weighted = reduce_block(logits, divisor, valid, rows.dtype, settings, sums)
        top[where] = torch.where(valid, highest, 0)
        log_totals[(slice(None), *where)] = torch.where(valid, totals, 0)
        if mass is not None and weighted is not None:
            mass[where[0]] += weighted
    return RowStatistics(top, log_totals, deviation, mass)


def reduce_block(
    logits: Tensor,
    divisor: Tensor | None,
    valid: Tensor,
    dtype: torch.dtype,
    settings: Settings,
    sums: bool,
) -> tuple[Tensor, Tensor | None]:
    """N at every temperature, and column sums, of one block."""
    totals = [torch.empty(0)] * (1 + len(settings.extra))
    doubled = _doubled(settings)
    for n, temperature in enumerate(settings.extra, start=1):
        if n != doubled:
            totals[n] = -_softmax(logits, divisor, temperature, dtype).amax(-1).log_()
    lead = settings.extra[doubled - 1] if doubled else settings.temperature
    weights = _softmax(logits, divisor, lead, dtype)
    totals[doubled] = -weights.amax(-1).log_()  # the probability of the largest logit is 1 / total
    total = None
    if doubled:
        total = weights.square_().sum(-1)
        totals[0] = 2 * totals[doubled] + total.log()
    weighted = None
    if sums:
        if not torch_rows.can_look(valid.device):
            weights.masked_fill_(~valid[..., None], 0)  # excluded rows may hold anything
        inverse_totals = torch.where(valid, 1 if total is None else 1 / total, 0).to(dtype)
        weighted = torch.bmm(inverse_totals[:, None, :], weights).squeeze(1)
    return torch.stack(totals), weighted


def _doubled(settings: Settings) -> int:
    """Place among all temperatures of one that is twice the first; 0 if there is none."""
    for n, extra in enumerate(settings.extra, start=1):
        if extra == 2 * settings.temperature:
            return n
    return 0


def _softmax(logits: Tensor, divisor: Tensor | None, temperature: float, dtype: torch.dtype) -> Tensor:
    """Probabilities of some logits, a new tensor."""
    logits = logits.to(dtype)
    if divisor is not None:
        logits = logits / divisor
    if temperature != 1:
        logits = logits * (1 / temperature)
    return logits.softmax(-1)


def _divisor(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviation of each row plus the offset, ``(..., 1)``."""
    logits = logits.to(dtype)
    if logits.shape[-1] == 1:
        return torch.ones_like(logits)  # no deviation, and whatever the divisor, the probability is 1
    return logits.std(-1, keepdim=True) + STD_OFFSET


def _kernels_serve(rows: RowSource, settings: Settings) -> TypeGuard[DenseRows]:
    return (
        isinstance(rows, DenseRows)
        and not settings.standardize
        and len(settings.extra) <= 1
        and rows.logits.stride(2) == 1
        and torch_kernels.usable(rows.logits)
    )


def _reduce_rows_by_kernels(
    logits: Tensor, mask: Tensor, settings: Settings, dtype: torch.dtype, *, sums: bool
) -> RowStatistics:
    temperatures = (settings.temperature, *settings.extra)
    top, log_totals = torch_kernels.row_totals(logits, mask, temperatures, dtype)
    mass = None
    if sums:
        mass = torch_kernels.column_sums(logits, mask, top, log_totals[0], settings.temperature)
    return RowStatistics(top, log_totals, None, mass)


def heaviest_columns(mass: Tensor, k: int) -> Tensor:
    """Columns ``(B, k)`` with the largest sums, in descending order, ties by lower index."""
    if mass.dtype == torch.float32:
        # Non-negative floats order as their bits do: sum and index fit into one key, which has no ties.
        index = torch.arange(mass.shape[1], device=mass.device)
        key = (mass.view(torch.int32).long() << 32) | (0xFFFFFFFF - index)
        return 0xFFFFFFFF - (key.topk(k, dim=1).values & 0xFFFFFFFF)
    return mass.sort(dim=1, descending=True, stable=True).indices[:, :k]


# -- the kept columns ------------------------------------------------------------------------------------


def gather_columns(
    rows: RowSource, columns: Tensor, mask: Tensor, statistics: RowStatistics, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(B, T, k)`` of given columns, and normalisers ``(B, T, n)``."""
    return normalized(
        rows.columns(columns).sub_(statistics.top[..., None]),
        statistics.log_totals,
        statistics.deviation,
        mask,
        settings,
    )


def normalized(
    kept: Tensor, log_totals: Tensor, deviation: Tensor | None, mask: Tensor, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Log-probabilities, in place, and normalisers of kept logits ``(B, T, k)`` less each row's largest."""
    if deviation is not None:
        kept.div_(deviation[..., None])
    log_probs = kept.div_(settings.temperature).sub_(log_totals[0, :, :, None])
    log_probs.masked_fill_(~mask[..., None], -torch.inf)
    normalizers = log_probs.new_zeros((*mask.shape, len(settings.extra)))
    for n, extra in enumerate(settings.extra):
        normalizers[..., n] = log_totals[n + 1] - settings.temperature / extra * log_totals[0]
    return log_probs, normalizers


class GatherColumns(torch.autograd.Function):
    """`gather_columns` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: SourceLayout,
        columns: Tensor,
        mask: Tensor,
        statistics: RowStatistics,
        settings: Settings,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(
            columns, mask, statistics.top, statistics.log_totals, statistics.deviation, *tensors
        )
        ctx.layout, ctx.settings = layout, settings
        return gather_columns(layout.rows(tensors), columns, mask, statistics, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, nu: Tensor) -> tuple[Tensor | None, ...]:
        columns, mask, top, log_totals, deviation, *tensors = ctx.saved_tensors
        rows = ctx.layout.rows(tuple(tensors))
        wanted = ctx.needs_input_grad[5:]
        gradients = gather_columns_backward(
            rows, wanted, columns, mask, top, log_totals, deviation, ctx.settings, g, nu
        )
        return (None, None, None, None, None, *gradients)


# -- one pass for their gradient -------------------------------------------------------------------------


def gather_columns_backward(
    rows: RowSource,
    wanted: tuple[bool, ...],
    columns: Tensor,
    mask: Tensor,
    top: Tensor,
    log_totals: Tensor,
    deviation: Tensor | None,
    settings: Settings,
    g: Tensor,
    nu: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of the source from those of log-probabilities and normalisers."""
    g = g.masked_fill(~mask[..., None], 0) / settings.temperature
    extra_coefficients = nu.masked_fill(~mask[..., None], 0)
    for n, extra in enumerate(settings.extra):
        extra_coefficients[..., n] /= extra
    coefficient = (g.sum(-1) + extra_coefficients.sum(-1))[..., None]
    if _kernels_serve(rows, settings):
        flat = coefficient.squeeze(-1)
        return (
            _backward_by_kernels(rows, columns, mask, top, log_totals, settings, g, extra_coefficients, flat),
        )

    def slope(where: tuple[slice, slice], logits: Tensor, out: Tensor | None) -> Tensor:
        divisor = None if deviation is None else deviation[where][..., None]
        totals = log_totals[(slice(None), *where)][..., None]
        piece = _softmax_gradient(
            logits, divisor, totals, coefficient[where], extra_coefficients[where], settings, rows.dtype, out
        )
        index = columns[where[0], None, :].expand(-1, piece.shape[1], -1)
        piece.scatter_add_(2, index, g[where])
        return piece if divisor is None else _through_standardization(piece, logits.to(rows.dtype), divisor)

    return source_gradients(rows, mask, wanted, slope, in_place=deviation is None)


def _softmax_gradient(
    logits: Tensor,
    divisor: Tensor | None,
    log_totals: Tensor,
    coefficient: Tensor,
    extra_coefficients: Tensor,
    settings: Settings,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    r"""Return :math:`-p\,c + \sum_\tau p^{(\tau)} \nu_\tau / \tau` of one block, c being the coefficient."""
    doubled = _doubled(settings)
    if doubled:
        root = _softmax(logits, divisor, settings.extra[doubled - 1], dtype)
        factor = -coefficient * (2 * log_totals[doubled] - log_totals[0]).exp()
        slope = torch.addcmul(extra_coefficients[..., doubled - 1, None], root, factor)
        gradient = torch.mul(slope, root, out=root if out is None else out)
    else:
        probs = _softmax(logits, divisor, settings.temperature, dtype)
        gradient = torch.mul(probs, -coefficient, out=probs if out is None else out)
    for n, extra in enumerate(settings.extra, start=1):
        if n != doubled:
            gradient.addcmul_(_softmax(logits, divisor, extra, dtype), extra_coefficients[..., n - 1, None])
    return gradient


def _through_standardization(gradient: Tensor, logits: Tensor, deviation: Tensor) -> Tensor:
    r"""Gradient of z from that of :math:`z / (\mathrm{std}(z) + \delta)`."""
    if logits.shape[-1] == 1:
        return gradient / deviation
    std = deviation - STD_OFFSET
    along = (gradient * logits).sum(-1, keepdim=True)
    # At std = 0 the derivative of std is taken as 0.
    slope = torch.where(std > 0, along / (deviation.square() * std * (logits.shape[-1] - 1)), 0)
    return gradient / deviation - slope * (logits - logits.mean(-1, keepdim=True))


def _backward_by_kernels(
    rows: DenseRows,
    columns: Tensor,
    mask: Tensor,
    top: Tensor,
    log_totals: Tensor,
    settings: Settings,
    g: Tensor,
    extra_coefficients: Tensor,
    coefficient: Tensor,
) -> Tensor:
    """The kernel writes what all columns have in common, then the kept ones are written whole."""
    temperatures = (settings.temperature, *settings.extra)
    extra_coefficient = extra_coefficients[..., 0] if settings.extra else coefficient
    gradient = torch_kernels.row_gradient(
        rows.logits, mask, top, log_totals, coefficient, extra_coefficient, temperatures
    )
    below = rows.columns(columns).sub_(top[..., None])
    kept = g - coefficient[..., None] * (below / temperatures[0] - log_totals[0, ..., None]).exp()
    if settings.extra:
        kept += extra_coefficient[..., None] * (below / temperatures[1] - log_totals[1, ..., None]).exp()
    kept = kept.masked_fill(~mask[..., None], 0).to(gradient.dtype)
    return gradient.scatter_(2, columns[:, None, :].expand_as(kept), kept)
