"""The operations, each done by mlot's reference on what the arrays hold."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from mlot import Backend, LinearHead, TextPositions, TextTargets, TopKLogprobs, Traces, get_backend
from mlot.backends.base import Transport
from mlot_example_plugin.array import Array

_reference = get_backend("numpy")


class ExampleBackend(Backend):
    """Arrays of this package in and out."""

    name = "example"

    def convert(self, array: Any, name: str) -> Array:
        if isinstance(array, Array):
            return array
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name}: expected an example array or a NumPy array, got {type(array).__name__}")
        return Array(array)

    def to_numpy(self, array: Array) -> Any:
        return array._values

    def stop_gradient(self, array: Array) -> Array:
        return array


def _opened(value: Any) -> Any:
    if isinstance(value, Traces | LinearHead | TopKLogprobs | TextTargets):
        return value.map(_opened)
    if isinstance(value, TextPositions):
        return TextPositions(_opened(value.rows), _opened(value.teacher_ids), value.plan)
    return value._values if isinstance(value, Array) else value


def _closed(value: Any) -> Any:
    if isinstance(value, Traces | TextTargets):
        return value.map(_closed)
    if isinstance(value, Transport):
        return Transport(*map(_closed, value))
    if isinstance(value, tuple):
        return tuple(map(_closed, value))
    return Array(value) if isinstance(value, np.ndarray) else value


def _delegated(operation: str) -> Callable[..., Any]:
    def method(self: ExampleBackend, *args: Any, **kwargs: Any) -> Any:
        given = {name: _opened(value) for name, value in kwargs.items()}
        return _closed(getattr(_reference, operation)(*map(_opened, args), **given))

    return method


for _operation in ExampleBackend.__abstractmethods__:
    setattr(ExampleBackend, _operation, _delegated(_operation))
abc.update_abstractmethods(ExampleBackend)
