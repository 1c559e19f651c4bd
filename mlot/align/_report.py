"""Whether two tokenizations fit together well enough to be paired."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlot.align._pairs import pairs
from mlot.align._reader import Reader
from mlot.align._scheme import guess
from mlot.align._tokens import TokenBytes, require_one_text

#: Shares below which a report warns. They mark what deserves a look, not what fails.
POOR_PAIRED = 0.5
POOR_BYTES = 0.3
POOR_VOCABULARY = 0.05


@dataclass(frozen=True)
class AlignmentReport:
    """What share of two tokenizations can be paired.

    Attributes:
        sequences: number of texts.
        pairs: number of paired positions.
        student_positions: positions of the student that have a next token.
        teacher_positions: the same for the teacher.
        student_bytes: share of the texts' bytes in student tokens that a paired position predicts.
        teacher_bytes: the same for the teacher.
        student_inexact: sequences of which the student's ranges are not ``exact``.
        teacher_inexact: the same for the teacher.
        student_vocabulary: share of the student's vocabulary that the teacher's has too, or ``None``.
        teacher_vocabulary: share of the teacher's vocabulary that the student's has too, or ``None``.
    """

    sequences: int
    pairs: int
    student_positions: int
    teacher_positions: int
    student_bytes: float
    teacher_bytes: float
    student_inexact: int
    teacher_inexact: int
    student_vocabulary: float | None = None
    teacher_vocabulary: float | None = None

    @property
    def student_share(self) -> float:
        """Share of the student's positions that are paired, 0 where there are none."""
        return _ratio(self.pairs, self.student_positions)

    @property
    def teacher_share(self) -> float:
        """Share of the teacher's positions that are paired, 0 where there are none."""
        return _ratio(self.pairs, self.teacher_positions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves a look, one sentence each; empty when all is well."""
        messages = []
        most = min(self.student_positions, self.teacher_positions)
        if not self.pairs:
            messages.append("No position is paired: terms that compare positions are 0.")
        elif self.pairs < POOR_PAIRED * most:
            messages.append(f"Only {_ratio(self.pairs, most):.0%} of the positions that could be paired are.")
        for name, share in (("student", self.student_bytes), ("teacher", self.teacher_bytes)):
            if self.pairs and share < POOR_BYTES:
                messages.append(
                    f"Paired positions predict only {share:.0%} of the text's bytes in {name} tokens."
                )
        for name, count in (("student", self.student_inexact), ("teacher", self.teacher_inexact)):
            if count:
                messages.append(
                    f"The {name}'s tokenizer changes text: in {count} of {self.sequences} sequences "
                    "some bytes are in no token, or their place is not certain."
                )
        if self.student_vocabulary is not None and self.teacher_vocabulary is not None:
            best = max(self.student_vocabulary, self.teacher_vocabulary)
            if best < POOR_VOCABULARY:
                messages.append(f"The vocabularies share little: at most {best:.1%} of one is in the other.")
        return tuple(messages)

    def warn(self) -> None:
        """Raise each of `warnings` as a `UserWarning`."""
        for text in self.warnings:
            warnings.warn(text, UserWarning, stacklevel=2)

    def __str__(self) -> str:
        lines = [
            f"{self.pairs} pairs in {self.sequences} sequence{'' if self.sequences == 1 else 's'}",
            _line(
                "student",
                self.student_share,
                self.student_positions,
                self.student_bytes,
                self.student_vocabulary,
            ),
            _line(
                "teacher",
                self.teacher_share,
                self.teacher_positions,
                self.teacher_bytes,
                self.teacher_vocabulary,
            ),
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)


def _line(name: str, share: float, positions: int, covered: float, vocabulary: float | None) -> str:
    line = f"{name}: {share:.1%} of {positions} positions paired, predicting {covered:.1%} of the bytes"
    return line if vocabulary is None else f"{line}; {vocabulary:.1%} of its vocabulary shared"


def report(
    student: TokenBytes | Sequence[TokenBytes],
    teacher: TokenBytes | Sequence[TokenBytes],
    *,
    student_vocabulary: Any = None,
    teacher_vocabulary: Any = None,
) -> AlignmentReport:
    """Measure how much of one text, or of several, is paired.

    Args:
        student: tokens of the student, of one text or of a sequence of texts.
        teacher: tokens of the teacher, of the same texts.
        student_vocabulary: the student's tokenizer or vocabulary, as `vocabulary_overlap` takes it; give both
            vocabularies or neither.
        teacher_vocabulary: the same for the teacher.

    Returns:
        `AlignmentReport`; print it, look at ``warnings``, or call ``warn()``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the numbers or lengths of the texts differ, or only one vocabulary is given.
    """
    if (student_vocabulary is None) != (teacher_vocabulary is None):
        missing = "student" if student_vocabulary is None else "teacher"
        raise ValueError(f"{missing}_vocabulary: expected both vocabularies or neither, got None")
    students, teachers = _sequences("student", student), _sequences("teacher", teacher)
    if len(students) != len(teachers):
        raise ValueError(f"teacher: expected {len(students)} sequences, as student, got {len(teachers)}")
    for one, other in zip(students, teachers, strict=True):
        require_one_text(one, other)
    count, covered = 0, [0, 0]
    for one, other in zip(students, teachers, strict=True):
        paired = pairs(one, other)
        count += len(paired)
        for side, tokens in enumerate((one, other)):
            predicted = paired[:, side] + 1
            covered[side] += int((tokens.ends[predicted] - tokens.starts[predicted]).sum())
    total = sum(one.total for one in students)
    overlap = (
        (None, None)
        if student_vocabulary is None
        else vocabulary_overlap(student_vocabulary, teacher_vocabulary)
    )
    return AlignmentReport(
        len(students),
        count,
        sum(max(len(one) - 1, 0) for one in students),
        sum(max(len(other) - 1, 0) for other in teachers),
        _ratio(covered[0], total),
        _ratio(covered[1], total),
        sum(not one.exact for one in students),
        sum(not other.exact for other in teachers),
        *overlap,
    )


def _sequences(name: str, value: Any) -> list[TokenBytes]:
    if isinstance(value, TokenBytes):
        return [value]
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected TokenBytes or a sequence of them, got {type(value).__name__}")
    return list(value)


def vocabulary_overlap(student: Any, teacher: Any) -> tuple[float, float]:
    """Share of each vocabulary that the other has too.

    Tokens are compared by the text that they spell, whether as ``Ġthe``, ``▁the`` or ``the``, so a leading
    space does not count. Added and special tokens of a tokenizer are left out.

    Args:
        student: a tokenizer, a mapping from token strings (``get_vocab()``), or an iterable of token strings.
        teacher: the same.

    Returns:
        Share of the student's distinct tokens, and of the teacher's; 0 for an empty vocabulary.

    Raises:
        TypeError: an argument is none of these.

    >>> vocabulary_overlap(["Ġthe", "Ġcat", "s"], {"▁the": 0, "▁dog": 1})
    (0.3333333333333333, 0.5)
    """
    one, other = _spellings("student_vocabulary", student), _spellings("teacher_vocabulary", teacher)
    common = len(one & other)
    return _ratio(common, len(one)), _ratio(common, len(other))


def _spellings(name: str, vocabulary: Any) -> set[bytes]:
    scheme = None
    words: list[Any] = [None]
    if hasattr(vocabulary, "get_vocab"):
        reader = Reader.of(vocabulary)
        words, scheme = reader.vocabulary(), reader.scheme
    elif isinstance(vocabulary, Mapping | Iterable) and not isinstance(vocabulary, str | bytes):
        words = list(vocabulary)
    if not all(isinstance(word, str | bytes) for word in words):
        raise TypeError(f"{name}: expected a tokenizer or token strings, got {type(vocabulary).__name__}")
    scheme = guess(words) if scheme is None else scheme
    spelled = {scheme.surface(word) for word in words}
    return {surface.removeprefix(b" ") or surface for surface in spelled} - {b""}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
