"""The error that the command turns into a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DistillError(ValueError):
    """What was asked for cannot be done; the message says what came and what was expected."""


@contextmanager
def refusing(option: str | None = None) -> Iterator[None]:
    """Make what is refused inside a `DistillError`, begun with an option's name where one is given."""
    try:
        yield
    except DistillError:
        raise
    except (OSError, TypeError, ValueError) as error:
        message = str(error)
        raise DistillError(
            message if option is None else f"{option}: {message.removeprefix('folder: ')}"
        ) from error
