"""Examples in the tokens of both models, cut at one place of the text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._hf.tokens import Booleans, Integers, Tokens
from mlot.align import TEXT_POSITION_FIELDS, VocabularyMap
from mlot.align._pairs import paired_tokens
from mlot.align._text_positions import rows_of_texts
from mlot.align._text_tokens import boundaries

_TEACHER, _CHAIN = (TEXT_POSITION_FIELDS.index(name) for name in ("teacher", "chain"))
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Truncation:
    """What was cut off of some examples that were too long.

    Attributes:
        examples: number of examples.
        cut: number of those that were cut.
        empty: number of those of which nothing was left that a student is asked for.
        bytes: bytes of text that the student is asked for, before the cut.
        cut_bytes: how many of them were cut off.
    """

    examples: int = 0
    cut: int = 0
    empty: int = 0
    bytes: int = 0
    cut_bytes: int = 0

    def __add__(self, other: Truncation) -> Truncation:
        return Truncation(
            self.examples + other.examples,
            self.cut + other.cut,
            self.empty + other.empty,
            self.bytes + other.bytes,
            self.cut_bytes + other.cut_bytes,
        )

    def __str__(self) -> str:
        return (
            f"{self.cut} of {self.examples} examples were too long and were cut, {self.cut_bytes} of "
            f"{self.bytes} bytes of text with them; of {self.empty} nothing was left"
        )


@dataclass(frozen=True, eq=False)
class Pairs:
    """Examples in the tokens of both models, cut so that both have read the same text.

    Attributes:
        student: their tokens, not cut.
        teacher: the same of the teacher.
        lengths: student's tokens that are kept of each example, ``(B,)``.
        teacher_lengths: the same of the teacher.
    """

    student: Tokens
    teacher: Tokens
    lengths: Integers
    teacher_lengths: Integers

    @staticmethod
    def of(student: Tokens, teacher: Tokens, limit: int | None, teacher_limit: int | None) -> Pairs:
        """Cut examples to the last place that both models have read within their limits."""
        lengths, others = np.diff(student.offsets), np.diff(teacher.offsets)
        whole = Pairs(student, teacher, lengths, others)
        limits = [_NO_LIMIT if each is None else each for each in (limit, teacher_limit)]
        long = (lengths > limits[0]) | (others > limits[1])
        if not long.any():
            return whole
        owner, positions = whole.positions
        fits = (positions < limits).all(axis=1) & long[owner]
        ends = np.zeros((len(lengths), 2), np.int64)
        np.maximum.at(ends, owner[fits], positions[fits] + 1)
        return Pairs(
            student, teacher, np.where(long, ends[:, 0], lengths), np.where(long, ends[:, 1], others)
        )

    @cached_property
    def positions(self) -> tuple[Integers, Integers]:
        """Examples, and ``(P, 2)`` their positions that are kept, at which both have read the same bytes."""
        paired = paired_tokens(self.student.ranges, self.teacher.ranges)
        owner = self._placed(paired)
        # The last position that is left of an example that was cut predicts nothing.
        kept = ~self._is_cut[owner] | (paired[:, 0] + 1 < self.lengths[owner])
        return owner[kept], paired[kept]

    def text_positions(self, vocabulary: VocabularyMap) -> tuple[list[Integers], dict[str, int]]:
        """What the teacher says at each of the student's positions that are kept, and why not at others.

        Returns:
            For each example ``(P, 9)`` rows as `mlot.align.text_positions` makes them, and the number of all
            positions in the targets, cut or not, that have none, by reason.
        """
        student, teacher = self.student, self.teacher
        rows, reasons = rows_of_texts(student.ranges, teacher.ranges, b"".join(student.texts), vocabulary)
        owner = self._placed(rows)
        kept = (rows[:, 0] + 1 < self.lengths[owner]) & (
            rows[:, _TEACHER] + rows[:, _CHAIN] < self.teacher_lengths[owner]
        )
        return self._by_example(owner[kept], rows[kept]), reasons

    def _placed(self, rows: Integers) -> Integers:
        """Turn numbers of tokens of the targets into positions in the examples, and return these."""
        owner = self.student.owner[self.student.ranges.owner[rows[:, 0]]]
        for column, side in enumerate((self.student, self.teacher)):
            rows[:, column] = side.numbers[rows[:, column]] - side.offsets[owner]
        return owner

    def columns(self, *, with_pairs: bool = False) -> list[dict[str, Any]]:
        """The columns of prepared examples, in arrays."""
        student, teacher = self.student, self.teacher
        made: dict[str, Any] = {
            "input_ids": _cut(student, student.ids, self.lengths),
            "labels": _cut(student, student.labels, self.lengths),
            "text_mask": _cut(student, student.text_mask, self.lengths),
            "target_bytes": self._bytes[1].tolist(),
            "teacher_input_ids": _cut(teacher, teacher.ids, self.teacher_lengths),
            "teacher_labels": _cut(teacher, teacher.labels, self.teacher_lengths),
        }
        if with_pairs:
            made["pairs"] = self._by_example(*self.positions)
        return [dict(zip(made, row, strict=True)) for row in zip(*made.values(), strict=True)]

    def _by_example(self, owner: Integers, rows: Integers) -> list[Integers]:
        cuts = boundaries(np.bincount(owner, minlength=len(self.lengths))).tolist()
        return [rows[low:high] for low, high in pairwise(cuts)]

    @cached_property
    def _bytes(self) -> tuple[Integers, Integers]:
        """Bytes of text that the student is asked for of each example, and of what is kept of it."""
        whole = self.student.target_bytes(np.diff(self.student.offsets))
        return whole, self.student.target_bytes(self.lengths) if self._is_cut.any() else whole

    @cached_property
    def _is_cut(self) -> Booleans:
        student, teacher = np.diff(self.student.offsets), np.diff(self.teacher.offsets)
        return (self.lengths < student) | (self.teacher_lengths < teacher)

    @property
    def empty(self) -> Booleans:
        """Examples of which nothing is left that a student is asked for."""
        learnt = boundaries((self.student.labels != -100).astype(np.int64))
        first = self.student.offsets[:-1]
        empty: Booleans = learnt[first + self.lengths] == learnt[first]
        return empty

    def truncation(self) -> Truncation:
        """What was cut off."""
        whole, kept = (int(each.sum()) for each in self._bytes)
        return Truncation(
            len(self.lengths), int(self._is_cut.sum()), int(self.empty.sum()), whole, whole - kept
        )


def _cut(tokens: Tokens, values: NDArray[Any], lengths: Integers) -> list[NDArray[Any]]:
    """The first values of each example."""
    first = tokens.offsets[:-1]
    return [values[low:high] for low, high in zip(first.tolist(), (first + lengths).tolist(), strict=True)]
