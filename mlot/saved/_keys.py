"""Keys of examples: digests of what the teacher reads and which of its predictions count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._typing import Array

#: Bytes of a key; two of a billion examples share one with a probability below 1e-20.
KEY_BYTES = 16
_PERSON = b"mlot.example.1"


def example_key(
    ids: Sequence[int] | Array,
    mask: Sequence[bool] | Array | None = None,
    student_ids: Sequence[int] | Array | None = None,
    student_mask: Sequence[bool] | Array | None = None,
) -> str:
    """Digest of an example: the same wherever it stands in a data set, on every machine and in every batch.

    Args:
        ids: the teacher's token ids, ``(T,)`` integers, without padding.
        mask: positions whose prediction counts, ``(T,)`` booleans (see `mlot.mask_from_labels`); ``None``
            means all.
        student_ids: with ``keep="targets"``, the student's token ids, ``(T_s,)``.
        student_mask: the same for the student as ``mask``.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or shape.

    >>> from mlot.saved import example_key
    >>> example_key([5, 6, 7]) == example_key([5, 6, 7], [True, True, True])
    True
    >>> example_key([5, 6, 7]) == example_key([5, 6, 7], [False, True, True])
    False
    """
    array = as_ids("ids", ids)
    key = key_of(array, as_mask("mask", mask, len(array)))
    if student_ids is None:
        if student_mask is not None:
            raise ValueError("student_mask: expected None without student_ids, got a mask")
        return key
    array = as_ids("student_ids", student_ids)
    return joint_key(key, key_of(array, as_mask("student_mask", student_mask, len(array))))


def key_of(ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> str:
    """`example_key` of one model's checked tokens and mask."""
    digest = blake2b(digest_size=KEY_BYTES, person=_PERSON)
    digest.update(len(ids).to_bytes(8, "little"))
    digest.update(ids.astype("<i8", copy=False).tobytes())
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def joint_key(teacher: str, student: str) -> str:
    """Key of an example in the tokens of both models, from its keys in those of each."""
    both = bytes.fromhex(teacher + student)
    return blake2b(both, digest_size=KEY_BYTES, person=_PERSON).hexdigest()


def as_ids(name: str, ids: Any) -> NDArray[np.int64]:
    """Token ids as an array."""
    array = _on_host(ids)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected token ids (T,), got shape {array.shape}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name}: expected token ids >= 0, got {array.min()}")
    return array.astype(np.int64)


def as_mask(name: str, mask: Any, length: int) -> NDArray[np.bool_]:
    """A mask as an array; ``None`` means all."""
    if mask is None:
        return np.ones(length, dtype=bool)
    array = _on_host(mask)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected ({length},), as ids, got shape {array.shape}")
    if array.size and array.dtype.kind != "b":
        raise TypeError(f"{name}: expected booleans, got {array.dtype}")
    return array.astype(bool)


def _on_host(value: Any) -> NDArray[Any]:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def packed(name: str, keys: Iterable[str]) -> NDArray[np.bytes_]:
    """Keys as an array of 16 bytes each, which sort and compare as the keys do."""
    if isinstance(keys, str):
        raise TypeError(f"{name}: expected several keys, got one string")
    keys = list(keys)
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected keys as example_key makes them, got {type(key).__name__}")
        if not is_key(key):
            raise ValueError(f"{name}: expected {2 * KEY_BYTES} hexadecimal digits, got {key!r}")
    return np.frombuffer(bytes.fromhex("".join(keys)), dtype=f"S{KEY_BYTES}")


def is_key(value: Any) -> bool:
    """Whether something looks like a key."""
    return isinstance(value, str) and len(value) == 2 * KEY_BYTES and set(value) <= set("0123456789abcdef")


def unpacked(keys: NDArray[np.uint8]) -> list[str]:
    """Keys of an array ``(n, 16)`` of bytes."""
    text = keys.tobytes().hex()
    return [text[n : n + 2 * KEY_BYTES] for n in range(0, len(text), 2 * KEY_BYTES)]
