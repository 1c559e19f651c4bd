r"""What one walk over the rows computes: largest logits, normalisers, column sums, and the logits of tokens.

With :math:`y = z / \sigma` (:math:`\sigma = 1` unless logits are standardised), :math:`m = \max_v y_v` and
:math:`N_\tau = \log \sum_v e^{(y_v - m)/\tau}`, a log-probability is :math:`(y_l - m)/\tau - N_\tau`: a
difference of small numbers, whatever the size of the logits.
"""

from __future__ import annotations

from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch.exponentials import Listed, exponential, paired
from mlot.backends.torch.rows import DenseRows, RowSource, row_blocks
from mlot.backends.torch.standardize import standardizing_divisor


class Settings(NamedTuple):
    """Temperatures and whether to standardise."""

    temperature: float
    extra: tuple[float, ...]
    standardize: bool

    @property
    def temperatures(self) -> tuple[float, ...]:
        """All of them, the base temperature first."""
        return (self.temperature, *self.extra)


class RowStatistics(NamedTuple):
    """What one walk over the rows computes; 0 (deviation: 1) where masked out."""

    top: Tensor  #: largest logit of each row, before it is standardised, ``(B, T)``
    log_totals: Tensor  #: N at every temperature, ``(1 + n, B, T)``, and without tokens, if wanted
    deviation: Tensor | None  #: what logits are divided by, ``(B, T)``, or nothing
    mass: Tensor | None  #: column sums ``(B, V)``, if wanted
    listed: Tensor  #: logits of the listed tokens, not standardised, ``(B, T, K)``


def reduce_rows(
    rows: RowSource,
    mask: Tensor,
    settings: Settings,
    ids: Tensor,
    *,
    sums: bool,
    without: int = 0,
    deviation: Tensor | None = None,
) -> RowStatistics:
    """Walk over the rows once; a negative id stands for no token, and any logit.

    With ``without``, there is one more N at the end: at the base temperature, without the first so many of
    the listed tokens. It is a sum of what is left, not a difference, which would be rounded away. The
    deviation, if the rows are to be standardised, is computed where it is not given.
    """
    if kernels_serve(rows, settings):
        return _reduce_rows_by_kernels(rows, mask, settings, ids, sums=sums, without=without)
    batch, length, vocabulary = rows.shape
    top = torch.zeros((batch, length), dtype=rows.dtype, device=rows.device)
    log_totals = top.new_ones((1 + len(settings.extra) + bool(without), batch, length))
    left_out = Listed(ids[..., :without]) if without else None
    listed = top.new_zeros(ids.shape)
    own_deviation = settings.standardize and deviation is None
    if own_deviation:
        deviation = torch.ones_like(top)
    mass = top.new_zeros((batch, vocabulary)) if sums else None
    temperatures = settings.temperatures
    pairs = paired(temperatures, range(len(temperatures)))
    for where, logits in row_blocks(rows, mask):
        highest = logits.amax(-1, keepdim=True).to(rows.dtype)
        top[where] = highest.squeeze(-1)
        if ids.shape[2]:
            listed[where] = logits.gather(-1, ids[where].clamp(min=0)).to(rows.dtype)
        divisor = None
        if deviation is not None:
            if own_deviation:
                deviation[where] = standardizing_divisor(logits, rows.dtype).squeeze(-1)
            divisor = deviation[where][..., None]
        for n, half in pairs:
            powers = exponential(logits, highest, divisor, temperatures[n], rows.scratch(logits.shape))
            for place in (n, half):
                if place is None:
                    continue
                if place == half:
                    powers.square_()
                totals = powers.sum(-1)
                log_totals[(place, *where)] = totals
                if place == 0 and mass is not None:
                    _add_mass(mass, where, powers, totals, mask[where])
                if place == 0 and left_out is not None:
                    log_totals[(-1, *where)] = left_out.sum_without(powers, where)
    blank = ~mask
    if own_deviation and deviation is not None:
        deviation.masked_fill_(blank, 1)
    return RowStatistics(
        top.masked_fill_(blank, 0),
        log_totals.log_().masked_fill_(blank, 0),
        deviation,
        mass,
        listed.masked_fill_(blank[..., None], 0),
    )


def _add_mass(
    mass: Tensor, where: tuple[slice, slice], powers: Tensor, totals: Tensor, valid: Tensor
) -> None:
    """Add the probabilities of a block to the column sums of its sequences."""
    weights = torch.where(valid, 1 / totals, 0)
    if not torch_rows.can_look(valid.device):
        powers.masked_fill_(~valid[..., None], 0)  # excluded rows may hold anything
    if len(powers) == 1:
        mass[where[0].start].addmv_(powers[0].T, weights[0])
    else:
        mass[where[0], None].baddbmm_(weights[:, None], powers)


def kernels_serve(rows: RowSource, settings: Settings) -> TypeGuard[DenseRows]:
    """Whether kernels walk over these rows."""
    return (
        isinstance(rows, DenseRows)
        and not settings.standardize
        and len(settings.extra) <= 1
        and rows.logits.stride(2) == 1
        and torch_kernels.usable(rows.logits)
    )


def _reduce_rows_by_kernels(
    rows: DenseRows, mask: Tensor, settings: Settings, ids: Tensor, *, sums: bool, without: int
) -> RowStatistics:
    logits = rows.logits
    left_out = ids[..., :without] if without else None
    top, log_totals = torch_kernels.row_totals(logits, mask, settings.temperatures, rows.dtype, left_out)
    mass = None
    if sums:
        mass = torch_kernels.column_sums(logits, mask, top, log_totals[0], settings.temperature)
    listed = logits.gather(2, ids.clamp(min=0)).to(rows.dtype).masked_fill_(~mask[..., None], 0)
    return RowStatistics(top, log_totals, None, mass, listed)


def heaviest_columns(mass: Tensor, k: int) -> Tensor:
    """Columns ``(B, k)`` with the largest sums, in descending order, ties by lower index."""
    if mass.dtype == torch.float32:
        # Non-negative floats order as their bits do: sum and index fit into one key, which has no ties.
        index = torch.arange(mass.shape[1], device=mass.device)
        key = (mass.view(torch.int32).long() << 32) | (0xFFFFFFFF - index)
        return 0xFFFFFFFF - (key.topk(k, dim=1).values & 0xFFFFFFFF)
    return mass.sort(dim=1, descending=True, stable=True).indices[:, :k].contiguous()
