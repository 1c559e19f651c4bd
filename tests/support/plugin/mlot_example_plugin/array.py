"""An array type of its own: what `mlot.Backend` says the library needs of an array, and nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np


class Array:
    """Numbers that only this package's functions can see into."""

    __array_ufunc__ = None  # NumPy's own numbers and arrays must not take over
    __hash__ = None

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("an example array does not turn into a NumPy array by itself")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    @property
    def dtype(self) -> np.dtype:
        return self._values.dtype

    def __getitem__(self, index: Any) -> Array:
        return Array(self._values[index])

    def swapaxes(self, first: int, second: int) -> Array:
        return Array(self._values.swapaxes(first, second))

    def clip(self, least: float) -> Array:
        return Array(self._values.clip(least))

    def __bool__(self) -> bool:
        return bool(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __float__(self) -> float:
        return float(self._values)

    def __abs__(self) -> Array:
        return Array(abs(self._values))

    def __neg__(self) -> Array:
        return Array(-self._values)


def _plain(value: Any) -> Any:
    return value._values if isinstance(value, Array) else value


def _binary(function: Callable[[Any, Any], Any], *, swapped: bool = False) -> Callable[[Array, Any], Array]:
    def method(self: Array, other: Any) -> Array:
        if isinstance(other, np.ndarray) and other.ndim:
            return NotImplemented
        pair = (_plain(other), self._values) if swapped else (self._values, _plain(other))
        return Array(function(*pair))

    return method


def _reduction(name: str) -> Callable[..., Array]:
    def method(self: Array, axis: int | None = None) -> Array:
        return Array(getattr(self._values, name)(axis=axis))

    return method


for _name in ("add", "sub", "mul", "truediv"):
    setattr(Array, f"__{_name}__", _binary(getattr(operator, _name)))
    setattr(Array, f"__r{_name}__", _binary(getattr(operator, _name), swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Array, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("sum", "min", "max", "argmax", "any", "all"):
    setattr(Array, _name, _reduction(_name))
