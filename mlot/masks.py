"""Masks: which positions of a sequence predict something that counts."""

from __future__ import annotations

import numbers

from mlot import _arguments
from mlot._typing import Array


def mask_from_labels(labels: Array, ignore_index: int = -100, *, backend: str | None = None) -> Array:
    """Mark the positions whose prediction a causal language model is trained on.

    Labels are unshifted, as transformers takes them: the logits at position ``t`` predict ``labels[t + 1]``,
    so position ``t`` is valid when ``labels[t + 1] != ignore_index``, and the last position never is.

    Args:
        labels: ``(B, T)`` integers.
        ignore_index: label of positions that are not targets.
        backend: name of a backend; ``None`` finds it from the type of ``labels``.

    Returns:
        ``(B, T)`` booleans.

    Raises:
        TypeError, ValueError: ``labels`` is no integer array of rank two, or ``ignore_index`` no integer.

    >>> import numpy as np, mlot
    >>> mlot.mask_from_labels(np.array([[-100, 5, -100, 7]]))
    array([[ True, False,  True, False]])
    """
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(
            f"ignore_index: expected an integer, got {type(ignore_index).__name__} {ignore_index!r}"
        )
    xp, (labels,) = _arguments.resolve({"labels": labels}, backend)
    if len(labels.shape) != 2:
        raise ValueError(f"labels: expected (B, T), got shape {tuple(labels.shape)}")
    if xp.kind(labels) != "integer":
        raise TypeError(f"labels: expected integers, got {labels.dtype}")
    return xp.mask_from_labels(labels, int(ignore_index))
