"""What the plan from the text serves: of the vocabularies, of a text, and of a teacher's probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlot.align._text_positions import UNSERVED_REASONS, text_positions
from mlot.align._tokens import Integers, TokenBytes
from mlot.align._vocabulary_map import VocabularyMap

Floats: TypeAlias = NDArray[np.float64]
#: Share of the positions below which a report warns.
POOR_SERVED = 0.99


@dataclass(frozen=True)
class TextReport:
    """What of the student's positions, and of the teacher, the plan from the text serves.

    Attributes:
        sequences: number of texts.
        positions: positions of the student that have a next token.
        served: how many of them have a target.
        inside: how many of these lie inside of a token of the teacher: not at a boundary of both.
        chained: how many of these have a next token that reaches into several tokens of the teacher.
        reasons: number of positions without a target by reason, with the keys of ``UNSERVED_REASONS``.
        equal: share of the teacher's tokens with text that spell a token of the student.
        shorter: share of them that begin with a shorter token of the student.
        nothing: share of them that begin with no token of the student.
        canonical: share of them that the student's own tokenization is known of.
        served_mass: mean over the served positions of the share of the teacher's mass that is carried over,
            of what it gives to tokens that begin with what has been read; ``None``: no probabilities.
        equal_mass: mean over served boundaries of the share of the mass that is carried to an equal string.
    """

    sequences: int
    positions: int
    served: int
    inside: int
    chained: int
    reasons: dict[str, int]
    equal: float
    shorter: float
    nothing: float
    canonical: float
    served_mass: float | None = None
    equal_mass: float | None = None

    @property
    def served_share(self) -> float:
        """Share of the student's positions that have a target, 0 where there are none."""
        return self.served / self.positions if self.positions else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves a look, one sentence each; empty when all is well."""
        if not self.positions or self.served_share >= POOR_SERVED:
            return ()
        most = UNSERVED_REASONS[max(self.reasons, key=lambda name: self.reasons[name])]
        share = f"Only {self.served_share:.1%} of the student's positions have a target"
        return (f"{share}; most often {most}.",)

    def __str__(self) -> str:
        begin = f"{self.shorter:.1%} begin with a shorter one, {self.nothing:.1%} with none"
        lines = [
            f"teacher's vocabulary: {self.equal:.1%} equal to a token of the student, {begin}",
            f"positions: {self.served_share:.2%} of {self.positions} served",
            f"  {self.inside} of these inside of a token of the teacher",
            f"  {self.chained} of these with a next token over several of the teacher's",
        ]
        lines += [
            f"  {count} not served: {UNSERVED_REASONS[name]}" for name, count in sorted(self.reasons.items())
        ]
        if self.served_mass is not None:
            lines.append(f"teacher's mass: {self.served_mass:.2%} carried over")
        if self.equal_mass is not None:
            lines.append(f"teacher's mass at boundaries: {self.equal_mass:.2%} to an equal string")
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


def text_report(
    student: TokenBytes | Sequence[TokenBytes],
    teacher: TokenBytes | Sequence[TokenBytes],
    text: str | bytes | Sequence[str | bytes],
    vocabulary: VocabularyMap,
    *,
    teacher_probabilities: Any = None,
) -> TextReport:
    """Measure what of one text, or of several, the plan from the text serves.

    Args:
        student: tokens of the student, of one text or of a sequence of texts.
        teacher: tokens of the teacher, of the same texts.
        text: the text, or the texts.
        vocabulary: the map of the two tokenizers.
        teacher_probabilities: for each text ``(T_t, V_t)``, what the teacher gives after each of its tokens;
            one array for one text.

    Returns:
        `TextReport`; print it, or look at ``warnings``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the numbers or shapes of the arguments do not fit.

    >>> student = TokenBytes([2, 0, 1, 3], [0, 0, 1, 3], [0, 1, 3, 4], [True, False, False, False], 4)
    >>> teacher = TokenBytes([2, 1, 0], [0, 0, 3], [0, 3, 4], [True, False, False], 4)
    >>> vocabulary = VocabularyMap.from_bytes([b"t", b"he", None, b"s"], [b"s", b"the", None])
    >>> made = text_report(student, teacher, "thes", vocabulary)
    >>> made.served_share, made.inside, made.equal, made.shorter
    (1.0, 1, 0.5, 0.5)
    """
    one = isinstance(student, TokenBytes)
    students, teachers = _listed("student", student, one), _listed("teacher", teacher, one)
    texts = _listed("text", text, one)
    given = [None] * len(students)
    if teacher_probabilities is not None:
        given = _listed("teacher_probabilities", teacher_probabilities, one)
    for name, values in (("teacher", teachers), ("text", texts), ("teacher_probabilities", given)):
        if len(values) != len(students):
            raise ValueError(f"{name}: expected {len(students)} of them, as student, got {len(values)}")
    reasons: Counter[str] = Counter()
    parts: list[Integers] = []
    masses: list[Floats] = []
    equals: list[Floats] = []
    for mine, others, data, probabilities in zip(students, teachers, texts, given, strict=True):
        rows, counts = text_positions(mine, others, data, vocabulary, return_counts=True)
        reasons.update(counts)
        parts.append(rows)
        if probabilities is not None:
            carried, equal = _masses(rows, others, probabilities, vocabulary)
            masses.append(carried)
            equals.append(equal)
    rows = np.concatenate(parts) if parts else np.zeros((0, 9), np.int64)
    return TextReport(
        len(students),
        sum(max(len(mine) - 1, 0) for mine in students),
        len(rows),
        int((rows[:, 2] > 0).sum()),
        int((rows[:, 8] > 1).sum()),
        dict(reasons),
        *vocabulary.shares,
        served_mass=_mean(masses),
        equal_mass=_mean(equals),
    )


def _masses(
    rows: Integers, teacher: TokenBytes, probabilities: Any, vocabulary: VocabularyMap
) -> tuple[Floats, Floats]:
    """Shares of the mass carried over at each row, and to an equal string at each boundary."""
    t = np.asarray(probabilities, np.float64)
    least = vocabulary.teacher_vocab_size
    if t.ndim != 2 or len(t) != len(teacher) or t.shape[1] < least:
        raise ValueError(
            f"teacher_probabilities: expected ({len(teacher)}, at least {least}), got shape {t.shape}"
        )
    first = vocabulary.offsets[:-1]
    same = vocabulary.order[vocabulary.whole]
    carried, equal = [], []
    for _, j, depth, start, low, high, *_ in rows.tolist():
        ids = vocabulary.order[start:high]
        follows = vocabulary.longest[first[low:high] + depth]
        special = t[j, vocabulary.roles[:, 0]].sum() if depth == 0 else 0.0
        there = t[j, ids].sum() + special
        served = t[j, ids[low - start :]][follows >= 0].sum() + special
        carried.append(served / there if there > 0 else 0.0)
        if depth == 0:
            equal.append((t[j, same].sum() + special) / there if there > 0 else 0.0)
    return np.array(carried), np.array(equal)


def _mean(parts: list[Floats]) -> float | None:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(values.mean()) if len(values) else None


def _listed(name: str, value: Any, one: bool) -> list[Any]:
    if one:
        return [value]
    if isinstance(value, str | bytes | TokenBytes) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected one for each text, got {type(value).__name__}")
    return list(value)
