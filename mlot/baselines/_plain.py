"""Operations that NumPy arrays and torch tensors have under different names."""

from __future__ import annotations

import numpy as np

from mlot._typing import Array


def log_softmax(logits: Array, temperature: float) -> Array:
    if isinstance(logits, np.ndarray):
        z = logits.astype(np.float64) / temperature
        return z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    return ((logits.float() if logits.dtype.itemsize < 4 else logits) / temperature).log_softmax(-1)


def log_sum_exp(x: Array) -> Array:
    return np.logaddexp.reduce(x, axis=-1) if isinstance(x, np.ndarray) else x.logsumexp(-1)


def exp(x: Array) -> Array:
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def expm1(x: Array) -> Array:
    return np.expm1(x) if isinstance(x, np.ndarray) else x.expm1()


def log(x: Array) -> Array:
    return np.log(x) if isinstance(x, np.ndarray) else x.log()


def negative_entropy(t: Array) -> Array:
    r"""Elements of :math:`t \log t`, 0 where ``t`` is."""
    return t * log(t + (t == 0))


def divergence(t: Array, log_s: Array) -> Array:
    r"""Sum of :math:`t \log(t / s)` over the last axis; tokens that ``t`` gives nothing count as 0."""
    none = t == 0
    finite = np.where(none, 0, log_s) if isinstance(log_s, np.ndarray) else log_s.masked_fill(none, 0)
    return (negative_entropy(t) - t * finite).sum(-1)


def sorted_difference(t: Array, s: Array) -> Array:
    """Sum of the differences of sorted probabilities, the narrower one padded by zeros."""
    t, s = (np.sort(x) if isinstance(x, np.ndarray) else x.sort(-1).values for x in (t, s))
    t_extra, s_extra = (max(x.shape[1] - min(t.shape[1], s.shape[1]), 0) for x in (t, s))
    difference = abs(t[:, t_extra:] - s[:, s_extra:]).sum(-1)
    return difference + t[:, :t_extra].sum(-1) + s[:, :s_extra].sum(-1)
