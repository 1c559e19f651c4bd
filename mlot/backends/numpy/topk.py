"""Distributions of which only the most likely tokens are known, completed, one position at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlot._intervals import SUPPOSED_VOCABULARY, rounding
from mlot.backends.numpy.equations import Floats, Integers
from mlot.topk import TopKLogprobs


def log_distribution(source: TopKLogprobs, n: int, i: int, temperature: float) -> tuple[Floats, float]:
    """Log-probabilities of the whole vocabulary at one position, and what was subtracted to normalise them.

    With r = τ₀/τ: r log p - log(Σ_kept p^r + S), where S stands for the tail; an absent column has its
    share of the missing mass, or none.
    """
    here = source.ids[n, i] >= 0
    ids: Integers = source.ids[n, i, here]
    logs = source.logprobs[n, i, here].astype(np.float64)
    vocabulary, ratio = source.shape[2], source.temperature / temperature
    absent = vocabulary - len(ids) if source.vocab_size is not None else np.inf
    missing = 1.0 - np.exp(logs).sum()
    if absent == 0 or missing <= rounding(np.finfo(source.logprobs.dtype).eps):
        missing = 0.0  # what is below the rounding of the log-probabilities tells nothing
    row = np.full(vocabulary, -np.inf)
    if source.tail == "uniform" and missing > 0:
        row[:] = np.log(missing / absent)
    row[ids] = logs
    kept, tail = np.logaddexp.reduce(ratio * logs), -np.inf
    if missing > 0 and source.tail == "uniform":
        tail = np.log(absent) + ratio * np.log(missing / absent)
    elif missing > 0 and source.tail in ("fitted", "zero"):
        least = np.exp(logs.min(initial=0.0))
        if source.tail == "fitted" and not np.isfinite(absent):
            absent = max(SUPPOSED_VOCABULARY - len(ids), missing / max(least, 1e-30))
        cap = max(least, missing / absent)
        tail = np.log(missing) + (ratio - 1) * np.log(max(min(cap, missing), 1e-30))
        if source.tail == "fitted":
            ends = sorted((tail, np.log(absent) + ratio * np.log(missing / absent)))
            fitted = _power_law(float(np.log(missing)), float(np.log(cap)), max(len(ids), 1), absent, ratio)
            tail = min(max(fitted, ends[0]), ends[1])
    normalizer = np.logaddexp(kept, tail)
    if (ratio == 1 and source.tail != "renormalize") or np.isneginf(normalizer):
        normalizer = 0.0
    return ratio * row - normalizer, float(normalizer)


def _power_law(log_mass: float, log_cap: float, kept: int, absent: float, ratio: float) -> float:
    r"""Logarithm of the sum of c^r (x/K)^(-s r) over the absent ranks x, where that of c (x/K)^(-s) is known.

    Sums are integrals over x/K from (K + 1/2)/K to (K + A + 1/2)/K, and s is found by Newton's method from 0:
    the logarithm of the sum is convex in s and falls, so no step goes too far.
    """
    low = np.log((kept + 0.5) / kept)
    width = np.log((kept + absent + 0.5) / (kept + 0.5))

    def log_sum(s: float) -> tuple[float, float]:
        """Logarithm of the integral and its slope."""
        e = 1 - s
        if abs(e * width) < 1e-4:
            value, slope = np.log(width) + e * width / 2, width / 2 + e * width**2 / 12
        else:
            value = np.log(np.expm1(e * width) / e)
            slope = width / -np.expm1(min(-e * width, 700.0)) - 1 / e
        return float(np.log(kept) + e * low + value), float(-low - slope)

    s = 0.0
    for _ in range(12):
        value, slope = log_sum(s)
        s = max(s - (log_cap + value - log_mass) / slope, 0.0)
    return ratio * log_cap + log_sum(ratio * s)[0]


def log_distributions(
    source: TopKLogprobs, n: int, rows: Integers, temperature: float
) -> Iterator[tuple[int, Floats, float]]:
    """`log_distribution` of some positions of one sequence, each with its position."""
    for i in rows.tolist():
        yield i, *log_distribution(source, n, i, temperature)
