"""The error that the command turns into a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DistillError(ValueError):
    """What was asked for cannot be done; the message says what came and what was expected."""


@contextmanager
def refusing(name: str | Callable[[str], str] = "") -> Iterator[None]:
    """Make what is refused a `DistillError` that begins with an option: ``name``, or what it makes of one."""
    try:
        yield
    except DistillError:
        raise
    except (OSError, TypeError, ValueError) as error:
        message = str(error)
        begins, colon, rest = message.partition(":")
        if callable(name) and begins.isidentifier():
            message = name(begins) + colon + rest
        elif isinstance(name, str) and name:
            message = f"{name}: {message.removeprefix('folder: ')}"
        raise DistillError(message) from error
