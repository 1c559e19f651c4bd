"""Values of parsed responses: fields, lists, numbers, ids and bytes, and errors that name their place."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

#: Tokens of one prompt that a response can speak of; more are a mistake, for which no memory is taken.
MOST_TOKENS = 1 << 22


def attribute(value: Any, name: str) -> Any:
    """A field of a parsed response, whether it is an object or a dictionary; ``None`` if it lacks it."""
    if type(value) is dict or isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)


def is_list(value: Any) -> bool:
    """Whether a value is a list or a tuple, and no text."""
    return type(value) is list or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def shown(value: Any) -> str:
    """A value for a message: a few words, however long or deep it is."""
    try:
        return reprlib.repr(value)
    except Exception:  # integers of thousands of digits, and whatever objects do
        return f"a value of type {type(value).__name__}"


def list_of(value: Any, what: str) -> Sequence[Any]:
    """A list, or an error that begins with what was expected."""
    if not is_list(value):
        raise ValueError(f"{what}, got {type(value).__name__}")
    rows: Sequence[Any] = value
    return rows


def number(value: Any, where: str) -> float:
    """A log-probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: expected a log-probability, got {type(value).__name__} {shown(value)}")
    try:
        logprob = float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: expected a log-probability, got an integer beyond all floats") from error
    if math.isnan(logprob):
        raise ValueError(f"{where}: expected a log-probability, got NaN")
    return logprob


def logarithm(value: Any, where: str) -> float:
    """The log-probability of a probability."""
    probability = number(value, where)
    if not 0 <= probability <= 1 + 1e-3:
        raise ValueError(f"{where}: expected a probability, got {probability}")
    return math.log(probability) if probability > 0 else -math.inf


def token_id(value: Any, where: str) -> int:
    """A token's id, which JSON keys give as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{where}: expected a token id, got {shown(value)}")
    return value


def token_count(value: Any, where: str) -> int:
    """A number of tokens that a response tells."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise ValueError(f"{where}: expected a number of tokens up to {MOST_TOKENS}, got {shown(value)}")
    return value


def raw_bytes(value: Any, where: str) -> bytes:
    """Bytes of a token, given as such or as a list of integers."""
    if isinstance(value, bytes):
        return value
    if not is_list(value) or not all(type(each) is int and 0 <= each < 256 for each in value):
        raise ValueError(f"{where}: expected bytes as a list of integers from 0 to 255, got {shown(value)}")
    return bytes(value)
