"""The backend of some arguments, found from the types of their arrays."""

from __future__ import annotations

from typing import Any

from mlot._arrays import ArrayOperations
from mlot._composite import Composite, arrays_of
from mlot._registry import available_backends, find_backend, get_backend
from mlot._typing import Array


def resolve(arguments: dict[str, Any], backend: str | None) -> tuple[ArrayOperations, list[Any]]:
    """Find the backend of some arguments (arrays, sources or None) and hand them back, converted if need be.

    Raises:
        TypeError: an argument is no array, kinds of array are mixed, or one cannot be converted.
        ValueError: unknown backend, or arrays on different devices.
    """
    leaves = [
        (name, leaf) for name, value in arguments.items() if value is not None for leaf in arrays_of(value)
    ]
    if backend is not None:
        xp = get_backend(backend)
        converted = [_convert(xp, name, value) for name, value in arguments.items()]
        leaves = [
            (name, leaf)
            for name, value in zip(arguments, converted, strict=True)
            if value is not None
            for leaf in arrays_of(value)
        ]
        _same_device(xp, leaves)
        return xp, converted
    names: dict[str, str] = {}
    for name, leaf in leaves:
        served_by = find_backend(leaf)
        if served_by is None:
            raise TypeError(
                f"{name}: expected an array of a registered backend ({', '.join(available_backends())}) "
                f"or a source of such arrays, got {type_name(leaf)}"
            )
        names.setdefault(served_by, name)
    if len(names) > 1:
        (first, first_name), (second, second_name) = list(names.items())[:2]
        raise TypeError(
            f"{second_name}: array kinds are mixed: {first_name} is {first}, {second_name} is {second}; "
            "pass arrays of one kind, or say backend=..."
        )
    xp = get_backend(next(iter(names)))
    _same_device(xp, leaves)
    return xp, list(arguments.values())


def _convert(xp: ArrayOperations, name: str, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Composite):
        return value.map(lambda array: xp.convert(array, name))
    return xp.convert(value, name)


def _same_device(xp: ArrayOperations, leaves: list[tuple[str, Array]]) -> None:
    if not leaves:
        return
    first_name, first = leaves[0]
    for name, leaf in leaves[1:]:
        if xp.device(leaf) != xp.device(first):
            raise ValueError(
                f"{name}: expected the device of {first_name}, {xp.device(first)}, got {xp.device(leaf)}"
            )


def type_name(value: Any) -> str:
    own_type = type(value)
    return (
        own_type.__name__
        if own_type.__module__ == "builtins"
        else f"{own_type.__module__}.{own_type.__name__}"
    )
