"""Arguments of the baselines, checked, and what of them is compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments, _checks
from mlot._composite import Composite
from mlot._resolve import type_name
from mlot._typing import Array, Reduction
from mlot.backends.base import Backend
from mlot.baselines._plain import log_softmax
from mlot.divergences import check_reduction, reduce_sums
from mlot.targets import checked_text, require_text
from mlot.text import TextPositions

STUDENT, TEACHER, DEPTH, NEXT, CHAIN = 0, 1, 2, 7, 8  # columns of text positions

Where = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class Spans(NamedTuple):
    """Tokens of both models by span: sequence, position, token that it predicts, and the span's number."""

    sequence: NDArray[np.int64]  #: of each span
    student: Where
    teacher: Where


@dataclass(frozen=True, eq=False)
class Given:
    """Arguments, checked; text positions and masks on the host."""

    xp: Backend
    student: Array
    teacher: Array
    rows: NDArray[np.int64]
    teacher_ids: NDArray[np.int64]
    student_mask: NDArray[np.bool_]
    teacher_mask: NDArray[np.bool_]

    @staticmethod
    def of(
        student: Array,
        teacher: Array,
        text: TextPositions,
        student_mask: Array | None,
        teacher_mask: Array | None,
        temperature: float,
        reduction: Reduction,
        num_items: float | Array | None,
        backend: str | None,
    ) -> Given:
        _checks.number("temperature", temperature)
        check_reduction(reduction, num_items)
        require_text(text)
        for name, source in (("student", student), ("teacher", teacher)):
            if isinstance(source, Composite):
                raise TypeError(f"{name}: expected logits, got {type_name(source)}")
        arguments = {
            "student": student,
            "teacher": teacher,
            "student_mask": student_mask,
            "teacher_mask": teacher_mask,
            "text.rows": text.rows,
            "text.teacher_ids": text.teacher_ids,
        }
        xp, (student, teacher, student_mask, teacher_mask, rows, ids) = _arguments.resolve(arguments, backend)
        student_mask = _arguments.source_and_mask(xp, "student", student, "student_mask", student_mask)
        teacher_mask = _arguments.source_and_mask(xp, "teacher", teacher, "teacher_mask", teacher_mask)
        checked_text(xp, TextPositions(rows, ids, text.plan), student_mask, teacher)
        if student.shape[2] < text.plan.student_vocab_size:
            raise ValueError(
                f"student: expected the {text.plan.student_vocab_size} tokens of the plan at least, "
                f"got {student.shape[2]}"
            )
        rows, ids, *masks = (xp.to_numpy(each) for each in (rows, ids, student_mask, teacher_mask))
        teacher = xp.stop_gradient(teacher)
        return Given(
            xp,
            student,
            teacher,
            rows.astype(np.int64),
            ids.astype(np.int64),
            *(m.astype(bool) for m in masks),
        )

    def index(self, numbers: NDArray[Any]) -> Array:
        """Integers on the device of the student."""
        return self.xp.from_numpy(numbers.astype(np.int64), self.xp.device(self.student))

    def counts(self) -> NDArray[np.bool_]:
        """Rows that stand for a position of both models that may be read, ``(B, P)``."""
        i, j = self.rows[..., STUDENT], self.rows[..., TEACHER]
        if 0 in (self.student_mask.shape[1], self.teacher_mask.shape[1]):
            return np.zeros(i.shape, bool)
        b = np.arange(len(i))[:, None]
        kept: NDArray[np.bool_] = (i >= 0) & (j >= 0) & self.student_mask[b, i] & self.teacher_mask[b, j]
        return kept

    def shared(self, temperature: float) -> tuple[NDArray[np.int64], Array, Array]:
        """Sequence and log-probabilities of both models where these have read the same bytes."""
        b, n = np.nonzero(self.counts() & (self.rows[..., DEPTH] == 0))
        chosen = self.rows[b, n]
        at = self.index(b)
        s = self.student[at, self.index(chosen[:, STUDENT])]
        t = self.teacher[at, self.index(chosen[:, TEACHER])]
        return b, log_softmax(s, temperature), log_softmax(t, temperature)

    def spans(self) -> Spans:
        """Spans between consecutive shared positions of which every token is known."""
        sequence: list[int] = []
        sides: tuple[list[tuple[int, int, int, int]], ...] = ([], [])
        usable = self.counts()
        for b, rows in enumerate(self.rows):
            shared = np.flatnonzero(usable[b] & (rows[:, DEPTH] == 0)).tolist()
            for first, last in pairwise(shared):
                i, j = rows[[first, last], STUDENT], rows[[first, last], TEACHER]
                whole = usable[b, first:last].all() and last - first == i[1] - i[0]
                if not (whole and self.teacher_mask[b, j[0] : j[1]].all()):
                    continue
                number = len(sequence)
                sequence.append(b)
                sides[0].extend((b, int(row[STUDENT]), int(row[NEXT]), number) for row in rows[first:last])
                sides[1].extend((b, m, int(self.teacher_ids[b, m + 1]), number) for m in range(*j.tolist()))
        student, teacher = (tuple(np.array(side, np.int64).reshape(-1, 4).T) for side in sides)
        return Spans(np.array(sequence, np.int64), student, teacher)  # type: ignore[arg-type]

    def log_probs(self, source: Array, where: Where) -> Array:
        """Log-probability of a token at each of some positions, ``(N,)``."""
        b, position, token, _ = map(self.index, where)
        return log_softmax(source[b, position], 1.0)[self.index(np.arange(len(where[0]))), token]

    def projected(
        self, mass: Array, source: NDArray[Any], target: NDArray[Any], weights: NDArray[Any], size: int
    ) -> Array:
        """Mass that is moved from tokens to other tokens, ``(N, size)``."""
        moved = mass[:, self.index(source)]
        factors = self.xp.from_numpy(weights.astype(np.float64), self.xp.device(self.student))
        if isinstance(moved, np.ndarray):
            result = np.zeros((len(mass), size))
            np.add.at(result.T, target, (moved * factors).T)
            return result
        return mass.new_zeros((len(mass), size)).index_add(
            1, self.index(target), moved * factors.to(mass.dtype)
        )

    def sums(self, values: Array, of: NDArray[np.int64], size: int) -> Array:
        """Sums of values by number, ``(size,)``."""
        if isinstance(values, np.ndarray):
            return np.bincount(of, values, minlength=size)[:size]
        return values.new_zeros(size).index_add(0, self.index(of), values)

    def reduced(
        self, terms: Array, b: NDArray[np.int64], reduction: Reduction, num_items: float | Array | None
    ) -> Array:
        """Terms by sequence, reduced."""
        batch = len(self.rows)
        counts = self.index(np.bincount(b, minlength=batch))
        return reduce_sums(self.sums(terms, b, batch), counts, reduction, num_items)
