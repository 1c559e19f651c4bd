"""Traces: the log-probabilities that a vocabulary column has along a sequence, for the columns kept."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from mlot import _storage
from mlot._arrays import ArrayOperations
from mlot._composite import Composite
from mlot._registry import get_backend
from mlot._resolve import resolve
from mlot._typing import Array


@dataclass(frozen=True, eq=False)
class Traces(Composite):
    r"""The :math:`k` heaviest columns of each sequence's predictions, and what other temperatures need.

    With :math:`\tau_0` = ``temperature``, a column's log-probability at any temperature :math:`\tau` that was
    asked for at selection is

    .. math:: \log p^{(\tau)}_l = \tfrac{\tau_0}{\tau} \log p^{(\tau_0)}_l - n_\tau,
              \qquad n_\tau = \log \sum_v \exp\big(\tfrac{\tau_0}{\tau} \log p^{(\tau_0)}_v\big),

    the sum running over the whole vocabulary, so nothing is lost by keeping few columns. Made by
    `mlot.select`; everything after selection works on traces alone.

    Attributes:
        columns: vocabulary columns kept, heaviest first, ``(B, k)`` integers.
        log_probs: natural log-probabilities at ``temperature``, ``(B, T, k)``; minus infinity where ``mask``
            is false.
        log_normalizers: :math:`n_\tau` for each of ``extra_temperatures``, ``(B, T, n)``.
        column_mass: :math:`\sum_t p_l(t)` over the valid positions, ``(B, k)``.
        mask: positions whose prediction counts, ``(B, T)`` booleans.
        vocab_size: :math:`V`, the width that the columns were selected from.
        temperature: temperature of ``log_probs``.
        extra_temperatures: temperatures that ``log_normalizers`` serves.
        standardize: whether logits were divided by their standard deviation first.
    """

    columns: Array
    log_probs: Array
    log_normalizers: Array
    column_mass: Array
    mask: Array
    vocab_size: int
    temperature: float = 1.0
    extra_temperatures: tuple[float, ...] = ()
    standardize: bool = False

    _whole: ClassVar[bool] = False
    _knows_mask: ClassVar[bool] = True

    @property
    def k(self) -> int:
        """Number of columns kept."""
        return int(self.columns.shape[-1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)`` of the predictions that the traces come from."""
        batch, length, _ = self.log_probs.shape
        return int(batch), int(length), self.vocab_size

    def __repr__(self) -> str:
        batch, length, vocabulary = self.shape
        return (
            f"Traces(B={batch}, T={length}, k={self.k}, V={vocabulary}, temperature={self.temperature}, "
            f"extra_temperatures={self.extra_temperatures}, standardize={self.standardize})"
        )

    def at(self, temperature: float | None = None) -> Array:
        """Log-probabilities ``(B, T, k)`` of the kept columns at a temperature.

        At another temperature than ``temperature`` they have the wider of the types of ``log_probs`` and
        ``log_normalizers``.

        Args:
            temperature: one of those the traces were selected for; ``None`` means ``temperature``.

        Raises:
            ValueError: the traces were not selected for that temperature.
        """
        if temperature is None or temperature == self.temperature:
            return self.log_probs
        ratio = self.temperature / temperature
        n = self._position_of(temperature)
        log_probs, normalizers = self.log_probs, self.log_normalizers[:, :, n : n + 1]
        if log_probs.dtype.itemsize < normalizers.dtype.itemsize:
            # Stored in a narrower type: the product must not round once more.
            log_probs = _cast(log_probs, normalizers.dtype)
        return ratio * log_probs - normalizers

    def require(self, temperature: float, name: str = "temperature") -> None:
        """Raise `ValueError` unless the traces serve that temperature."""
        if temperature != self.temperature:
            self._position_of(temperature, name)

    def _position_of(self, temperature: float, name: str = "temperature") -> int:
        for n, extra in enumerate(self.extra_temperatures):
            if math.isclose(extra, temperature, rel_tol=1e-12):
                return n
        have = ", ".join(str(t) for t in (self.temperature, *self.extra_temperatures))
        raise ValueError(
            f"{name}: expected one that the traces were selected for ({have}), got {temperature}; "
            f"select them with extra_temperatures=({temperature},)"
        )

    def map(self, function: Callable[[Array], Array]) -> Traces:
        """Return the same traces with ``function`` applied to every array."""
        return replace(
            self,
            columns=function(self.columns),
            log_probs=function(self.log_probs),
            log_normalizers=function(self.log_normalizers),
            column_mass=function(self.column_mass),
            mask=function(self.mask),
        )

    def _mask(self, xp: ArrayOperations) -> Array:
        return self.mask

    def _check_mask(self, xp: ArrayOperations, name: str, mask: Array, of: str) -> None:
        if bool((mask != self.mask).any()):
            raise ValueError(
                f"{name}: expected the mask that the traces were selected with (or None), "
                f"got one that differs from {of}.mask"
            )

    def save(self, path: str | os.PathLike[str], *, dtype: str | None = None) -> None:
        """Write the traces to one safetensors file, whole or not at all.

        Args:
            path: the file; its folder must exist. An older file of that name is replaced.
            dtype: storage type of log-probabilities and normalisers: ``"float16"``, ``"float32"``,
                ``"float64"``, or ``None`` for the one they have.

        Raises:
            ImportError: safetensors is not installed.
            ValueError: unknown ``dtype``.
        """
        xp, _ = resolve({"traces": self}, None)
        arrays = {
            name: np.ascontiguousarray(xp.to_numpy(getattr(self, name))) for name in _storage.TRACE_FIELDS
        }
        header = {
            "backend": xp.name,
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "extra_temperatures": list(self.extra_temperatures),
            "standardize": self.standardize,
        }
        _storage.write_fields(arrays, header, path, dtype)

    @staticmethod
    def load(path: str | os.PathLike[str], *, backend: str | None = None, device: Any = None) -> Traces:
        """Read traces that `save` wrote.

        Args:
            path: the file.
            backend: name of the backend whose arrays are wanted; ``None`` means the one they were saved from.
            device: device for the arrays, where the backend has such.

        Raises:
            FileNotFoundError: there is no such file.
            ImportError: safetensors is not installed.
            ValueError: the file is damaged, or is not a file of traces.
        """
        chosen = None if backend is None else get_backend(backend)
        header, arrays = _storage.read_fields(path)
        xp = get_backend(header["backend"]) if chosen is None else chosen
        return Traces(
            **{name: xp.from_numpy(array, device) for name, array in arrays.items()},
            vocab_size=int(header["vocab_size"]),
            temperature=float(header["temperature"]),
            extra_temperatures=tuple(float(t) for t in header["extra_temperatures"]),
            standardize=bool(header["standardize"]),
        )


def _cast(array: Array, dtype: Any) -> Array:
    return array.to(dtype) if hasattr(array, "to") else array.astype(dtype)
