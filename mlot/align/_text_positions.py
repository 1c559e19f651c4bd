"""Positions of the student and what of the teacher's next token they have read: the plan from the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from mlot._checks import flag
from mlot.align._pairs import both_ends, final_positions, position_offsets
from mlot.align._segmentation import MAX_BORDER
from mlot.align._strings import Strings
from mlot.align._text_tokens import TextTokens
from mlot.align._tokens import Booleans, Integers, TokenBytes, require_one_text
from mlot.align._vocabulary_map import VocabularyMap
from mlot.text import POSITION_FIELDS

#: Columns of `text_positions`.
TEXT_POSITION_FIELDS = POSITION_FIELDS

#: Why a position of the student has no target.
UNSERVED_REASONS = {
    "no_bytes": "the student's next token covers no byte of the text",
    "student_changed": "the student's next token does not spell the text",
    "student_space": "the student's next token begins with a space that is not in the text",
    "teacher_gap": "no token of the teacher covers the next byte",
    "teacher_changed": "the teacher's token there does not spell the text",
    "teacher_first": "the teacher has no position before its first token",
    "teacher_cut": "the teacher's tokens end before",
    "end": "the end of the text has no counterpart",
}
_REASONS = ("", *UNSERVED_REASONS)


@dataclass(frozen=True, eq=False)
class _Side:
    """Tokens of one side that cover bytes.

    Attributes:
        index: their numbers.
        starts, ends: their bytes in the texts joined.
        first: whether each is the first token of all of its text.
        added: bytes of each token before its first byte of the text: 0, or 1 for a space that is not in the
            text; -1 where the token does not spell the text.
        until: for each text the number of these tokens up to its end, ``(N,)``.
    """

    index: Integers
    starts: Integers
    ends: Integers
    first: Booleans
    added: Integers
    until: Integers

    @staticmethod
    def of(tokens: TextTokens, strings: Strings, data: NDArray[np.uint8]) -> _Side:
        index = np.flatnonzero(tokens.ends > tokens.starts)
        ids, starts, ends = tokens.ids[index], tokens.joined_starts[index], tokens.joined_ends[index]
        added = strings.lengths_of(ids) - (ends - starts)
        # A space before a word that no token covers is in the token that begins with one.
        reached = np.append(0, ends)[: len(ends)]
        gap = np.flatnonzero((added == 1) & (starts > np.maximum(reached, tokens.bases[tokens.owner[index]])))
        gap = gap[(data[starts[gap] - 1] == ord(" ")) & (strings.data[strings.offsets[ids[gap]]] == ord(" "))]
        starts[gap] -= 1
        added[gap] = 0
        candidate = (added == 0) | (added == 1)
        known = np.where(candidate, ids, -1)
        skip = np.where(candidate, added, 0)
        spelled = strings.spell(known, data, starts, skip)
        spaced = np.flatnonzero(spelled & (added == 1))
        spelled[spaced] = strings.data[strings.offsets[ids[spaced]]] == ord(" ")
        first = index == tokens.offsets[tokens.owner[index]]
        until = np.searchsorted(index, tokens.offsets[1:])
        return _Side(index, starts, ends, first, np.where(spelled, added, -1), until)


@overload
def text_positions(
    student: TokenBytes,
    teacher: TokenBytes,
    text: str | bytes,
    vocabulary: VocabularyMap,
    *,
    return_counts: Literal[False] = False,
) -> Integers: ...
@overload
def text_positions(
    student: TokenBytes,
    teacher: TokenBytes,
    text: str | bytes,
    vocabulary: VocabularyMap,
    *,
    return_counts: Literal[True],
) -> tuple[Integers, dict[str, int]]: ...
def text_positions(
    student: TokenBytes,
    teacher: TokenBytes,
    text: str | bytes,
    vocabulary: VocabularyMap,
    *,
    return_counts: bool = False,
) -> Integers | tuple[Integers, dict[str, int]]:
    r"""Find, for each position of the student, the teacher's distribution that says how the text goes on.

    Student position :math:`i` predicts the token that begins at byte :math:`e`. The teacher's token over this
    byte, predicted at position :math:`j`, begins at :math:`a \le e`, and :math:`c` is what of it has been
    read: the bytes :math:`x[a:e]`, after the space that the teacher's tokenizer put before the text, where it
    did so. Columns, named in ``TEXT_POSITION_FIELDS``:

    0. ``student``: :math:`i`.
    1. ``teacher``: :math:`j`.
    2. ``depth``: :math:`|c|`; 0 at a boundary of both.
    3. ``start``, of the sorted teacher tokens (the map's ``order``) the first that begins with :math:`c`;
    4. ``low``, the first of these that goes on after it: ``[start, low)`` spell :math:`c`;
    5. ``high``, the end: ``[low, high)`` begin with :math:`c` and go on.
    6. ``borders``: bit :math:`b`, :math:`1 \le b \le |c|`, is set where a token of the student begins after
       the first :math:`b` bytes of :math:`c`, so that a teacher token agrees with the student's tokens so far
       where ``segmentation & ((2 << depth) - 2) == borders``; -1 where no token of the student begins at
       :math:`a`, or the depth is over 62. At depth 0, where there is nothing to agree with: the number, from
       1 on, of the row of the map's ``ends`` that says what ends this text; 0: the map's ``roles`` do.
    7. ``next``: id of the student's token :math:`i + 1`.
    8. ``chain``: number of teacher tokens, from :math:`j + 1` on, that it reaches into; 1 also where these
       cannot be followed because they do not tile the text.

    A space that no token covers, as with WordPiece, is a part of the token after it, if this begins a word;
    other bytes that no token of the student keeps count as read. At the end of
    the text, where both sequences are closed by special tokens that correspond, the position before has a
    row, too: of depth 0, with all tokens in its range.

    Args:
        student: tokens of the student.
        teacher: tokens of the teacher, of the same text.
        text: the text.
        vocabulary: the map of the two tokenizers.
        return_counts: whether to return the reasons, too.

    Returns:
        ``(P, 9)`` integers, one row for each position that has a target, in order; with ``return_counts``,
        also the number of positions without one by reason, with the keys of ``UNSERVED_REASONS``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the text is not the one that was tokenized.

    >>> student = TokenBytes([2, 0, 1, 3], [0, 0, 1, 3], [0, 1, 3, 4], [True, False, False, False], 4)
    >>> teacher = TokenBytes([2, 1, 0], [0, 0, 3], [0, 3, 4], [True, False, False], 4)
    >>> vocabulary = VocabularyMap.from_bytes([b"t", b"he", None, b"s"], [b"s", b"the", None])
    >>> text_positions(student, teacher, "thes", vocabulary)[:, :3]  # the student has read "", "t", "the"
    array([[0, 0, 0],
           [1, 0, 1],
           [2, 1, 0]])
    """
    data = _data(student, teacher, text)
    if not isinstance(vocabulary, VocabularyMap):
        raise TypeError(f"vocabulary: expected a VocabularyMap, got {type(vocabulary).__name__}")
    flag("return_counts", return_counts)
    rows, counts = rows_of_texts(TextTokens.of(student), TextTokens.of(teacher), data, vocabulary)
    return (rows, counts) if return_counts else rows


def rows_of_texts(
    student: TextTokens, teacher: TextTokens, data: bytes, vocabulary: VocabularyMap
) -> tuple[Integers, dict[str, int]]:
    """Rows of `text_positions` of several texts, and the numbers of positions without one by reason.

    Args:
        student: tokens of the student.
        teacher: tokens of the teacher, of the same texts.
        data: the texts joined.
        vocabulary: the map of the two tokenizers.

    Returns:
        ``(P, 9)`` rows with positions that are numbers of tokens among those of all texts; the counts.
    """
    joined = np.frombuffer(data, np.uint8)
    mine = _Side.of(student, vocabulary.student_bytes, joined)
    others = _Side.of(teacher, vocabulary.teacher_bytes, joined)
    last = others.until[student.owner[mine.index]] - 1
    t, depth, both, why = _covering(mine, others, last)
    why[(mine.added == 1) & ~both] = _REASONS.index("student_space")
    why[mine.added < 0] = _REASONS.index("student_changed")
    reasons = np.full(len(student.ids), _REASONS.index("no_bytes"), np.int64)
    reasons[student.offsets[1:][student.counts > 0] - 1] = 0  # the last position predicts nothing
    predicted = ~mine.first  # nothing predicts the first token
    reasons[mine.index[predicted] - 1] = why[predicted]

    kept = np.flatnonzero((why == 0) & predicted)
    borders = np.where(depth > MAX_BORDER, -1, _borders(t, depth))[kept]
    t, depth, own = t[kept], depth[kept], mine.index[kept]
    rows = np.zeros((len(kept), len(TEXT_POSITION_FIELDS)), np.int64)
    if len(kept):
        entry = vocabulary.offsets[vocabulary.rank[teacher.ids[others.index[t]]]] + depth
        rows[:, 0] = own - 1
        rows[:, 1] = others.index[t] - 1
        rows[:, 2] = depth
        rows[:, 3:6] = vocabulary.ranges[:, entry].T
        rows[:, 6] = borders
        rows[:, 7] = student.ids[own]
        rows[:, 8] = _chains(mine.ends[kept], t, last[kept], others)
    rows = _with_ends(student, teacher, vocabulary, rows, reasons)
    numbers = np.bincount(reasons, minlength=len(_REASONS)).tolist()
    return rows, {name: n for name, n in zip(_REASONS[1:], numbers[1:], strict=True) if n}


def _covering(mine: _Side, others: _Side, last: Integers) -> tuple[Integers, Integers, Booleans, Integers]:
    """For each of the student's tokens the teacher's over its first byte, and how much of it has been read.

    Args:
        mine, others: the student's and the teacher's tokens.
        last: of each of the student's tokens the last of the teacher's in the same text.

    Returns:
        the teacher's tokens, the depths, where both put a space before the text, and the numbers of reasons.
    """
    over = np.searchsorted(others.ends, mine.starts, "right")
    why = np.zeros(len(mine.index), np.int64)
    t = np.minimum(over, last)  # -1 before the first of all
    if not len(others.index):
        return t, t, why > 0, why + _REASONS.index("teacher_cut")
    depth = mine.starts - others.starts[t] + others.added[t]
    # A space that both put before the text is read by neither.
    both = (mine.added == 1) & (others.added[t] == 1) & (mine.starts == others.starts[t])
    depth[both] = 0
    for name, fails in (
        ("teacher_first", others.first[t]),
        ("teacher_changed", others.added[t] < 0),
        ("teacher_gap", others.starts[t] > mine.starts),
        ("teacher_cut", over > last),
    ):
        why[fails] = _REASONS.index(name)
    return t, depth, both, why


def _borders(t: Integers, depth: Integers) -> Integers:
    """Bits of the student's borders in the teacher's token ``t`` over each of its tokens' first byte."""
    opens = np.ones(len(t), np.bool_)
    opens[1:] = t[1:] != t[:-1]
    # Tokens without a border at byte 0 of the teacher's token cannot be compared with its own tokenization.
    first = np.flatnonzero(opens)
    group = np.cumsum(opens) - 1
    shared = (depth[first] == 0)[group]
    bits = np.uint64(1) << np.clip(depth, 0, 63).astype(np.uint64)
    values = np.where((depth >= 1) & (depth <= MAX_BORDER), bits, np.uint64(0))
    # Sums wrap around, and so do their differences.
    sums = np.cumsum(values, dtype=np.uint64)
    before = np.concatenate([np.zeros(1, np.uint64), sums])[first][group]
    return np.where(shared, (sums - before).astype(np.int64), -1)


def _chains(ends: Integers, t: Integers, last: Integers, others: _Side) -> Integers:
    """Number of the teacher's tokens from each ``t`` on to the one over the last byte before an end."""
    over = np.searchsorted(others.ends, ends, "left")
    linked = (
        (others.index[1:] == others.index[:-1] + 1)
        & (others.starts[1:] == others.ends[:-1])
        & (others.added[1:] == 0)
    )
    breaks = np.concatenate([[0], np.cumsum(~linked)])
    inside = np.minimum(over, last)
    whole = (over == inside) & (breaks[inside] == breaks[t])
    return np.where(whole, inside - t + 1, 1)


def _with_ends(
    student: TextTokens, teacher: TextTokens, vocabulary: VocabularyMap, rows: Integers, reasons: Integers
) -> Integers:
    """Add the positions before the ends of texts, where both sides have one."""
    (_, before_end), (_, other_end) = final_positions(student), final_positions(teacher)
    reasons[before_end[before_end >= 0]] = _REASONS.index("end")
    i, j = both_ends(student, teacher, before_end, other_end)
    closing = np.stack([teacher.ids[j + 1], student.ids[i + 1]], axis=1)
    by_role, by_end = ((closing[:, None] == each).all(axis=2) for each in (vocabulary.roles, vocabulary.ends))
    own = np.where(by_end.any(axis=1), by_end.argmax(axis=1) + 1, 0) if by_end.size else np.zeros_like(i)
    ended = np.zeros(len(student.counts), np.int64)
    ended[student.owner[i]] = own
    at_border = rows[:, 2] == 0
    rows[at_border, 6] = ended[student.owner[rows[at_border, 0]]]
    named = by_role.any(axis=1) | (own > 0)
    i, j, own = i[named], j[named], own[named]
    reasons[i] = 0
    ends = np.zeros((len(i), len(TEXT_POSITION_FIELDS)), np.int64)
    ends[:, 0], ends[:, 1], ends[:, 5], ends[:, 6] = i, j, len(vocabulary), own
    ends[:, 7], ends[:, 8] = student.ids[i + 1], 1
    rows = np.concatenate([rows, ends])
    return rows[np.argsort(rows[:, 0], kind="stable")]


def _data(student: TokenBytes, teacher: TokenBytes, text: str | bytes) -> bytes:
    require_one_text(student, teacher)
    if not isinstance(text, str | bytes):
        raise TypeError(f"text: expected a string or bytes, got {type(text).__name__}")
    data = text.encode() if isinstance(text, str) else text
    if len(data) != student.total:
        raise ValueError(
            f"text: expected the one that was tokenized, {student.total} bytes, got {len(data)} bytes"
        )
    return data


def batch_text_positions(
    positions: Sequence[Any], *, student_offset: Any = 0, teacher_offset: Any = 0
) -> Integers:
    """Stack the text positions of several sequences.

    Args:
        positions: for each sequence ``(P_b, 9)`` integers, as `text_positions` returns them.
        student_offset: what to add to the student's positions: the number of padding tokens on the left, one
            integer for all sequences or ``(B,)``.
        teacher_offset: the same for the teacher.

    Returns:
        ``(B, P, 9)`` integers, padded by -1, with ``P`` the largest number of rows.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.
    """
    if not hasattr(positions, "__iter__"):
        raise TypeError(f"positions: expected rows for each sequence, got {type(positions).__name__}")
    rows = [_position_rows(n, row) for n, row in enumerate(positions)]
    offsets = (("student_offset", student_offset), ("teacher_offset", teacher_offset))
    shifts = [position_offsets(name, value, len(rows)) for name, value in offsets]
    counts = np.array(list(map(len, rows)), np.int64)
    batch = np.full((len(rows), counts.max(initial=0), len(TEXT_POSITION_FIELDS)), -1, np.int64)
    if not counts.any():
        return batch
    every = np.concatenate(rows)
    owner = np.repeat(np.arange(len(rows)), counts)
    wrong = np.flatnonzero((every[:, :2] < 0).any(axis=1))
    if len(wrong):
        n = int(owner[wrong[0]])
        raise ValueError(f"positions: expected positions >= 0, got {rows[n][:, :2].min()} for number {n}")
    every[:, :2] += np.stack(shifts, axis=1)[owner]
    batch[np.arange(batch.shape[1]) < counts[:, None]] = every
    return batch


def _position_rows(n: int, row: Any) -> Integers:
    array = np.asarray(row)
    width = len(TEXT_POSITION_FIELDS)
    if array.size == 0:
        return np.zeros((0, width), np.int64)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(
            f"positions: expected (P, {width}) for each sequence, got shape {array.shape} for number {n}"
        )
    if array.dtype.kind not in "iu":
        raise TypeError(f"positions: expected integers, got {array.dtype} for number {n}")
    return array.astype(np.int64, copy=False)
