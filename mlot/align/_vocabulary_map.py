"""VocabularyMap: which student token the bytes of each teacher token begin with."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot.align._segmentation import Segmentation, segment
from mlot.align._strings import PrefixTree, Strings, prefix_ranges
from mlot.align._tokens import Integers


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    r"""The map between two vocabularies, by the bytes that their tokens spell.

    Teacher tokens that spell text are sorted by their bytes, so that those that begin with given bytes are a
    contiguous range. An entry ``offsets[n] + d`` stands for the rest :math:`\beta(v)[d:]` of the ``n``-th of
    them after its first ``d`` bytes, :math:`0 \le d < |\beta(v)|`.

    Where several student tokens spell the same bytes, the one with the lowest id stands for all of them;
    several teacher tokens of the same bytes are given to as many of these in order, so that a vocabulary is
    mapped to itself by the identity.

    Attributes:
        order: teacher ids that spell text, sorted by their bytes, ties by id, ``(N,)``.
        offsets: first entry of each of them, and the number of entries, ``(N + 1,)``.
        longest: for each entry the longest student token that the rest begins with; -1: there is none.
        canonical: for each entry the token that follows there in the student's own tokenization of the whole
            teacher token; -1: it has no border there, or cannot be had.
        segmentation: bit ``b``, :math:`1 \le b \le 62`, is set where the student's own tokenization of a
            teacher token has a border after its first ``b`` bytes, ``(N,)``.
        roles: ``[teacher id, student id]`` of special tokens that correspond, ``(S, 2)``.
        student_bytes: bytes of each student id.
        teacher_bytes: bytes of each teacher id.
    """

    order: Integers
    offsets: Integers
    longest: NDArray[np.int32]
    canonical: NDArray[np.int32]
    segmentation: Integers
    roles: Integers
    student_bytes: Strings
    teacher_bytes: Strings

    @staticmethod
    def from_bytes(
        student_bytes: Sequence[bytes | None],
        teacher_bytes: Sequence[bytes | None],
        *,
        tokenize: Callable[[bytes], Sequence[int]] | None = None,
        roles: Any = (),
    ) -> VocabularyMap:
        """Map two vocabularies given by the bytes of their tokens.

        Args:
            student_bytes: bytes that each student id spells; ``None`` or empty: no text.
            teacher_bytes: the same for the teacher.
            tokenize: the student's own tokenization, from bytes to ids; ``None``: it is not known.
            roles: ``[teacher id, student id]`` of special tokens that correspond.

        Returns:
            `VocabularyMap`.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: a role names an id that there is not.

        >>> student = [b"t", b"th", b"e", b" "]
        >>> vocabulary = VocabularyMap.from_bytes(student, [None, b"the", b" t"])
        >>> vocabulary.order, vocabulary.offsets
        (array([2, 1]), array([0, 2, 5]))
        >>> vocabulary.longest  # of " t", "t"; "the", "he", "e"
        array([ 3,  0,  1, -1,  2], dtype=int32)
        """
        student, teacher = (
            Strings.of(_strings(name, value))
            for name, value in (("student_bytes", student_bytes), ("teacher_bytes", teacher_bytes))
        )
        order = sort(teacher)
        segments = None
        if tokenize is not None:
            spelled = Strings.of([teacher[n] for n in order.tolist()])
            segments = segment(spelled, [tokenize(string) for string in spelled.all()], student)
        return assemble(student, teacher, order, segments, _role_rows(roles, len(student), len(teacher)))

    @property
    def student_vocab_size(self) -> int:
        """Number of student ids."""
        return len(self.student_bytes)

    @property
    def teacher_vocab_size(self) -> int:
        """Number of teacher ids."""
        return len(self.teacher_bytes)

    def __len__(self) -> int:
        """Number of teacher tokens that spell text."""
        return len(self.order)

    def __repr__(self) -> str:
        return (
            f"VocabularyMap({self.student_vocab_size} student ids, {self.teacher_vocab_size} teacher ids, "
            f"{len(self)} with text)"
        )

    def prefix_ranges(self, prefixes: Sequence[bytes]) -> tuple[Integers, Integers, Integers]:
        """Ranges of the sorted teacher tokens that begin with given bytes.

        Args:
            prefixes: byte strings, ``P`` of them.

        Returns:
            start, low, high, ``(P,)`` each: tokens ``[start, low)`` spell the prefix, ``[low, high)`` begin
            with it and go on.
        """
        rows = [self._range(prefix) for prefix in prefixes]
        start, low, high = np.array(rows, np.int64).reshape(-1, 3).T
        return start, low, high

    def _range(self, prefix: bytes) -> tuple[int, int, int]:
        start, low = bisect_left(self._sorted, prefix), bisect_right(self._sorted, prefix)
        stem = prefix.rstrip(b"\xff")
        after = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
        return start, low, len(self) if after is None else bisect_left(self._sorted, after)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.teacher_bytes[n] for n in self.order.tolist()]

    @cached_property
    def ranges(self) -> NDArray[np.int32]:
        """Start, low, high, as of `prefix_ranges`, of the bytes before each entry, ``(3, offsets[-1])``."""
        return prefix_ranges(Strings.of(self._sorted))

    @cached_property
    def rank(self) -> Integers:
        """Place of each teacher id in ``order``, -1 for ids without text, ``(teacher_vocab_size,)``."""
        rank = np.full(self.teacher_vocab_size, -1, np.int64)
        rank[self.order] = np.arange(len(self))
        return rank


def sort(strings: Strings) -> Integers:
    """Ids that spell text, sorted by their bytes, ties by id."""
    every = strings.all()
    ids = sorted(np.flatnonzero(strings.lengths).tolist(), key=every.__getitem__)
    return np.array(ids, np.int64)


def assemble(
    student: Strings,
    teacher: Strings,
    order: Integers,
    segments: Segmentation | None,
    roles: Integers,
    preference: Integers | None = None,
) -> VocabularyMap:
    """A map from its parts.

    Args:
        student: bytes of the student's ids.
        teacher: bytes of the teacher's ids.
        order: as `sort` makes it.
        segments: the student's own tokenization of the sorted teacher tokens, if it is known.
        roles: special tokens that correspond.
        preference: of student ids with the same bytes the one with the least value stands for all,
            ``(V_s,)``; ``None``: the lowest id.
    """
    spelled = Strings.of([teacher[n] for n in order.tolist()])
    student_order = sort(student)
    if preference is not None:
        student_order = _by_preference(student, student_order, preference)
    every = student.all()
    distinct, groups = _distinct([every[n] for n in student_order.tolist()])
    longest = PrefixTree.of(Strings.of(distinct)).longest(spelled)
    ids = np.full(len(longest), -1, np.int64)
    ids[longest >= 0] = student_order[groups[longest[longest >= 0]]]
    whole, copies = _copies(spelled, distinct, longest, groups)
    ids[spelled.offsets[whole]] = student_order[copies]
    if segments is None:
        canonical = np.full(len(ids), -1, np.int64)
        bits = np.zeros(len(order), np.int64)
    else:
        canonical, bits = segments.following.copy(), segments.borders
        # The same choice among tokens of the same bytes as in the other reading.
        first = spelled.offsets[:-1]
        alone = np.zeros(len(order), np.bool_)
        alone[whole] = segments.count[whole] == 1
        canonical[first[alone]] = ids[first[alone]]
    return VocabularyMap(
        order,
        spelled.offsets,
        ids.astype(np.int32),
        canonical.astype(np.int32),
        bits,
        roles,
        student,
        teacher,
    )


def _by_preference(strings: Strings, order: Integers, preference: Integers) -> Integers:
    every = strings.all()
    ranks = preference.tolist()
    return np.array(sorted(order.tolist(), key=lambda n: (every[n], ranks[n], n)), np.int64)


def _distinct(strings: list[bytes]) -> tuple[list[bytes], Integers]:
    """Distinct strings of sorted ones, and the first place of each, with the number of strings at the end."""
    first = [n for n, string in enumerate(strings) if n == 0 or string != strings[n - 1]]
    return [strings[n] for n in first], np.array([*first, len(strings)], np.int64)


def _copies(
    spelled: Strings, distinct: list[bytes], longest: Integers, groups: Integers
) -> tuple[Integers, Integers]:
    """Sorted teacher tokens that are student tokens, too, and which of the copies of that they are given."""
    found = longest[spelled.offsets[:-1]]
    sizes = np.array([len(string) for string in distinct], np.int64)
    whole = np.flatnonzero(found >= 0)
    whole = whole[sizes[found[whole]] == spelled.lengths[whole]]
    match = found[whole]
    # How many teacher tokens before this one spell the same.
    opens = np.ones(len(match), np.bool_)
    opens[1:] = match[1:] != match[:-1]
    first = np.flatnonzero(opens)
    number = np.arange(len(match)) - first[np.cumsum(opens) - 1] if len(match) else match
    return whole, groups[match] + np.minimum(number, groups[match + 1] - groups[match] - 1)


def _strings(name: str, value: Any) -> list[bytes | None]:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of byte strings, got {type(value).__name__}")
    strings = list(value)
    for n, string in enumerate(strings):
        if string is not None and not isinstance(string, bytes):
            raise TypeError(f"{name}: expected bytes or None, got {type(string).__name__} for id {n}")
    return strings


def _role_rows(roles: Any, student_size: int, teacher_size: int) -> Integers:
    rows = np.asarray(roles)
    if not rows.size:
        return np.zeros((0, 2), np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"roles: expected [teacher id, student id] rows, got shape {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"roles: expected integers, got {rows.dtype}")
    for side, size in enumerate((teacher_size, student_size)):
        if rows[:, side].min() < 0 or rows[:, side].max() >= size:
            name = ("teacher", "student")[side]
            raise ValueError(f"roles: expected {name} ids 0 to {size - 1}, got {rows[:, side].tolist()}")
    if len(np.unique(rows[:, 0])) < len(rows):
        raise ValueError(f"roles: expected each teacher id once, got {rows[:, 0].tolist()}")
    return rows.astype(np.int64)
