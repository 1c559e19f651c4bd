"""Distributions of which only the most likely tokens are known, completed, one position at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlot._intervals import rounding
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
    elif missing > 0 and source.tail == "zero":
        least = np.exp(logs.min(initial=0.0))
        cap = max(min(max(least, missing / absent), missing), 1e-30)
        tail = np.log(missing) + (ratio - 1) * np.log(cap)
    normalizer = np.logaddexp(kept, tail)
    if (ratio == 1 and source.tail != "renormalize") or np.isneginf(normalizer):
        normalizer = 0.0
    return ratio * row - normalizer, float(normalizer)


def log_distributions(
    source: TopKLogprobs, n: int, rows: Integers, temperature: float
) -> Iterator[tuple[int, Floats, float]]:
    """`log_distribution` of some positions of one sequence, each with its position."""
    for i in rows.tolist():
        yield i, *log_distribution(source, n, i, temperature)
