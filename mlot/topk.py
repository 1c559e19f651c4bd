"""Predictions of which only the most likely tokens are known, as inference servers return them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlot import _checks
from mlot._arrays import ArrayOperations
from mlot._composite import Composite
from mlot._intervals import position
from mlot._resolve import resolve
from mlot._typing import Array, Tail

#: How far above 1 the kept mass of a position may be: servers round, and half precision rounds more.
_MASS_TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-2}
_DEFAULT_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class TopKLogprobs(Composite):
    r"""Log-probabilities of the most likely tokens of each position, with ids that differ by position.

    Let :math:`p` be the probabilities at :math:`\tau_0` = ``temperature``, :math:`m(i) = 1 - \sum_K p(i)` the
    mass that is missing at position :math:`i`, :math:`p_K(i)` the least of the kept probabilities and
    :math:`A(i)` the number of absent columns. At any other temperature :math:`\tau`, with
    :math:`r = \tau_0 / \tau`,

    .. math:: p^{(\tau)}_l = \frac{p_l^r}{\sum_K p^r + S}, \qquad
              S = \sum_{\text{absent}} p^r \ \text{between}\ m\,\min(p_K, m)^{r-1} \ \text{and}\ A\,(m / A)^r,

    the first of which is the least and the second the most for :math:`r < 1` (:math:`\tau > \tau_0`), and the
    reverse for :math:`r > 1`: the tail at another temperature is **not** known, and what ``tail`` supposes is

    - ``"fitted"``: absent columns have probability 0 in traces and the kept ones keep theirs, a
      sub-probability. At other temperatures the absent are supposed to fall off as a power of their rank from
      the least kept one on, :math:`p_K (x / K)^{-s}` at rank :math:`x`, with the one :math:`s` for which they
      share :math:`m`; :math:`S` is the sum of their powers. That is how the predictions of language models
      look (``tests/core/test_fitted_tail.py``), hence the default. Where ``vocab_size`` is not known,
      65,536 stands for it.
    - ``"zero"``: the same, but at other temperatures the missing mass is as concentrated as it can be,
      :math:`S = m\,\min(p_K, m)^{r-1}`: it errs on one side only.
    - ``"renormalize"``: the kept are divided by their sum; :math:`S = 0` and no mass is missing at any
      temperature.
    - ``"uniform"``: each absent column has :math:`m / A`, and :math:`S = A\,(m / A)^r`. Needs ``vocab_size``.

    `mlot.truncation_bounds` computes how far each term of the loss can be from what the full distribution
    would give. It is a source for `mlot.select` and for the teacher of every loss but ULD; it is a constant
    for differentiation. Without ``vocab_size`` it is as wide as its largest id requires, ``largest + 1``:
    enough to select columns, but nothing is known of how many others share the missing mass.

    Args:
        ids: tokens, ``(B, T, K)`` integers, different at each position, in any order; -1 where a position has
            fewer than K. They must be the most likely ones: no absent token may be likelier than a kept one.
        logprobs: natural log-probabilities, ``(B, T, K)``; what stands beside an id of -1 is not read. Minus
            infinity is a probability of 0.
        vocab_size: width of the teacher's vocabulary, or ``None`` if it is not known.
        tail: ``"fitted"``, ``"zero"``, ``"renormalize"`` or ``"uniform"``.
        temperature: temperature that ``logprobs`` were taken at.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: shapes do not fit together; an id is below -1, repeated, or not below ``vocab_size``; a
            log-probability is NaN or positive, a position's mass exceeds 1, or its ids cannot be the most
            likely ones; ``tail="uniform"`` without ``vocab_size``. Values are looked at on the host alone,
            where nobody waits for a device.

    >>> import numpy as np, mlot
    >>> ids = np.array([[[2, 0], [2, 1]]])
    >>> served = mlot.TopKLogprobs(ids, np.log([[[0.7, 0.2], [0.5, 0.3]]]), vocab_size=4)
    >>> traces = mlot.select(served, k=2)
    >>> traces.columns, np.exp(traces.log_probs).round(3)
    (array([[2, 1]]), array([[[0.7, 0. ],
            [0.5, 0.3]]]))
    """

    ids: Array
    logprobs: Array
    vocab_size: int | None = None
    tail: Tail = "fitted"
    temperature: float = 1.0
    _width: int = field(init=False, default=0)

    _whole: ClassVar[bool] = False
    _knows_mask: ClassVar[bool] = True
    _no_student: ClassVar[str] = (
        "served log-probabilities are constants, which a student cannot be trained through, and lack the "
        "columns that a match may need"
    )

    def __post_init__(self) -> None:
        _checks.count("vocab_size", self.vocab_size, allow_none=True)
        _checks.choice("tail", self.tail, ("fitted", "zero", "renormalize", "uniform"))
        _checks.divisor("temperature", self.temperature)
        if self.tail == "uniform" and self.vocab_size is None:
            raise ValueError(
                "vocab_size: expected the width of the teacher's vocabulary, since tail='uniform' spreads "
                "the missing mass over it, got None"
            )
        for name in ("ids", "logprobs"):
            value = getattr(self, name)
            if not hasattr(value, "shape"):
                raise TypeError(f"{name}: expected an array (B, T, K), got {type(value).__name__}")
            if len(value.shape) != 3:
                raise ValueError(f"{name}: expected (B, T, K), got shape {tuple(value.shape)}")
        if tuple(self.logprobs.shape) != tuple(self.ids.shape):
            raise ValueError(
                f"logprobs: expected the shape of ids, {tuple(self.ids.shape)}, "
                f"got {tuple(self.logprobs.shape)}"
            )
        xp, _ = resolve({"ids": self.ids, "logprobs": self.logprobs}, None)
        self._check(xp, "")
        if xp.device(self.ids) == "cpu":
            _check_values(self, xp.to_numpy(self.ids), xp.to_numpy(xp.stop_gradient(self.logprobs)))
        width = self.vocab_size
        if width is None:
            width = int(self.ids.max()) + 1 if 0 not in self.ids.shape else 1
        object.__setattr__(self, "_width", max(width, 1))

    @staticmethod
    def trusted(ids: Array, logprobs: Array, *, vocab_size: int, temperature: float) -> TopKLogprobs:
        """Make one of arrays that are known to be in order; nothing is checked."""
        made = object.__new__(TopKLogprobs)
        values = {"tail": "fitted", "temperature": temperature, "_width": vocab_size}
        for name, value in {"ids": ids, "logprobs": logprobs, "vocab_size": vocab_size, **values}.items():
            object.__setattr__(made, name, value)
        return made

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)`` of the predictions, V being the largest id + 1 where it is not known."""
        batch, length, _ = self.ids.shape
        return int(batch), int(length), self._width

    def __repr__(self) -> str:
        batch, length, k = self.ids.shape
        return (
            f"TopKLogprobs(B={batch}, T={length}, K={k}, vocab_size={self.vocab_size}, tail={self.tail!r}, "
            f"temperature={self.temperature})"
        )

    def map(self, function: Callable[[Array], Array]) -> TopKLogprobs:
        """Return the same with ``function`` applied to both arrays, whose values it must keep."""
        mapped = object.__new__(TopKLogprobs)
        for each in fields(self):
            object.__setattr__(mapped, each.name, getattr(self, each.name))
        object.__setattr__(mapped, "ids", function(self.ids))
        object.__setattr__(mapped, "logprobs", function(self.logprobs))
        return mapped

    def probability_bounds(self, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds within which the true probabilities of the listed tokens lie at a temperature.

        At the temperature that they were taken at both are the probabilities themselves; at others the tail's
        sum is known to an interval only (see above), whatever ``tail`` supposes.

        Args:
            temperature: the temperature.

        Returns:
            Lower and upper bounds, ``(B, T, K)`` each, in NumPy; 0 beside an id of -1.

        Raises:
            TypeError, ValueError: ``temperature`` is no positive number.

        >>> import numpy as np, mlot
        >>> served = mlot.TopKLogprobs(np.array([[[2, 0]]]), np.log([[[0.64, 0.16]]]), vocab_size=6)
        >>> low, high = served.probability_bounds(2.0)
        >>> low.round(3), high.round(3)
        (array([[[0.382, 0.191]]]), array([[[0.471, 0.235]]]))
        """
        _checks.divisor("temperature", temperature)
        xp, _ = resolve({"ids": self.ids}, None)
        ids: NDArray[Any] = xp.to_numpy(self.ids)
        logprobs: NDArray[Any] = xp.to_numpy(xp.stop_gradient(self.logprobs))
        held = self.map(lambda array: ids if array is self.ids else logprobs)
        low, high = np.zeros((2, *ids.shape))
        here = np.greater_equal(ids, 0)
        for n, i in np.ndindex(*ids.shape[:2]):
            bounds = position(held, n, i, temperature)
            low[n, i, here[n, i]], high[n, i, here[n, i]] = bounds.low, bounds.high
        return low, high

    def _check(self, xp: ArrayOperations, name: str) -> None:
        prefix = f"{name}." if name else ""
        if xp.kind(self.ids) != "integer":
            raise TypeError(f"{prefix}ids: expected integers, got {self.ids.dtype}")
        if xp.kind(self.logprobs) != "float":
            raise TypeError(f"{prefix}logprobs: expected floating-point numbers, got {self.logprobs.dtype}")

    def _mask(self, xp: ArrayOperations) -> Array:
        """Positions that have an entry."""
        return (self.ids >= 0).any(2)

    def _check_mask(self, xp: ArrayOperations, name: str, mask: Array, of: str) -> None:
        if xp.device(mask) != "cpu" or _compiling():
            return
        empty = np.greater(xp.to_numpy(mask), xp.to_numpy(self._mask(xp)))
        if empty.any():
            n, t = np.argwhere(empty)[0]
            raise ValueError(
                f"{name}: expected positions at which {of} has an entry, got one that has none: "
                f"sequence {n}, position {t}"
            )


def _check_values(source: TopKLogprobs, ids: NDArray[Any], logprobs: NDArray[Any]) -> None:
    """Raise `ValueError` unless the values can be the most likely tokens of each position."""
    if ids.size == 0:
        return
    here = ids >= 0
    if ids.min() < -1:
        raise ValueError(f"ids: expected tokens, or -1 for none, got {ids.min()}")
    if source.vocab_size is not None and ids.max() >= source.vocab_size:
        raise ValueError(f"ids: expected tokens below vocab_size = {source.vocab_size}, got {ids.max()}")
    ordered = np.sort(ids, axis=2)
    repeated = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] >= 0)
    if repeated.any():
        n, t, j = np.argwhere(repeated)[0]
        raise ValueError(
            f"ids: expected different tokens at each position, got {ordered[n, t, j]} twice: "
            f"sequence {n}, position {t}"
        )
    dtype = str(source.logprobs.dtype).removeprefix("torch.")
    tolerance = _MASS_TOLERANCE.get(dtype, _DEFAULT_TOLERANCE)
    logs = np.where(here, logprobs, -np.inf).astype(np.float64)
    for wrong, wanted in ((np.isnan(logs), "numbers"), (logs > tolerance, "no positive numbers")):
        if wrong.any():
            n, t, j = np.argwhere(wrong)[0]
            raise ValueError(
                f"logprobs: expected {wanted}, got {logs[n, t, j]}: sequence {n}, position {t}"
                + (" (are these logits?)" if logs[n, t, j] > 0 else "")
            )
    mass = np.exp(logs).sum(axis=2)
    if mass.max() > 1 + tolerance:
        n, t = np.unravel_index(mass.argmax(), mass.shape)
        raise ValueError(
            f"logprobs: expected probabilities that sum to at most 1 at each position, got {mass[n, t]:.6g}: "
            f"sequence {n}, position {t}"
        )
    least = np.exp(np.where(here, logs, np.inf).min(axis=2))  # infinite where there is no entry
    room = np.where(least > 0, np.inf, 0.0)
    if source.vocab_size is not None:
        absent = source.vocab_size - here.sum(axis=2)
        room = absent * np.where(absent > 0, least, 0.0)
    short = here.any(axis=2) & (1 - mass > room * (1 + tolerance) + tolerance)
    if short.any():
        n, t = np.argwhere(short)[0]
        raise ValueError(
            f"logprobs: expected the most likely tokens, got others at sequence {n}, position {t}: the "
            f"missing mass {1 - mass[n, t]:.3g} exceeds {room[n, t]:.3g}, what all absent tokens can have if "
            f"none is likelier than the least kept, {least[n, t]:.3g}; leave out what a server adds to them"
        )


def _compiling() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.compiler.is_compiling())
