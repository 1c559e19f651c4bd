"""Checks of plain values. Every message names the argument."""

from __future__ import annotations

import math
import numbers
import os
from pathlib import Path
from typing import Any


def count(name: str, value: Any, *, allow_none: bool = False, least: int = 1) -> None:
    """Require an integer of at least ``least``."""
    if value is None and allow_none:
        return
    wanted = f"an integer >= {least}" + (" or None" if allow_none else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__} {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected {wanted}, got {value}")


#: Least temperature and regularisation: what is divided by less leaves the range of float32.
LEAST_DIVISOR = 1e-6


def divisor(name: str, value: Any, *, allow_none: bool = False) -> None:
    """Require a number that logits or costs can be divided by."""
    number(name, value, allow_none=allow_none)
    if value is not None and value < LEAST_DIVISOR:
        raise ValueError(f"{name}: expected a number >= {LEAST_DIVISOR:g}, got {value}")


def number(name: str, value: Any, *, allow_none: bool = False, allow_zero: bool = False) -> None:
    """Require a positive (or non-negative) finite number."""
    if value is None and allow_none:
        return
    wanted = f"a finite number {'>=' if allow_zero else '>'} 0" + (" or None" if allow_none else "")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__} {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError as error:  # an integer beyond all floats
        raise ValueError(f"{name}: expected {wanted}, got an integer beyond all floats") from error
    if not finite or value < 0 or (value == 0 and not allow_zero):
        raise ValueError(f"{name}: expected {wanted}, got {value}")


def flag(name: str, value: Any) -> None:
    """Require a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__} {value!r}")


def choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Require one of some strings."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {options}, got {type(value).__name__} {value!r}")
    if value not in options:
        raise ValueError(f"{name}: expected one of {options}, got {value!r}")


def path(name: str, value: Any) -> Path:
    """Require a path and return it."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {type(value).__name__} {value!r}")
    return Path(value)


def temperatures(temperature: Any, extra: Any) -> tuple[float, ...]:
    """Check a temperature and further ones; return the further ones as a tuple."""
    divisor("temperature", temperature)
    if not isinstance(extra, tuple | list):
        raise TypeError(
            f"extra_temperatures: expected a tuple of numbers, got {type(extra).__name__} {extra!r}"
        )
    for value in extra:
        divisor("extra_temperatures", value)
    return tuple(float(value) for value in extra)
