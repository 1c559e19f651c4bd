"""Logits and log-probabilities of a source, one sequence at a time and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot.backends.numpy import equations as eq
from mlot.backends.numpy.equations import Floats
from mlot.sources import LinearHead, Predictions


def float64(array: NDArray[Any]) -> Floats:
    return array.astype(np.float64, copy=False)


def logits_of(source: Predictions, n: int, rows: Any) -> Floats:
    """Logits of some positions of one sequence."""
    if not isinstance(source, LinearHead):
        return float64(source[n, rows])
    logits = float64(source.hidden[n, rows]) @ float64(source.weight).T
    if source.bias is not None:
        logits = logits + float64(source.bias)
    if source.scale is not None:
        logits = source.scale * logits
    if source.softcap is not None:
        logits = source.softcap * np.tanh(logits / source.softcap)
    return float64(logits)


def log_probs_of(
    source: Predictions, n: int, rows: NDArray[np.bool_], temperature: float, standardize: bool
) -> Floats:
    logits = logits_of(source, n, rows)
    return eq.log_probabilities(eq.standardized(logits) if standardize else logits, temperature)
