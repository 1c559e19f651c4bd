r"""Selection: column sums and normalisers in one walk over the rows, the gradient in another.

With :math:`y = z / \sigma` (:math:`\sigma = 1` unless logits are standardised), the outputs are
:math:`\log p_l = y_l/\tau_0 - \mathrm{lse}_{\tau_0}` for the kept columns and
:math:`n_\tau = \mathrm{lse}_\tau - (\tau_0/\tau)\,\mathrm{lse}_{\tau_0}` for the other temperatures.
For upstream gradients :math:`g` and :math:`\nu_\tau`,

.. math:: \bar y = \tfrac{1}{\tau_0}\mathrm{scatter}(g) - p\Big(\tfrac{1}{\tau_0}\sum_l g_l
          + \sum_\tau \tfrac{\nu_\tau}{\tau}\Big) + \sum_\tau \tfrac{\nu_\tau}{\tau}\,p^{(\tau)},

so nothing is kept from the forward walk but the normalisers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlot.backends.torch_rows import Kind, RowSource, walk, walk_back

_STD_OFFSET = 1e-4  # added to the standard deviation, as the released code does


class Settings(NamedTuple):
    """Temperatures and whether to standardise."""

    temperature: float
    extra: tuple[float, ...]
    standardize: bool


class Scan(NamedTuple):
    """What a walk over the rows finds."""

    lse: Tensor  #: log-sum-exps at every temperature, ``(1 + n, B, T)``, 0 where masked out
    scale: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mass: Tensor | None  #: column sums ``(B, V)``, if wanted


def scan(rows: RowSource, mask: Tensor, settings: Settings, *, sums: bool) -> Scan:
    """Walk once over the rows for log-sum-exps and, if wanted, column sums."""
    batch, length, vocabulary = rows.shape
    lse = torch.zeros((1 + len(settings.extra), batch, length), dtype=rows.dtype, device=rows.device)
    scale = torch.ones_like(lse[0]) if settings.standardize else None
    mass = torch.zeros((batch, vocabulary), dtype=rows.dtype, device=rows.device) if sums else None
    for where, logits in walk(rows, mask):
        valid = mask[where]
        top = logits.amax(-1, keepdim=True).to(rows.dtype)
        centred = logits - top  # a new tensor, in the compute dtype
        if scale is not None:
            deviation = _scale(logits, rows.dtype)
            scale[where] = torch.where(valid, deviation.squeeze(-1), 1)
            centred /= deviation
            top = top / deviation
        values, weighted = _reduce(centred, top.squeeze(-1), valid, settings, sums)
        lse[(slice(None), *where)] = torch.where(valid, values, 0)
        if mass is not None and weighted is not None:
            mass[where[0]] += weighted
    return Scan(lse, scale, mass)


def _reduce(
    centred: Tensor, top: Tensor, valid: Tensor, settings: Settings, sums: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exps and column sums of one block; uses up ``centred``."""
    base = settings.temperature
    values = [top] * (1 + len(settings.extra))
    for n, temperature in enumerate(settings.extra, start=1):
        if temperature != 2 * base:
            values[n] = top / temperature + (centred / temperature).exp_().sum(-1).log_()
    exponentials = centred.exp_() if base == 1 else centred.mul_(1 / base).exp_()
    total = exponentials.sum(-1)
    values[0] = top / base + total.log()
    weighted = None
    if sums:
        if valid.device.type != "cpu":
            exponentials.masked_fill_(~valid[..., None], 0)  # excluded rows may hold anything
        weights = torch.where(valid, 1 / total, 0)
        weighted = torch.bmm(weights[:, None, :], exponentials).squeeze(1)
    if 2 * base in settings.extra:
        # Twice the base temperature is a square root, which spares a second pass of exponentials.
        n = 1 + settings.extra.index(2 * base)
        values[n] = top / (2 * base) + exponentials.sqrt_().sum(-1).log_()
    return torch.stack(values), weighted


def _scale(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviation of each row plus the offset, ``(..., 1)``."""
    logits = logits.to(dtype)
    if logits.shape[-1] == 1:
        return torch.ones_like(logits)  # no deviation, and whatever the divisor, the probability is 1
    return logits.std(-1, keepdim=True) + _STD_OFFSET


def heaviest_columns(mass: Tensor, k: int) -> Tensor:
    """Columns ``(B, k)`` with the largest sums, in descending order, ties by lower index."""
    if mass.dtype == torch.float32:
        # Non-negative floats order as their bits do: sum and index fit into one key, which has no ties.
        index = torch.arange(mass.shape[1], device=mass.device)
        key = (mass.view(torch.int32).long() << 32) | (0xFFFFFFFF - index)
        return 0xFFFFFFFF - (key.topk(k, dim=1).values & 0xFFFFFFFF)
    return mass.sort(dim=1, descending=True, stable=True).indices[:, :k]


class Take(torch.autograd.Function):
    """Log-probabilities of given columns, and normalisers of further temperatures."""

    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        columns: Tensor,
        mask: Tensor,
        lse: Tensor,
        scale: Tensor | None,
        settings: Settings,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows = kind.rows(tensors)
        kept = rows.columns(columns)
        if scale is not None:
            kept = kept / scale[..., None]
        log_probs = kept.div_(settings.temperature).sub_(lse[0, :, :, None])
        log_probs.masked_fill_(~mask[..., None], -torch.inf)
        normalizers = log_probs.new_zeros((*mask.shape, len(settings.extra)))
        for n, extra in enumerate(settings.extra):
            normalizers[..., n] = lse[n + 1] - settings.temperature / extra * lse[0]
        ctx.save_for_backward(columns, mask, lse, scale, *tensors)
        ctx.kind, ctx.settings = kind, settings
        return log_probs, normalizers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, nu: Tensor) -> tuple[Tensor | None, ...]:
        columns, mask, lse, scale, *tensors = ctx.saved_tensors
        settings: Settings = ctx.settings
        rows = ctx.kind.rows(tuple(tensors))
        g = g.masked_fill(~mask[..., None], 0) / settings.temperature
        shares = nu.masked_fill(~mask[..., None], 0)
        for n, extra in enumerate(settings.extra):
            shares[..., n] /= extra
        pull = g.sum(-1) + shares.sum(-1)

        def slope(where: tuple[slice, slice], logits: Tensor) -> Tensor:
            wide = logits.to(rows.dtype)
            deviation = None if scale is None else scale[where][..., None]
            scaled = wide if deviation is None else wide / deviation
            here = lse[(slice(None), *where)]
            piece = _softmax_part(scaled, here, pull[where], shares[where], settings)
            index = columns[where[0], None, :].expand(-1, piece.shape[1], -1)
            piece.scatter_add_(2, index, g[where])
            return piece if deviation is None else _through_scale(piece, wide, deviation)

        gradients = walk_back(rows, mask, ctx.needs_input_grad[6:], slope)
        return (None, None, None, None, None, None, *gradients)


def _softmax_part(wide: Tensor, lse: Tensor, pull: Tensor, shares: Tensor, settings: Settings) -> Tensor:
    r"""Return :math:`-p\,\mathrm{pull} + \sum_\tau p^{(\tau)} \nu_\tau / \tau` of one block."""
    base = settings.temperature
    if settings.extra == (2 * base,):
        # p = r^2 and p^(2 tau) = r e^(lse_tau / 2 - lse_2tau): one exponential serves both.
        root = torch.sub(wide, (base * lse[0])[..., None]).mul_(0.5 / base).exp_()
        other = shares * (0.5 * lse[0] - lse[1]).exp()[..., None]
        return torch.addcmul(other, root, -pull[..., None]).mul_(root)
    gradient = torch.sub(wide, (base * lse[0])[..., None]).mul_(1 / base).exp_().mul_(-pull[..., None])
    for n, extra in enumerate(settings.extra):
        part = torch.sub(wide, (extra * lse[n + 1])[..., None]).mul_(1 / extra).exp_()
        gradient += part.mul_(shares[..., n, None])
    return gradient


def _through_scale(gradient: Tensor, logits: Tensor, scale: Tensor) -> Tensor:
    r"""Gradient of z from that of :math:`z / (\mathrm{std}(z) + \delta)`."""
    if logits.shape[-1] == 1:
        return gradient / scale
    std = scale - _STD_OFFSET
    along = (gradient * logits).sum(-1, keepdim=True)
    # At std = 0 the derivative of std is taken as 0.
    slope = torch.where(std > 0, along / (scale.square() * std * (logits.shape[-1] - 1)), 0)
    return gradient / scale - slope * (logits - logits.mean(-1, keepdim=True))
