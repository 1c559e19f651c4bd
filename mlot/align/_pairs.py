"""Pairs of positions whose prefixes end at the same byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlot.align._tokens import Integers, TokenBytes, integers, require_one_text


def pairs(student: TokenBytes, teacher: TokenBytes) -> Integers:
    r"""Pair the positions at which both models have read the same bytes of the text.

    Position :math:`i` has read the tokens 0 to :math:`i` and predicts token :math:`i + 1`. With :math:`e` the
    ends of the tokens, :math:`(i, j)` is a pair when

    .. math:: e^s_i = e^t_j, \qquad e^s_i < e^s_{i+1}, \qquad e^t_j < e^t_{j+1},

    so that of several positions that have read the same bytes (BOS, a space put before the text, the pieces
    of one changed character) the last one counts: the one that predicts further text. One more pair is the
    position before the special tokens that close each sequence, if these are there on both sides and both
    texts end at the same byte: both models predict that the text is over.

    A sequence paired with itself, ids and ranges, has every position but the last.

    Args:
        student: tokens of the student.
        teacher: tokens of the teacher, of the same text.

    Returns:
        ``(P, 2)`` integers ``[student position, teacher position]``, both columns strictly increasing.

    Raises:
        TypeError: an argument is no `TokenBytes`.
        ValueError: the texts differ in length.
    """
    require_one_text(student, teacher)
    if np.array_equal(student.ids, teacher.ids) and np.array_equal(student.ends, teacher.ends):
        return np.repeat(np.arange(max(len(student) - 1, 0)), 2).reshape(-1, 2)
    before_text, before_end = final_positions(student)
    other_text, other_end = final_positions(teacher)
    ends, other_ends = student.ends[before_text], teacher.ends[other_text]
    # Both rows of ends increase strictly, so one search finds every common value.
    at = np.searchsorted(other_ends, ends)
    common = np.append(other_ends, -1)[at] == ends
    shared = np.stack([before_text[common], other_text[at[common]]], axis=1)
    if before_end is None or other_end is None or student.ends[before_end] != teacher.ends[other_end]:
        return shared
    return np.concatenate([shared, [[before_end, other_end]]])


def final_positions(tokens: TokenBytes) -> tuple[Integers, int | None]:
    """Positions that predict further text, and the one that predicts its end, if there is one."""
    before_text = np.flatnonzero(np.diff(tokens.ends) > 0)
    reached = np.append(0, tokens.ends)[:-1]
    closing = tokens.special & (tokens.ends == reached)
    kept = np.flatnonzero(~closing)
    # Where all tokens are special, the first one opens the sequence.
    last = int(kept[-1]) if len(kept) else 0
    return before_text, last if last + 1 < len(tokens) else None


def batch_pairs(pairs: Sequence[Any], *, student_offset: Any = 0, teacher_offset: Any = 0) -> Integers:
    """Stack the pairs of several sequences into what `mlot.multi_level_ot` takes.

    Args:
        pairs: for each sequence ``(P_b, 2)`` integers, as `pairs` returns them.
        student_offset: what to add to the student's positions: the number of padding tokens on the left, one
            integer for all sequences or ``(B,)``.
        teacher_offset: the same for the teacher.

    Returns:
        ``(B, P, 2)`` integers, padded by -1, with ``P`` the largest number of pairs.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    >>> batch_pairs([[[0, 0], [2, 1]], [[1, 1]]], student_offset=[0, 3]).tolist()
    [[[0, 0], [2, 1]], [[4, 1], [-1, -1]]]
    """
    if not hasattr(pairs, "__iter__"):
        raise TypeError(f"pairs: expected pairs for each sequence, got {type(pairs).__name__}")
    rows = [_pair_rows(n, row) for n, row in enumerate(pairs)]
    shifts = np.stack(
        [
            position_offsets(name, value, len(rows))
            for name, value in (("student_offset", student_offset), ("teacher_offset", teacher_offset))
        ],
        axis=1,
    )
    batch = np.full((len(rows), max(map(len, rows), default=0), 2), -1, np.int64)
    for n, row in enumerate(rows):
        batch[n, : len(row)] = row + shifts[n]
    return batch


def _pair_rows(n: int, row: Any) -> Integers:
    array = np.asarray(row)
    if array.size == 0:
        return np.zeros((0, 2), np.int64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"pairs: expected (P, 2) for each sequence, got shape {array.shape} for number {n}")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"pairs: expected integers, got {array.dtype} for number {n}")
    if array.min() < 0:
        raise ValueError(f"pairs: expected positions >= 0, got {array.min()} for number {n}")
    return array.astype(np.int64)


def position_offsets(name: str, value: Any, count: int) -> Integers:
    """An argument that is one integer for all sequences or one for each, as one for each."""
    array = np.asarray(value)
    array = integers(name, np.full(count, value) if array.ndim == 0 else array)
    if array.shape != (count,):
        raise ValueError(f"{name}: expected one integer or {count} of them, got shape {array.shape}")
    if (array < 0).any():
        raise ValueError(f"{name}: expected integers >= 0, got {array.min()}")
    return array
