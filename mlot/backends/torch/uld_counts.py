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
        """``factor (sign - shift)`` of every probability, given its bin of all rows; both are ``(R, 1)``."""
        table = self.table.to(factor.dtype).sub_(shift).mul_(factor)
        values = table.flatten().index_select(0, bins.flatten())
        listed = self.listed.long()
        row = listed // bins.shape[1]
        exact = self.signs.to(factor.dtype).sub_(shift[row, 0]).mul_(factor[row, 0])
        return values.index_copy_(0, listed, exact).view(bins.shape)


def fraction_bits(vocabulary: int) -> int:
    """How many bits of the fraction number a bin: there should be fewer bins than probabilities."""
    return min(max((vocabulary // 256).bit_length() - 1, 0), 9)


def number_of_bins(bits: int) -> int:
    """Bins of a row."""
    return (_OCTAVES << bits) + 1


def constants_of(dtype: torch.dtype, bits: int) -> tuple[int, int, int]:
    """By how many places a float is shifted, what is subtracted then, and the number of the highest bin."""
    _, fraction, bias = _BITS[dtype]
    return fraction - bits, (bias - _OCTAVES) << bits, _OCTAVES << bits


def bins_of(probs: Tensor, bits: int) -> Tensor:
    """Bin of each probability, ascending."""
    places, lowest, highest = constants_of(probs.dtype, bits)
    bins = probs.view(_BITS[probs.dtype][0]) >> places
    return bins.sub_(lowest).clamp_(0, highest)  # no number is somewhere, too


def bins_of_rows(probs: Tensor, bits: int) -> Tensor:
    """Bin of each probability ``(R, V)``, counted on from row to row."""
    bins = bins_of(probs, bits)
    if len(bins) > 1:
        rows = torch.arange(len(bins), dtype=bins.dtype, device=bins.device)
        bins.add_(rows[:, None] * number_of_bins(bits))
    return bins


class Comparison(NamedTuple):
    """What the counts of both sides say about each bin.

    Attributes:
        table: signs of the first side, ``(R, bins)`` int8, 0 where a bin does not decide; the other's are
            their negatives.
        above: probabilities of each side in higher bins.
        undecided: probabilities of each side up to a bin's end, in this row, where bins do not decide.
    """

    table: Tensor
    above: tuple[Tensor, Tensor]
    undecided: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, counts: tuple[Tensor, Tensor], widths: tuple[int, int]) -> Comparison:
        """Compare counts ``(R, bins)`` of rows of so many probabilities."""
        first, second = (
            width - count.cumsum(1, dtype=count.dtype) for count, width in zip(counts, widths, strict=True)
        )
        table = (
            (first >= second + counts[1]).to(torch.int8).sub_((second >= first + counts[0]).to(torch.int8))
        )
        ends = [(count * (table == 0)).cumsum(1, dtype=count.dtype) for count in counts]
        return cls(table, (first, second), (ends[0], ends[1]))

    def signs(self, values: tuple[Tensor, Tensor], bits: int) -> list[Tensor]:
        """Signs int8 of the undecided probabilities ``(R, n)`` of each side, padded with infinities."""
        ordered = [side.sort(1) for side in values]
        result = []
        for own, other in ((0, 1), (1, 0)):
            ascending, order = ordered[own]
            among = ordered[other].values
            which = bins_of(ascending, bits).long()
            position = torch.arange(order.shape[1], device=order.device)
            rank = (self.above[own] + self.undecided[own]).gather(1, which) - position  # from 1
            rest = (self.above[other] + self.undecided[other]).gather(1, which)
            as_large = rest - torch.searchsorted(among, ascending)
            larger = rest - torch.searchsorted(among, ascending, right=True)
            sign = (rank > as_large).to(torch.int8) - (larger >= rank).to(torch.int8)
            result.append(torch.empty_like(sign).scatter_(1, order, sign))
        return result


def compare(probs: tuple[Tensor, Tensor], bins: tuple[Tensor, Tensor], bits: int) -> list[Signs]:
    """Signs of both sides, whose ``sign(p) p`` add up to the distance of each row, given bins of all rows."""
    rows, width = len(bins[0]), number_of_bins(bits)
    counts = [side.flatten().bincount(minlength=rows * width).view(rows, -1) for side in bins]
    comparison = Comparison.of((counts[0], counts[1]), (bins[0].shape[1], bins[1].shape[1]))
    undecided = comparison.table.flatten() == 0
    listed = [undecided.index_select(0, side.flatten()).nonzero().flatten() for side in bins]
    places = [_padded(index, p) for index, p in zip(listed, probs, strict=True)]
    padded = [
        p.new_full((rows, int(columns.amax() + 1) if len(columns) else 0), torch.inf).index_put_(
            (row, columns), p.flatten()[index]
        )
        for p, index, (row, columns) in zip(probs, listed, places, strict=True)
    ]
    signs = comparison.signs((padded[0], padded[1]), bits)
    return [
        Signs(table, index.to(torch.int32), sign[place])
        for table, index, sign, place in zip(
            (comparison.table, -comparison.table), listed, signs, places, strict=True
        )
    ]


def _padded(index: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Row, and place among those of its row, of some flat indices in ascending order."""
    row = index // probs.shape[1]
    starts = torch.searchsorted(row, torch.arange(len(probs), device=row.device))
    return row, torch.arange(len(row), device=row.device) - starts[row]
