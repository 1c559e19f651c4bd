r"""What the likeliest tokens of a position tell about every probability: intervals, at any temperature."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Width of a vocabulary that is not known, where a supposition about the tail needs one.
SUPPOSED_VOCABULARY = 1 << 16


class Listed(Protocol):
    """What is asked of a `mlot.TopKLogprobs` of NumPy arrays."""

    @property
    def ids(self) -> NDArray[Any]: ...
    @property
    def logprobs(self) -> NDArray[Any]: ...
    @property
    def vocab_size(self) -> int | None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...


class Position(NamedTuple):
    """Bounds at one position and temperature."""

    ids: NDArray[np.int64]  #: columns that are kept
    low: Floats  #: of each kept column
    high: Floats
    absent_low: float  #: of each absent column
    absent_high: float
    absent_mass: float  #: of all absent columns together, at most


class Intervals(NamedTuple):
    """Bounds ``(T, k)`` on the probabilities of some columns, zero where the mask excludes a position."""

    low: Floats
    high: Floats
    absent: NDArray[np.bool_]  #: where a column is not among the kept
    absent_mass: Floats  #: ``(T,)``, at most what all absent columns have together

    def at(self, rows: Any) -> Intervals:
        """The same at some positions."""
        return Intervals(self.low[rows], self.high[rows], self.absent[rows], self.absent_mass[rows])


def rounding(eps: float) -> float:
    """Error of a position's mass that log-probabilities of a type can have, ``eps`` being the type's unit.

    They carry the error of logits many times their size, but in half precision that of their own storage.
    """
    return min(64 * eps, 4 * eps + 1e-4)


def position(source: Listed, n: int, i: int, temperature: float) -> Position:
    r"""Bounds at one position of a source of NumPy arrays.

    With :math:`r = \tau_0 / \tau`, missing mass :math:`m`, :math:`A` absent columns of at most :math:`c`, the
    least kept probability: :math:`\sum p^r` over the absent lies between the sums of the most concentrated
    and of the uniform tail (a concave power, r < 1, is largest when uniform; a convex one when concentrated).
    An absent column has :math:`x` between :math:`\max(0, m - (A - 1) c)` and :math:`\min(c, m)`, and its
    probability at the other temperature, :math:`x^r / (\sum_K p^r + x^r + S_\mathrm{rest}(m - x))`, grows
    with :math:`x` because :math:`S_\mathrm{rest}` grows with its mass.
    """
    here = source.ids[n, i] >= 0
    ids = source.ids[n, i, here].astype(np.int64)
    kept = np.exp(source.logprobs[n, i, here].astype(np.float64))
    ratio = source.temperature / temperature
    absent = np.inf if source.vocab_size is None else float(source.vocab_size - len(ids))
    if absent == 0:
        power = kept if ratio == 1 else kept**ratio / (kept**ratio).sum()
        return Position(ids, power, power, 0.0, 0.0, 0.0)
    slack = rounding(float(np.finfo(source.logprobs.dtype).eps))
    most = max(1 - kept.sum(), 0.0) + slack
    least = max(most - 2 * slack, 0.0)
    cap = max(float(kept.min(initial=1.0)), most / absent)
    x_high, x_low = min(cap, most), max(0.0, least - (absent - 1) * cap) if np.isfinite(absent) else 0.0
    if ratio == 1:
        return Position(ids, kept, kept, x_low, x_high, most)
    powers = kept**ratio
    total = powers.sum()
    low, high = tail_sums(least, most, absent, cap, ratio)
    rest_low, _ = tail_sums(max(least - x_high, 0.0), most, absent - 1, cap, ratio)
    _, rest_high = tail_sums(0.0, max(most - x_low, 0.0), absent - 1, cap, ratio)
    return Position(
        ids,
        powers / (total + high),
        powers / (total + low) if len(ids) else powers,
        x_low**ratio / (total + x_low**ratio + rest_high) if x_low > 0 else 0.0,
        x_high**ratio / (total + x_high**ratio + rest_low),
        high / (total + high) if np.isfinite(high) else 1.0,
    )


def tail_sums(least: float, most: float, absent: float, cap: float, ratio: float) -> tuple[float, float]:
    """Least and largest sum of p^r over absent columns of at most the cap, their mass between two bounds."""

    def concentrated(mass: float) -> float:
        if mass <= 0 or absent <= 0:
            return 0.0
        return float(mass * cap ** (ratio - 1) if mass >= cap else mass**ratio)

    def uniform(mass: float) -> float:
        if mass <= 0 or absent <= 0:
            return 0.0
        if np.isinf(absent):
            return np.inf if ratio < 1 else 0.0
        return float(absent * (mass / absent) ** ratio)

    if ratio < 1:
        return concentrated(least), uniform(most)
    return uniform(least), concentrated(most)


def of_columns(
    source: Listed, n: int, mask: NDArray[np.bool_], columns: NDArray[np.int64], temperature: float
) -> Intervals:
    """Bounds for some columns of one sequence."""
    slot = np.full(source.shape[2], -1)
    slot[columns] = np.arange(len(columns))
    low, high = np.zeros((2, len(mask), len(columns)))
    absent, absent_mass = np.zeros((len(mask), len(columns)), dtype=bool), np.zeros(len(mask))
    for i in np.flatnonzero(mask):
        bounds = position(source, n, int(i), temperature)
        low[i], high[i], absent[i], absent_mass[i] = (
            bounds.absent_low,
            bounds.absent_high,
            True,
            bounds.absent_mass,
        )
        at = slot[bounds.ids]
        low[i, at[at >= 0]], high[i, at[at >= 0]] = bounds.low[at >= 0], bounds.high[at >= 0]
        absent[i, at[at >= 0]] = False
    return Intervals(low, high, absent, absent_mass)


def certain(
    source: Listed, n: int, mask: NDArray[np.bool_], columns: NDArray[np.int64], temperature: float
) -> int:
    """How many of the columns the full distribution would certainly select, too.

    A column is certain if no more than k - 1 others can have as much mass as it has at least.
    """
    low, high, below, above = np.zeros(source.shape[2]), np.zeros(source.shape[2]), 0.0, 0.0
    for i in np.flatnonzero(mask):
        bounds = position(source, n, int(i), temperature)
        low[bounds.ids] += bounds.low - bounds.absent_low
        high[bounds.ids] += bounds.high - bounds.absent_high
        below, above = below + bounds.absent_low, above + bounds.absent_high
    low, high = low + below, high + above
    slack = 1e-9 * max(int(mask.sum()), 1)
    count = 0
    for column in columns:
        rivals = int((high >= low[column] - slack).sum()) - 1
        unseen = source.vocab_size is None and above >= low[column] - slack
        count += int(rivals <= len(columns) - 1 and not unseen)
    return count
