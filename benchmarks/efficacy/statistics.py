"""Means, standard errors, and differences between trainings that share their seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        standard_error: standard deviation (n - 1) over the root of n; NaN for one value.
        low, high: ends of Student's t interval at 95 %; NaN for one value.
        count: n.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return bool(self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean."""
    array = np.asarray(values, np.float64)
    count = len(array)
    mean = float(array.mean())
    if count < 2:
        return Estimate(mean, float("nan"), float("nan"), float("nan"), count)
    error = float(array.std(ddof=1) / np.sqrt(count))
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Estimate(mean, error, mean - reach, mean + reach, count)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate:
    """Estimate the mean difference, values less others, of the seeds that both have."""
    common = sorted(set(values) & set(others))
    return estimate([values[seed] - others[seed] for seed in common])


def p_value(values: Mapping[int, float], others: Mapping[int, float]) -> float:
    """Two-sided p-value of the paired t-test; 1 where nothing differs or there is one seed."""
    found = paired(values, others)
    if found.count < 2:
        return 1.0
    if found.standard_error == 0:
        return 1.0 if found.mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(found.mean / found.standard_error), found.count - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjustment of p-values for the number of comparisons."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted
