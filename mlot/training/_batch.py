"""What a batch holds, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlot.align import TEXT_POSITION_FIELDS

#: Prefix of what is the teacher's.
TEACHER = "teacher_"
#: Marks a batch that the student wrote.
ON_POLICY = "on_policy"
#: What the models do not read. ``labels`` are unshifted, -100 at positions to ignore.
LABELS, PAIRS, TEXT_MASK, TARGET_BYTES, KEYS, TARGET_KEYS, TEXT_POSITIONS = (
    "labels",
    "pairs",
    "text_mask",
    "target_bytes",
    TEACHER + "keys",
    "target_keys",
    "text_positions",
)


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch, sorted.

    Attributes:
        student: inputs of the student's model.
        teacher: inputs of the teacher's model; of a saved teacher its token ids at most.
        labels: of the student, ``(B, T_s)``, unshifted, -100 at positions to ignore.
        teacher_labels: the same for the teacher, ``(B, T_t)``.
        pairs: ``(B, P, 2)`` positions to compare, padded by -1.
        teacher_keys: keys of a saved teacher's examples, ``(B, L)`` characters.
        target_keys: keys of saved targets, the same.
        text_mask: labels that stand for text, ``(B, T_s)`` booleans; others end a turn.
        text_positions: where the student reads in the teacher's tokens, ``(B, P, 9)``, padded by -1.
        target_bytes: bytes of text that the labels of each sequence stand for, ``(B,)``.
        on_policy: there if the student wrote the batch itself.
    """

    student: dict[str, Any]
    teacher: dict[str, Any]
    labels: Tensor
    teacher_labels: Tensor | None = None
    pairs: Tensor | None = None
    teacher_keys: Tensor | None = None
    target_keys: Tensor | None = None
    text_mask: Tensor | None = None
    target_bytes: Tensor | None = None
    on_policy: Tensor | None = None
    text_positions: Tensor | None = None

    @staticmethod
    def of(given: Mapping[str, Any]) -> Batch:
        """Sort what a collator made.

        Raises:
            ValueError: there are no labels.
        """
        rest = dict(given)
        if LABELS not in rest:
            raise ValueError(f"inputs: expected labels among them, got {', '.join(sorted(rest))}")
        names = [LABELS, TEACHER + LABELS, PAIRS, KEYS, TARGET_KEYS]
        names += [TEXT_MASK, TARGET_BYTES, TEXT_POSITIONS, ON_POLICY]
        ours = {name: rest.pop(name, None) for name in names}
        teacher = {name: rest.pop(name) for name in list(rest) if name.startswith(TEACHER)}
        made = Batch(
            student=rest,
            teacher={name.removeprefix(TEACHER): value for name, value in teacher.items()},
            **ours,
        )
        if made.packed:
            # With a cache, models of transformers take a row for one sequence, whatever its positions.
            for inputs in (made.student, made.teacher):
                inputs |= {"use_cache": False} if inputs else {}
        return made

    @property
    def packed(self) -> bool:
        """Whether rows hold several sequences: their positions, and no mask, say where each begins."""
        return "position_ids" in self.student and "attention_mask" not in self.student

    @property
    def targets(self) -> Tensor:
        """Number of tokens that the student is asked to predict."""
        return self.labels[:, 1:].ne(-100).sum()


def padded(rows: Sequence[Any], value: int, side: str, multiple: int | None) -> Tensor:
    """Rows of integers as one tensor, with a value on one side of those that are shorter.

    Args:
        rows: the rows.
        value: what pads.
        side: ``"right"`` or ``"left"``.
        multiple: what the length is a multiple of; ``None``: any.
    """
    mask = _mask(rows, side, multiple)
    table = np.full(mask.shape, value)
    if len(rows):
        table[mask] = np.concatenate(rows)
    return torch.from_numpy(table)


def attention_mask(rows: Sequence[Any], side: str, multiple: int | None) -> Tensor:
    """1 where `padded` has a row, and 0 where it has what pads."""
    return torch.from_numpy(_mask(rows, side, multiple).astype(np.int64))


def _mask(rows: Sequence[Any], side: str, multiple: int | None) -> NDArray[np.bool_]:
    counts = np.array([len(row) for row in rows], np.int64)[:, None]
    longest = counts.max(initial=1)
    if multiple is not None:
        longest = -(-longest // multiple) * multiple
    place = np.arange(longest)
    mask: NDArray[np.bool_] = place < counts if side == "right" else place >= longest - counts
    return mask


def listed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Columns as lists, but for the rows of the plan from the text."""
    arrays = {name for name, value in row.items() if isinstance(value, np.ndarray)} - {TEXT_POSITIONS}
    return {name: value.tolist() if name in arrays else value for name, value in row.items()}


def packed_batch(rows: Sequence[Mapping[str, Any]], pairs: str, *, with_teacher: bool) -> dict[str, Tensor]:
    """Examples one after the other in one row, without padding, with positions that start again at each."""
    batch: dict[str, Tensor] = {}
    starts = np.zeros((len(rows), 2), np.int64)
    for side, prefix in enumerate(("", TEACHER) if with_teacher else ("",)):
        lengths = np.array([len(row[prefix + "input_ids"]) for row in rows])
        starts[:, side] = np.cumsum(lengths) - lengths
        for name in ("input_ids", LABELS):
            batch[prefix + name] = _in_one_row([row[prefix + name] for row in rows])
        batch[prefix + LABELS][0, torch.from_numpy(starts[:, side])] = -100
        batch[prefix + "position_ids"] = _in_one_row([np.arange(length) for length in lengths])
    batch[TEXT_MASK] = _in_one_row([row[TEXT_MASK] for row in rows]).bool()
    batch[TARGET_BYTES] = torch.tensor([sum(row[TARGET_BYTES] for row in rows)])
    if pairs != "index":
        name = PAIRS if pairs == "boundary" else TEXT_POSITIONS
        width = 2 if name == PAIRS else len(TEXT_POSITION_FIELDS)
        moved = [np.array(row[name], np.int64).reshape(-1, width) for row in rows]
        for part, start in zip(moved, starts, strict=True):
            part[:, :2] += start
        batch[name] = _in_one_row(moved)
    return batch


def _in_one_row(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts])[None])
