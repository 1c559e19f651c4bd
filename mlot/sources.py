"""What a model predicted, in the forms in which it comes: where traces are selected from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from mlot import _checks
from mlot._arrays import ArrayOperations
from mlot._composite import Composite, arrays_of
from mlot._typing import Array
from mlot.traces import Traces

__all__ = ["LinearHead", "Predictions", "Source", "arrays_of"]

#: Bytes of logits of a head that are formed at a time, unless it says otherwise.


@dataclass(frozen=True, eq=False)
class LinearHead(Composite):
    r"""Logits as the product of hidden states and an output head, never materialised.

    .. math:: z = c \tanh\!\big(a\,(h W^\top + b) / c\big)

    with the scale :math:`a` (``None``: 1) and the soft cap :math:`c` (``None``: no cap). Backends read the
    logits a few positions at a time, compute them in at least float32, and return gradients for ``hidden``,
    ``weight`` and ``bias``.

    Args:
        hidden: hidden states, ``(B, T, D)``.
        weight: output embedding, ``(V, D)``.
        bias: ``(V,)`` or ``None``.
        softcap: positive bound on the logits' magnitude, or ``None``.
        scale: factor on the logits before the cap, or ``None``.
        chunk_bytes: bytes of logits that are formed at a time, one position at least; ``None``: 48 MiB on the
            host, 256 MiB on accelerators. More is faster, since the weight is read once for each chunk; the
            NumPy backend goes by positions whatever it is.

    Raises:
        TypeError: an array has no shape, or a number is not one.
        ValueError: the shapes do not fit together, or a number is out of range.

    >>> import numpy as np, mlot
    >>> rng = np.random.default_rng(0)
    >>> head = mlot.LinearHead(rng.normal(size=(1, 4, 8)), rng.normal(size=(20, 8)))
    >>> head.shape
    (1, 4, 20)
    """

    hidden: Array
    weight: Array
    bias: Array | None = None
    softcap: float | None = None
    scale: float | None = None
    chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, wanted, rank in (("hidden", "(B, T, D)", 3), ("weight", "(V, D)", 2), ("bias", "(V,)", 1)):
            value = getattr(self, name)
            if name == "bias" and value is None:
                continue
            if not hasattr(value, "shape"):
                raise TypeError(f"{name}: expected an array {wanted}, got {type(value).__name__}")
            if len(value.shape) != rank:
                raise ValueError(f"{name}: expected {wanted}, got shape {tuple(value.shape)}")
        if self.hidden.shape[-1] != self.weight.shape[-1]:
            raise ValueError(
                "weight: expected (V, D) with the D of hidden, "
                f"got {tuple(self.weight.shape)} for hidden {tuple(self.hidden.shape)}"
            )
        if self.bias is not None and self.bias.shape[0] != self.weight.shape[0]:
            raise ValueError(
                f"bias: expected ({self.weight.shape[0]},), the V of weight, got {tuple(self.bias.shape)}"
            )
        for name in ("softcap", "scale"):
            number = getattr(self, name)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{name}: expected a number or None, got {type(number).__name__}")
            if not math.isfinite(number) or (name == "softcap" and number <= 0) or number == 0:
                raise ValueError(f"{name}: expected a finite, non-zero number (softcap > 0), got {number}")
        if self.chunk_bytes is not None:
            _checks.count("chunk_bytes", self.chunk_bytes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)`` that the logits would have."""
        batch, length, _ = self.hidden.shape
        return int(batch), int(length), int(self.weight.shape[0])

    def map(self, function: Callable[[Array], Array]) -> LinearHead:
        """Return the same head with ``function`` applied to every array."""
        bias = None if self.bias is None else function(self.bias)
        return replace(self, hidden=function(self.hidden), weight=function(self.weight), bias=bias)

    def _check(self, xp: ArrayOperations, name: str) -> None:
        for field, array in (("hidden", self.hidden), ("weight", self.weight), ("bias", self.bias)):
            if array is not None and xp.kind(array) != "float":
                raise TypeError(f"{name}.{field}: expected floating-point numbers, got {array.dtype}")


#: Predictions over the whole vocabulary: dense logits ``(B, T, V)`` or a `LinearHead`.
Predictions: TypeAlias = Array | LinearHead

#: Dense logits ``(B, T, V)``, a `LinearHead`, `Traces` selected earlier, or another `Composite`.
Source: TypeAlias = Array | LinearHead | Traces | Composite
