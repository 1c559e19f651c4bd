"""Several sequences in one row, as collators without padding make them: the part of each, without copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlot._composite import Composite
from mlot._result import MultiLevelOTResult
from mlot.config import MultiLevelOTConfig
from mlot.divergences import weighted
from mlot.sources import LinearHead
from mlot.text import TextPositions, TextTargets


class Span(NamedTuple):
    """A sequence: from one position to another in the positions of all rows, and its row's first position."""

    start: int
    stop: int
    row: int
    row_start: int


class Part(NamedTuple):
    """What belongs to one sequence."""

    student: Any
    teacher: Any
    student_labels: Tensor
    teacher_labels: Tensor | None
    pairs: Tensor | None
    text: TextPositions | None


def spans_of(name: str, position_ids: Any, shape: tuple[int, int]) -> list[Span]:
    """The sequences of all rows: one begins wherever positions do not go on by 1.

    Single tokens at the end of a row are padding, as collators write it that pad rows to a length.

    Raises:
        TypeError, ValueError: there are no integers ``(B, T)``.
    """
    if not isinstance(position_ids, Tensor) or position_ids.is_floating_point():
        kind = getattr(position_ids, "dtype", type(position_ids).__name__)
        raise TypeError(f"{name}: expected a torch tensor of integers, got {kind}")
    if tuple(position_ids.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(position_ids.shape)}")
    length, spans = shape[1], []
    for row, places in enumerate(position_ids.tolist()):
        starts = [n for n in range(length) if n == 0 or places[n] != places[n - 1] + 1]
        stops = [*starts[1:], length]
        while len(starts) > 1 and stops[-1] - starts[-1] == 1:
            starts.pop()
            stops.pop()
        first = row * length
        spans += [
            Span(first + start, first + stop, row, first) for start, stop in zip(starts, stops, strict=True)
        ]
    return spans


def parts_of(
    student: Any,
    teacher: Any,
    student_labels: Tensor,
    teacher_labels: Any,
    student_position_ids: Any,
    teacher_position_ids: Any,
    pairs: Tensor | None,
    text: TextPositions | None,
) -> list[Part]:
    """The part of each sequence, logits as views.

    Raises:
        TypeError, ValueError: positions of the wrong kind or shape, or other sequences on the other side.
    """
    shape = (int(student_labels.shape[0]), int(student_labels.shape[1]))
    student_spans = spans_of("student_position_ids", student_position_ids, shape)
    teacher_spans = None
    if teacher_position_ids is not None and not isinstance(teacher, TextTargets):
        rows, length = (teacher if teacher_labels is None else teacher_labels).shape[:2]
        teacher_spans = spans_of("teacher_position_ids", teacher_position_ids, (int(rows), int(length)))
    elif isinstance(teacher, TextTargets):
        teacher_spans = student_spans
    elif not _by_sequence(teacher):
        raise ValueError("teacher_position_ids: expected integers (B, T_t), as for the student, got None")
    if teacher_spans is not None and len(teacher_spans) != len(student_spans):
        raise ValueError(
            f"teacher_position_ids: expected {len(student_spans)} sequences, as student_position_ids, "
            f"got {len(teacher_spans)}"
        )
    if teacher_spans is None and teacher.shape[0] != len(student_spans):
        raise ValueError(
            f"teacher_logits: expected a row for each of {len(student_spans)} sequences, "
            f"got {teacher.shape[0]}"
        )
    given = [None] * len(student_spans)
    students, labels = _split(student, student_spans), _split(student_labels, student_spans)
    others: list[Any] = list(given)
    if teacher_spans is None:
        sources = [_row(teacher, n) for n in range(len(student_spans))]
    else:
        sources = _split(teacher, student_spans if isinstance(teacher, TextTargets) else teacher_spans)
        if teacher_labels is not None:
            others = _split(teacher_labels, teacher_spans)
    some_pairs: list[Any] = list(given)
    texts: list[Any] = list(given)
    if pairs is not None:
        some_pairs = _rows_of(pairs, student_spans, teacher_spans)
    if text is not None:
        assert teacher_spans is not None
        ids = _split(text.teacher_ids, teacher_spans)
        rows = _rows_of(text.rows, student_spans, teacher_spans)
        texts = [TextPositions(row, each, text.plan) for row, each in zip(rows, ids, strict=True)]
    made = zip(students, sources, labels, others, some_pairs, texts, strict=True)
    return [Part(*each) for each in made]


def summed(
    terms: Callable[..., Any],
    parts: list[Part],
    config: MultiLevelOTConfig,
    num_items: float | Tensor | None,
) -> tuple[Tensor, MultiLevelOTResult | None, tuple[MultiLevelOTResult, ...]]:
    """Cross-entropy and transport of all sequences, each divided as for a row each, and of each its sums."""
    made = [terms(*part[:4], 1.0, pairs=part.pairs, text=part.text) for part in parts]
    results = tuple(each.ot for each in made if isinstance(each.ot, MultiLevelOTResult))
    count: Any = num_items
    if num_items is None:
        count = torch.cat([part.student_labels[0, 1:] for part in parts]).ne(-100).sum().clamp(min=1)
    nll = torch.stack([each.cross_entropy for each in made]).sum() / count
    return nll, merged(results, config, num_items) if results else None, results


def merged(
    results: tuple[MultiLevelOTResult, ...], config: MultiLevelOTConfig, num_items: float | Tensor | None
) -> MultiLevelOTResult:
    """The result of a batch from those of its sequences, which are sums; see ``reduction="mean"``."""
    evidence = [each._evidence for each in results]
    pairs, positions = (
        torch.cat([getattr(each, name) for each in evidence]) for name in ("pairs", "student_positions")
    )
    terms = []
    for name, counts in (("had", pairs), ("sl", pairs), ("sd", positions)):
        divisor = counts.sum().clamp(min=1) if num_items is None else num_items
        terms.append(torch.stack([getattr(each, name) for each in results]).sum() / divisor)
    weights = (config.had_weight, config.sl_weight, config.sd_weight)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(each, name) for each in evidence])
        for name in ("teacher_mass", "student_mass", "teacher_positions", "marginal_error", "served_mass")
    }
    return MultiLevelOTResult(
        weighted(tuple(zip(weights, terms, strict=True))),
        had=terms[0],
        sl=terms[1],
        sd=terms[2],
        teacher_columns=torch.cat([each.teacher_columns for each in results]),
        student_columns=torch.cat([each.student_columns for each in results]),
        _evidence=replace(evidence[0], pairs=pairs, student_positions=positions, match=None, **joined),
    )


def _by_sequence(source: Any) -> bool:
    """Whether a source has a row for each sequence, as saved ones do."""
    return isinstance(source, Composite) and not isinstance(source, LinearHead | TextTargets)


def _row(source: Any, n: int) -> Any:
    return source.map(lambda array: array[n : n + 1])


def _positions_of(array: Tensor, span: Span) -> Tensor:
    return array.flatten(0, 1)[span.start : span.stop][None]


def _split(source: Any, spans: list[Span]) -> list[Any]:
    """Views of the positions of each sequence, ``(1, T_n, ...)``."""
    if isinstance(source, LinearHead):
        return [replace(source, hidden=part) for part in _split(source.hidden, spans)]
    if isinstance(source, TextTargets):
        return [source.map(partial(_positions_of, span=span)) for span in spans]
    # Backward, a split puts all gradients together once; slices would add up arrays of the whole size.
    flat = source.squeeze(0) if source.shape[0] == 1 else source.flatten(0, 1)
    lengths, at = [], 0
    for span in spans:
        lengths += [span.start - at, span.stop - span.start]
        at = span.stop
    pieces = flat.split([*lengths, len(flat) - at])
    return [piece[None] for piece in pieces[1::2]]


def _rows_of(rows: Tensor, student: list[Span], teacher: list[Span] | None) -> list[Tensor]:
    """Rows that begin with two positions, of each sequence and counted from its start."""
    host, made = rows.cpu(), []
    for n, span in enumerate(student):
        row = host[span.row]
        place = row[:, 0] + span.row_start
        mine = row[(row[:, 0] >= 0) & (place >= span.start) & (place < span.stop)].clone()
        mine[:, 0] -= span.start - span.row_start
        if teacher is not None:
            mine[:, 1] -= teacher[n].start - teacher[n].row_start
        made.append(mine[None].to(rows.device))
    return made
