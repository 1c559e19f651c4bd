"""Sources that are made of several arrays: what the library asks of one, whatever its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Self

from mlot._arrays import ArrayOperations
from mlot._typing import Array


class Composite:
    """A source that is a record of arrays; a further kind of source subclasses this.

    The class is a frozen dataclass whose array fields have a ``shape``; ``None`` stands for a field left out.
    """

    #: Whether every column of the vocabulary can be read, as ULD and cross-entropy need.
    _whole: ClassVar[bool] = True
    #: Whether it reads its logits by itself, in `_read` and `_logits_at`, whatever can be read of it.
    _reads: ClassVar[bool] = False
    #: Why this cannot be a student; empty if it can.
    _no_student: ClassVar[str] = ""
    #: Whether it knows by itself which positions count, so that labels are not needed for a mask.
    _knows_mask: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T, V)`` of the predictions."""
        raise NotImplementedError

    def map(self, function: Callable[[Array], Array]) -> Self:
        """Return the same with ``function`` applied to every array."""
        raise NotImplementedError

    def _arrays(self) -> list[Array]:
        """Arrays that it holds."""
        return [v for v in (getattr(self, f.name) for f in fields(self)) if hasattr(v, "shape")]  # type: ignore[arg-type]

    def _check(self, xp: ArrayOperations, name: str) -> None:
        """Raise unless the arrays are of the kinds needed; messages start with ``name``."""

    def _mask(self, xp: ArrayOperations) -> Array:
        """Mask ``(B, T)`` where none is given."""
        return xp.full_mask(self)

    def _read(self, mask: Array, settings: Any, request: Any) -> Any:
        """Answer a request of the torch backend; see `mlot.backends.torch.read`."""
        raise NotImplementedError

    def _logits_at(self, b: Array, t: Array) -> Array:
        """Logits ``(U, V)`` of listed positions, constants."""
        raise NotImplementedError

    def _check_mask(self, xp: ArrayOperations, name: str, mask: Array, of: str) -> None:
        """Raise unless a given mask, called ``name``, fits this source, called ``of``."""


def arrays_of(value: Any) -> list[Array]:
    """Arrays that a source (or a plain array) holds."""
    return value._arrays() if isinstance(value, Composite) else [value]
