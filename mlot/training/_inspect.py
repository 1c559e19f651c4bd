"""What the loss sees of one example, to be shown: alignment, transport plan, matched traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import mlot
from mlot import MultiLevelOTConfig, MultiLevelOTResult, Traces
from mlot.align._draw import printable
from mlot.align._reader import Reader
from mlot.align._scheme import guess
from mlot.backends.torch.standardize import standardizing_divisor
from mlot.training._batch import Batch
from mlot.training._windows import Examples

#: The example shown is that whose longer tokenization is nearest to so many tokens; of one with more than the
#: most, the beginning is shown.
_WANTED, _MOST = 26, 40
#: Matched columns that are shown.
_COLUMNS = 24
#: Examples whose diagnostics are taken, and how many at once.
_SAMPLE, _AT_ONCE = 32, 8

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """Tokens from one paired position to the next, as text that can be shown; ``paired``: one ends it."""

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    paired: bool


@dataclass(frozen=True)
class Match:
    """A column of the teacher and the student's matched with it.

    Attributes:
        teacher: the teacher's token.
        student: the student's token.
        teacher_mass: probability that the teacher gives it, summed over the paired positions.
        student_mass: the same for the student.
        distance: absolute difference, summed over the paired positions: what the match adds to HAD.
    """

    teacher: str
    student: str
    teacher_mass: float
    student_mass: float
    distance: float


@dataclass(frozen=True, eq=False)
class Pictures:
    """One example as both models see it; every text is made fit to be shown.

    Attributes:
        cut: whether only the beginning is shown.
        seen_in_training: whether the student was trained on it.
        segments: its tokens in both tokenizations.
        student_tokens: tokens that the student's positions predict, ``(T_s,)``.
        teacher_tokens: the same for the teacher, ``(T_t,)``.
        plan: share of each teacher position's mass that goes to each of the student's, ``(T_t, T_s)``.
        matches: matched columns, the teacher's heaviest first.
        teacher_traces: the teacher's probabilities at paired positions, ``(matches, P)``.
        student_traces: the student's.
        paired_tokens: tokens that the paired positions predict, as the teacher cuts them, ``(P,)``.
    """

    cut: bool
    seen_in_training: bool
    segments: tuple[Segment, ...]
    student_tokens: tuple[str, ...]
    teacher_tokens: tuple[str, ...]
    plan: Floats
    matches: tuple[Match, ...]
    teacher_traces: Floats
    student_traces: Floats
    paired_tokens: tuple[str, ...]


def predicted_by(
    teacher: Any, examples: Examples, indices: Sequence[int]
) -> tuple[Tensor | Traces, Tensor | None]:
    """A teacher's predictions for some examples, and the mask of those that count unless traces bring it."""
    rows = [examples[n] for n in indices]
    if hasattr(teacher, "manifest"):
        return teacher.batch([row["teacher_key"] for row in rows], backend="torch"), None
    batch = examples.collator(rows)
    inputs = {name: batch["teacher_" + name].to(teacher.device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = teacher.eval()(**inputs).logits
    return logits, mlot.mask_from_labels(batch["teacher_labels"].to(teacher.device))


def known_to(teacher: Any, examples: Examples) -> list[int]:
    """Examples that a teacher has predictions for: all, unless it is saved."""
    if not hasattr(teacher, "manifest"):
        return list(range(len(examples)))
    keys = examples.keys()
    missing = set(teacher.missing(keys))
    return [n for n, key in enumerate(keys) if key not in missing]


class Painter:
    """Compares a trained student with its teacher on some examples, as the loss does.

    Args:
        model: the trained student.
        tokenizers: of the student and of the teacher.
        examples: in the student's tokens, with pairs.
        teacher: a causal language model, or a saved teacher.
        config: settings of the loss.
        boundary: whether HAD and SL compare positions that have read the same bytes, or by index.
    """

    def __init__(
        self,
        model: Any,
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
        examples: Examples,
        teacher: Any,
        config: MultiLevelOTConfig,
        *,
        boundary: bool,
    ) -> None:
        self._model = model
        self._examples = examples
        self._tokenizers = tokenizers
        self._teacher = teacher
        self._config = config
        self._boundary = boundary

    def diagnostics(self, indices: Sequence[int]) -> dict[str, Floats]:
        """What `mlot.MultiLevelOTResult.diagnostics` says of each of some examples, at most 32."""
        collected: dict[str, list[Floats]] = {}
        some = list(indices)[:_SAMPLE]
        for start in range(0, len(some), _AT_ONCE):
            _, _, result = self._compare(some[start : start + _AT_ONCE])
            for name, values in vars(result.diagnostics()).items():
                collected.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in collected.items()}

    def paint(self, indices: Sequence[int], *, seen_in_training: bool = False) -> Pictures:
        """Make the pictures of that example which can be read best, neither too short nor too long."""
        index = min(indices, key=lambda n: abs(_size(self._examples[n]) - _WANTED))
        row = self._examples[index]
        aligned = np.asarray(row["pairs"], np.int64).reshape(-1, 2)
        student = _Side.of(self._tokenizers[0], row["input_ids"], row["labels"])
        teacher = _Side.of(self._tokenizers[1], row["teacher_input_ids"], row["teacher_labels"])
        compared = aligned if self._boundary else _by_index(student, teacher)
        ends = student.first(_MOST), teacher.first(_MOST)
        within = aligned[(aligned < ends).all(axis=1)]
        cut = max(len(student.valid), len(teacher.valid)) > _MOST and len(within) > 0
        if cut:  # to where both have read the same
            ends = int(within[-1, 0]), int(within[-1, 1])
        drawn = segments(student, teacher, within if cut else aligned)
        rows, columns = teacher.valid[teacher.valid < ends[1]], student.valid[student.valid < ends[0]]
        shown = compared[(compared < ends).all(axis=1)]
        logits, traces, result = self._compare([index])
        plan = _host(result.plan)[0] * int(_host(traces.mask).sum())
        matched = _host(_matched(result))[0].astype(np.int64)
        kept = _host(result.teacher_columns)[0].astype(np.int64)
        taught = np.exp(_host(traces.log_probs)[0])[:, : len(kept)]
        scores = logits[0].double()
        if self._config.standardize:
            scores = scores / standardizing_divisor(scores, scores.dtype)
        learned = _host(torch.softmax(scores / self._config.temperature, dim=-1)[:, matched])
        few = slice(0, _COLUMNS)
        return Pictures(
            cut=cut,
            seen_in_training=seen_in_training,
            segments=drawn[:-1] if cut else drawn,
            student_tokens=student.predicted(columns),
            teacher_tokens=teacher.predicted(rows),
            plan=plan[np.ix_(rows, columns)],
            matches=self._matches(kept, matched, taught, learned, compared)[few],
            teacher_traces=taught[shown[:, 1]].T[few],
            student_traces=learned[shown[:, 0]].T[few],
            paired_tokens=teacher.predicted(shown[:, 1]),
        )

    @torch.no_grad()
    def _compare(self, indices: Sequence[int]) -> tuple[Tensor, Traces, MultiLevelOTResult]:
        """The student's logits, the teacher's traces, and the loss of the two."""
        config = self._config
        model = self._model
        made = self._examples.collator([self._examples[n] for n in indices])
        batch = Batch.of({name: tensor.to(model.device) for name, tensor in made.items()})
        logits = model.eval()(**batch.student).logits
        source, mask = predicted_by(self._teacher, self._examples, indices)
        traces = mlot.select(
            source,
            mask,
            k=config.k,
            temperature=config.temperature,
            extra_temperatures=(config.sequence_temperature,),
            standardize=config.standardize,
        ).map(lambda array: array.to(model.device))
        result = mlot.multi_level_ot(
            logits,
            traces,
            student_mask=mlot.mask_from_labels(batch.labels),
            pairs=batch.pairs if self._boundary else None,
            config=config,
            return_plan=True,
        )
        return logits, traces, result

    def _matches(
        self, taught: Integers, learned: Integers, teacher: Floats, student: Floats, compared: Integers
    ) -> tuple[Match, ...]:
        teacher, student = teacher[compared[:, 1]], student[compared[:, 0]]
        distances = np.abs(teacher - student).sum(axis=0)
        names = spell(self._tokenizers[1], taught), spell(self._tokenizers[0], learned)
        rows = zip(*names, teacher.sum(axis=0), student.sum(axis=0), distances, strict=True)
        return tuple(Match(one, other, *map(float, numbers)) for one, other, *numbers in rows)


@dataclass(frozen=True, eq=False)
class _Side:
    """One model's tokens as they can be shown, and the positions whose prediction counts."""

    tokens: list[str]
    valid: Integers

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, ids: Any, labels: Any) -> _Side:
        asked = np.asarray(labels)[1:] != -100
        return _Side(spell(tokenizer, np.asarray(ids, np.int64)), np.flatnonzero(asked))

    def predicted(self, positions: Integers) -> tuple[str, ...]:
        """The tokens that some positions predict."""
        return tuple(self.tokens[t + 1] for t in positions.tolist())

    def first(self, count: int) -> int:
        """The position after the first so many that count."""
        return int(self.valid[min(count, len(self.valid)) - 1]) + 1 if len(self.valid) else 0


def _size(row: Any) -> int:
    """Tokens that are asked for, in the longer tokenization."""
    return max(int((np.asarray(row[name]) != -100).sum()) for name in ("labels", "teacher_labels"))


def _by_index(student: _Side, teacher: _Side) -> Integers:
    count = min(len(student.valid), len(teacher.valid))
    return np.stack([student.valid[:count], teacher.valid[:count]], axis=1)


def segments(student: _Side, teacher: _Side, aligned: Integers) -> tuple[Segment, ...]:
    """Cut two tokenizations where positions are paired, from the token before the first that is asked for."""
    parts = []
    for side, positions in ((student, aligned[:, 0]), (teacher, aligned[:, 1])):
        first = int(side.valid[0]) if len(side.valid) else 0
        cuts = [first, *(positions + 1).tolist(), len(side.tokens)]
        parts.append([tuple(side.tokens[a:b]) for a, b in pairwise(cuts)])
    both = zip(*parts, strict=True)
    cells = [Segment(one, other, n < len(aligned)) for n, (one, other) in enumerate(both)]
    return tuple(part for part in cells if part.student or part.teacher)


def spell(tokenizer: PreTrainedTokenizerBase, columns: Integers) -> list[str]:
    """Tokens of some vocabulary columns as text that can be shown."""
    reader = Reader(tokenizer)
    scheme = guess(reader.vocabulary()) if reader.scheme is None else reader.scheme
    names = []
    for column, token in zip(columns.tolist(), reader.tokens(columns.tolist()), strict=True):
        if token is None:  # a column that pads the model's vocabulary
            names.append(f"#{column}")
        else:
            added = reader.added.get(column)
            names.append(printable(scheme.surface(token) if added is None else added.encode()))
    return names


def _matched(result: MultiLevelOTResult) -> Any:
    """Student column for each of the teacher's; of a soft plan, the one that has most of it."""
    if result.coupling is None:
        return result.student_columns
    return torch.gather(result.student_columns, 1, result.coupling.argmax(dim=-1))


def _host(value: Any) -> Any:
    return value.detach().double().cpu().numpy()
