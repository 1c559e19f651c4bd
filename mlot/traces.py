"""Traces: the log-probabilities that a vocabulary column has along a sequence, for the columns kept."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mlot._composite import Composite
from mlot._typing import Array

if TYPE_CHECKING:
    from mlot.sources import Source


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

    def _mask(self, xp: Any) -> Array:
        return self.mask

    def _check_mask(self, xp: Any, name: str, mask: Array, of: str) -> None:
        if bool((mask != self.mask).any()):
            raise ValueError(
                f"{name}: expected the mask that the traces were selected with (or None), "
                f"got one that differs from {of}.mask"
            )

    def _select(
        self,
        xp: Any,
        mask: Array,
        *,
        k: int,
        temperature: float,
        extra_temperatures: tuple[float, ...],
        standardize: bool,
        name: str,
    ) -> Traces:
        check_traces(self, k, temperature, extra_temperatures, standardize, name)
        if self.k == k:
            return self
        return replace(
            self,
            columns=self.columns[:, :k],
            log_probs=self.log_probs[:, :, :k],
            column_mass=self.column_mass[:, :k],
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
        from mlot._storage import save_traces

        save_traces(self, path, dtype)

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
        from mlot._storage import load_traces

        return load_traces(path, backend, device)


def _cast(array: Array, dtype: Any) -> Array:
    return array.to(dtype) if hasattr(array, "to") else array.astype(dtype)


def select(
    source: Source,
    mask: Array | None = None,
    *,
    k: int | None,
    temperature: float = 1.0,
    extra_temperatures: tuple[float, ...] = (2.0,),
    standardize: bool = False,
    backend: str | None = None,
) -> Traces:
    r"""Keep the :math:`k` columns with the largest probability mass over each sequence.

    Equations (10) and (12) of the paper: with :math:`t(i) = \mathrm{softmax}(z(i)/\tau)`, the columns
    :math:`l` with the largest :math:`\sum_i t_l(i)` over the valid positions :math:`i`; ties go to the lower
    index.

    Args:
        source: dense logits ``(B, T, V)``, a `LinearHead`, a `mlot.distributed.VocabShard`, `TopKLogprobs`,
            or traces (of which the first ``k`` are kept).
        mask: positions whose prediction counts, ``(B, T)`` booleans; ``None`` means all. Traces bring their
            own, and of `TopKLogprobs` positions without an entry do not count.
        k: columns to keep, cut to :math:`V`; ``None`` keeps all.
        temperature: temperature of the probabilities.
        extra_temperatures: further temperatures that the traces shall serve. The default is the sequence
            temperature of the paper.
        standardize: divide the logits of each position by their (unbiased) standard deviation + 1e-4.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `Traces`, differentiable with respect to the source where the backend has gradients.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., "Multi-Level Optimal Transport for Universal Cross-Tokenizer Knowledge Distillation on
    Language Models", AAAI 2025.

    >>> import numpy as np, mlot
    >>> logits = np.log([[[0.1, 0.6, 0.3], [0.2, 0.5, 0.3]]])
    >>> traces = mlot.select(logits, k=2)
    >>> traces.columns
    array([[1, 2]])
    >>> np.exp(traces.log_probs).round(3)
    array([[[0.6, 0.3],
            [0.5, 0.3]]])
    """
    from mlot import _checks

    _checks.count("k", k, allow_none=True)
    temperatures = _checks.temperatures(temperature, extra_temperatures)
    _checks.flag("standardize", standardize)
    xp, (source, mask) = _checks.resolve({"source": source, "mask": mask}, backend)
    mask = _checks.source_and_mask(xp, "source", source, "mask", mask)
    return _select(xp, source, mask, k, temperature, temperatures, standardize)


def _select(
    xp: Any,
    source: Source,
    mask: Array,
    k: int | None,
    temperature: float,
    extra_temperatures: tuple[float, ...],
    standardize: bool,
    name: str = "source",
) -> Traces:
    """Select from checked arguments."""
    vocabulary = int(source.shape[2])
    k = vocabulary if k is None else min(k, vocabulary)
    extra = tuple(t for t in dict.fromkeys(extra_temperatures) if t != temperature)
    if isinstance(source, Composite):
        return source._select(
            xp,
            mask,
            k=k,
            temperature=temperature,
            extra_temperatures=extra,
            standardize=standardize,
            name=name,
        )
    traces: Traces = xp.select(
        source, mask, k=k, temperature=temperature, extra_temperatures=extra, standardize=standardize
    )
    return traces


def check_traces(
    traces: Traces,
    k: int,
    temperature: float,
    extra_temperatures: tuple[float, ...],
    standardize: bool,
    name: str,
) -> None:
    """Raise `ValueError` unless traces can serve what is asked of them."""
    if traces.k < k:
        raise ValueError(
            f"{name}: expected traces of at least {k} columns, got {traces.k} of {traces.vocab_size}"
        )
    if traces.temperature != temperature:
        raise ValueError(
            f"{name}: expected traces selected at temperature {temperature}, got {traces.temperature}"
        )
    if traces.standardize != standardize:
        raise ValueError(
            f"{name}: expected traces with standardize={standardize}, got standardize={traces.standardize}"
        )
    for extra in extra_temperatures:
        traces.require(extra, name)
