"""Examples in the tokens of both models, cut at one place of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlot._hf.tokens import Tokens, common_positions, common_text_positions
from mlot.align import TEXT_POSITION_FIELDS, VocabularyMap


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


@dataclass(frozen=True)
class Pair:
    """An example in the tokens of both models, cut so that both have read the same text.

    Attributes:
        student: its tokens, not cut.
        teacher: the same of the teacher.
        length: student's tokens that are kept.
        teacher_length: the same of the teacher.
        positions: ``(P, 2)`` at which both have read the same bytes.
    """

    student: Tokens
    teacher: Tokens
    length: int
    teacher_length: int
    positions: np.ndarray[Any, np.dtype[np.int64]]

    @staticmethod
    def of(student: Tokens, teacher: Tokens, limit: int | None, teacher_limit: int | None) -> Pair:
        """Cut an example to the last place that both models have read within their limits."""
        positions = common_positions(student, teacher)
        lengths = len(student.ids), len(teacher.ids)
        limits = (
            lengths[0] if limit is None else limit,
            lengths[1] if teacher_limit is None else teacher_limit,
        )
        if lengths[0] <= limits[0] and lengths[1] <= limits[1]:
            return Pair(student, teacher, lengths[0], lengths[1], positions)
        fits = positions[(positions < np.array(limits)).all(axis=1)]
        kept, teacher_kept = (fits[-1] + 1).tolist() if len(fits) else (0, 0)
        # The last position that is left predicts nothing.
        return Pair(student, teacher, kept, teacher_kept, fits[:-1])

    def text_positions(
        self, vocabulary: VocabularyMap
    ) -> tuple[np.ndarray[Any, np.dtype[np.int64]], dict[str, int]]:
        """What the teacher says at each of the student's positions that are kept, and why not at others.

        Returns:
            ``(P, 9)`` rows as `mlot.align.text_positions` makes them, and the number of positions in the
            targets, cut or not, that have none, by reason.
        """
        rows, reasons = common_text_positions(self.student, self.teacher, vocabulary)
        teacher, chain = (TEXT_POSITION_FIELDS.index(name) for name in ("teacher", "chain"))
        kept = (rows[:, 0] + 1 < self.length) & (rows[:, teacher] + rows[:, chain] < self.teacher_length)
        return rows[kept], reasons

    def as_dict(self, *, with_pairs: bool) -> dict[str, Any]:
        """The columns of a prepared example."""
        n, m = self.length, self.teacher_length
        labels = self.student.labels(n)
        columns = {
            "input_ids": self.student.ids[:n],
            "labels": labels,
            "text_mask": self.student.text_mask(n),
            "target_bytes": self.student.target_bytes(n),
            "teacher_input_ids": self.teacher.ids[:m],
            "teacher_labels": self.teacher.labels(m),
        }
        if with_pairs:
            columns["pairs"] = self.positions.tolist()
        return columns

    def truncation(self) -> Truncation:
        """What was cut off."""
        whole = self.student.target_bytes(len(self.student.ids))
        kept = self.student.target_bytes(self.length)
        cut = self.length < len(self.student.ids) or self.teacher_length < len(self.teacher.ids)
        empty = all(label == -100 for label in self.student.labels(self.length))
        return Truncation(1, int(cut), int(empty), whole, whole - kept)
