"""Means and paired differences between trainings that share their seed, with Student's intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        low, high: ends of Student's t interval at 95 %; NaN for one value.
        p: two-sided p-value of a mean of 0; 1 for one value.
        count: number of values.
    """

    mean: float
    low: float
    high: float
    p: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is on one side of 0."""
        return bool(self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return Estimate(float(array.mean()), float("nan"), float("nan"), 1.0, len(array))
    if np.ptp(array) == 0:
        mean = float(array[0])
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(array))
    test = stats.ttest_1samp(array, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Estimate(float(array.mean()), float(low), float(high), float(test.pvalue), len(array))


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Estimate:
    """Estimate the mean difference, values less others, of the seeds that both have."""
    common = sorted(set(values) & set(others))
    return estimate([values[seed] - others[seed] for seed in common])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values for the number of comparisons."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []
