"""The error that the command turns into a message."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DistillError(ValueError):
    """What was asked for cannot be done; the message says what came and what was expected."""


#: Codes of the system where a file could not be written.
_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: What torch and safetensors, which raise no `OSError`, say where a file could not be written.
_WRITE_FAILURES = ("I/O error", "inline_container", "iostream error", "PytorchStreamWriter", "write(): fd")


def is_write_failure(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is that a file could not be written, as on a full disk."""
    while error is not None:
        code = error.errno if isinstance(error, OSError) else None
        if code in _CODES or any(words in str(error) for words in _WRITE_FAILURES):
            return True
        error = error.__cause__ or error.__context__
    return False


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
