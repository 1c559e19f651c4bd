r"""Signs of the differences of sorted probabilities, from counts instead of a sort.

The r-th largest of the student's probabilities is above the teacher's r-th largest exactly where fewer than
r of the teacher's are as large. Counts of both by the leading bits of their floats decide that for every bin
in which one side is ahead throughout, and that is nearly all of them; only what lies in the others is sorted.
A vocabulary that is narrower is padded by zeros, which no probability is below, so that nothing counts them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_OCTAVES = 64  # what is below 2^-64 shares one bin
_BITS = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


class Signs(NamedTuple):
    """Derivatives -1, 0 or 1 of the distance by the probabilities of some rows.

    Attributes:
        table: of each bin, ``(R, bins)`` int8; 0 where the bin does not decide.
        listed: flat indices of the probabilities in such bins.
        signs: of those, int8.
    """

    table: Tensor
    listed: Tensor
    signs: Tensor

    def spread(self, bins: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
        """``factor (sign - shift)`` of every probability, given its bin; both are ``(R, 1)``."""
        table = self.table.to(factor.dtype).sub_(shift).mul_(factor)
        values = table.flatten().index_select(0, bins.flatten())
        listed = self.listed.long()
        row = listed // bins.shape[1]
        exact = self.signs.to(factor.dtype).sub_(shift[row, 0]).mul_(factor[row, 0])
        return values.index_copy_(0, listed, exact).view(bins.shape)


def fraction_bits(vocabulary: int) -> int:
    """How many bits of the fraction number a bin: there should be fewer bins than probabilities."""
    return min(max((vocabulary // 256).bit_length() - 1, 0), 9)


def bins_of(probs: Tensor, bits: int) -> Tensor:
    """Bin of each probability ``(R, V)``, ascending, counted on from row to row."""
    integers, fraction, bias = _BITS[probs.dtype]
    bins = probs.view(integers) >> (fraction - bits)
    bins.sub_((bias - _OCTAVES) << bits).clamp_(0, _OCTAVES << bits)  # no number is somewhere, too
    if len(bins) > 1:
        rows = torch.arange(len(bins), dtype=integers, device=bins.device)
        bins.add_(rows[:, None] * _width(bits))
    return bins


def compare(probs: tuple[Tensor, Tensor], bins: tuple[Tensor, Tensor], bits: int) -> list[Signs]:
    """Signs of both sides, whose ``sign(p) p`` add up to the distance of each row."""
    rows = len(bins[0])
    counts = [side.flatten().bincount(minlength=rows * _width(bits)).view(rows, -1) for side in bins]
    above = [side.shape[1] - count.cumsum(1) for side, count in zip(bins, counts, strict=True)]
    ahead = (above[0] >= above[1] + counts[1]).to(torch.int8)
    table = ahead.sub_((above[1] >= above[0] + counts[0]).to(torch.int8))
    listed = [(table.flatten().index_select(0, side.flatten()) == 0).nonzero().flatten() for side in bins]
    places = [
        _places(p, side, index, count * (table == 0))
        for p, side, index, count in zip(probs, bins, listed, counts, strict=True)
    ]
    # Values become ranks among those listed, so that a row and a value make one number.
    ranks = torch.unique(torch.cat([each.values for each in places]), return_inverse=True)[1]
    keys = [
        each.row * len(ranks) + rank
        for each, rank in zip(places, ranks.split([len(each.row) for each in places]), strict=True)
    ]
    ordered = [key.sort() for key in keys]
    signs = []
    for own, other in ((0, 1), (1, 0)):
        sorted_keys, order = ordered[own]
        which = places[own].bin[order]
        position = torch.arange(len(order), device=order.device)
        rank = above[own].flatten()[which] + places[own].end[which] - position  # from 1
        rest = above[other].flatten()[which] + places[other].end[which]
        as_large = rest - torch.searchsorted(ordered[other].values, sorted_keys)
        larger = rest - torch.searchsorted(ordered[other].values, sorted_keys, right=True)
        sign = (rank > as_large).to(torch.int8) - (larger >= rank).to(torch.int8)
        signs.append(torch.empty_like(sign).index_copy_(0, order, sign))
    first, second = (index.to(torch.int32) for index in listed)
    return [Signs(table, first, signs[0]), Signs(-table, second, signs[1])]


class _Places(NamedTuple):
    values: Tensor
    row: Tensor
    bin: Tensor
    end: Tensor  # of each bin: how many are listed up to its end


def _places(probs: Tensor, bins: Tensor, index: Tensor, counts: Tensor) -> _Places:
    return _Places(
        probs.flatten()[index],
        index // bins.shape[1],
        bins.flatten()[index].long(),
        counts.flatten().cumsum(0),
    )


def _width(bits: int) -> int:
    return (_OCTAVES << bits) + 1
