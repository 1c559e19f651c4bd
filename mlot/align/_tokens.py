"""TokenBytes: where in the bytes of a text each token lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """Tokens of one text and the bytes of its UTF-8 encoding that each of them covers.

    Token ``i`` covers the bytes ``starts[i]`` to ``ends[i]``, the end excluded. Ranges never overlap or go
    back; bytes that no token keeps (white space between words, with WordPiece) lie between ranges. A token
    without source, such as BOS, has an empty range at the place that the tokens before it have reached. Made
    by `byte_ranges`; arrays are copied and cannot be written to.

    Args:
        ids: token ids, ``(T,)`` integers.
        starts: first byte of each token, ``(T,)``.
        ends: byte after the last of each token, ``(T,)``.
        special: tokens that stand for no text (BOS, EOS, padding), ``(T,)`` booleans.
        total: number of bytes of the text.
        exact: whether the ranges leave no byte out and each is certain: the token's own bytes are there, or
            the tokenizer gives it characters that it shares with no other token.

    Raises:
        TypeError, ValueError: an array is of the wrong kind or shape, or ranges overlap or leave the text.
    """

    ids: Integers
    starts: Integers
    ends: Integers
    special: Booleans
    total: int
    exact: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.total, bool) or not isinstance(self.total, int | np.integer):
            raise TypeError(
                f"total: expected an integer >= 0, got {type(self.total).__name__} {self.total!r}"
            )
        for name in ("ids", "starts", "ends"):
            object.__setattr__(self, name, _frozen(integers(name, getattr(self, name))))
        special = np.asarray(self.special)
        if special.dtype != np.bool_ and special.size:
            raise TypeError(f"special: expected booleans, got {special.dtype}")
        object.__setattr__(self, "special", _frozen(special.astype(np.bool_)))
        for name in ("starts", "ends", "special"):
            shape = getattr(self, name).shape
            if shape != self.ids.shape:
                raise ValueError(f"{name}: expected shape {self.ids.shape}, as ids, got {shape}")
        cuts = np.concatenate([[0], np.stack([self.starts, self.ends], axis=1).ravel(), [self.total]])
        if (np.diff(cuts) < 0).any():
            raise ValueError(
                f"starts, ends: expected ranges in order and within {self.total} bytes, "
                f"got starts {self.starts} and ends {self.ends}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"TokenBytes({len(self)} tokens, {self.total} bytes, exact={self.exact})"


def integers(name: str, value: Any) -> Integers:
    """Check that a value is a row of integers and return it as int64."""
    array = np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one row of integers, got shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array.astype(np.int64)


def require_tokens(name: str, value: Any) -> None:
    """Require a `TokenBytes`."""
    if not isinstance(value, TokenBytes):
        raise TypeError(f"{name}: expected TokenBytes (see byte_ranges), got {type(value).__name__}")


def require_one_text(student: Any, teacher: Any) -> None:
    """Require two `TokenBytes` of texts that have the same number of bytes."""
    require_tokens("student", student)
    require_tokens("teacher", teacher)
    if student.total != teacher.total:
        raise ValueError(
            f"teacher: expected tokens of the student's text, {student.total} bytes, got {teacher.total}"
        )


def _frozen(array: Any) -> Any:
    copy = np.array(array)
    copy.setflags(write=False)
    return copy
