"""Pairs of positions whose prefixes end at the same byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlot.align._text_tokens import TextTokens, stretches
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
    return paired_tokens(TextTokens.of(student), TextTokens.of(teacher))


def paired_tokens(student: TextTokens, teacher: TextTokens) -> Integers:
    """Pairs of all texts as ``(P, 2)`` numbers of tokens among those of all texts, the student's in order."""
    partner = np.full(len(student.ids), -1, np.int64)
    before_text, before_end = final_positions(student)
    other_text, other_end = final_positions(teacher)
    ends, other_ends = student.joined_ends[before_text], teacher.joined_ends[other_text]
    # Both rows of ends increase strictly, so one search finds every common value.
    at = np.searchsorted(other_ends, ends)
    common = np.append(other_ends, -1)[at] == ends
    partner[before_text[common]] = other_text[at[common]]
    i, j = both_ends(student, teacher, before_end, other_end)
    partner[i] = j
    i, j = _same(student, teacher)
    partner[i] = j
    paired = np.flatnonzero(partner >= 0)
    return np.stack([paired, partner[paired]], axis=1)


def final_positions(tokens: TextTokens) -> tuple[Integers, Integers]:
    """Positions that predict further text, and for each text the one that predicts its end, -1: none does."""
    first, count = tokens.offsets[:-1], len(tokens.ids)
    inside = np.ones(max(count - 1, 0), np.bool_)
    borders = tokens.offsets[1:-1]
    inside[borders[(borders > 0) & (borders < count)] - 1] = False
    before_text = np.flatnonzero((np.diff(tokens.joined_ends) > 0) & inside)
    reached = np.append(0, tokens.ends)[:-1]
    reached[first[tokens.counts > 0]] = 0
    closing = tokens.special & (tokens.ends == reached)
    kept = np.maximum.accumulate(np.where(closing, -1, np.arange(count)))
    # Where all tokens are special, the first one opens the sequence.
    last = np.maximum(np.append(kept, -1)[tokens.offsets[1:] - 1], first)
    return before_text, np.where(last + 1 < tokens.offsets[1:], last, -1)


def both_ends(
    student: TextTokens, teacher: TextTokens, before_end: Integers, other_end: Integers
) -> tuple[Integers, Integers]:
    """Positions that predict the end of a text, where both sides have one, at the same byte."""
    closed = (before_end >= 0) & (other_end >= 0)
    i, j = before_end[closed], other_end[closed]
    level = student.joined_ends[i] == teacher.joined_ends[j]
    return i[level], j[level]


def _same(student: TextTokens, teacher: TextTokens) -> tuple[Integers, Integers]:
    """Positions, all but the last of each text, of texts that have the same tokens on both sides."""
    same = student.counts == teacher.counts
    i, j = (stretches(side.offsets[:-1][same], side.counts[same]) for side in (student, teacher))
    differs = (student.ids[i] != teacher.ids[j]) | (student.ends[i] != teacher.ends[j])
    same[student.owner[i[differs]]] = False
    sizes = np.maximum(student.counts[same] - 1, 0)
    first, other_first = (stretches(side.offsets[:-1][same], sizes) for side in (student, teacher))
    return first, other_first


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
