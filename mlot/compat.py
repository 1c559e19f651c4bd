"""What the paper's released code computes, to tell its numbers apart from the paper's.

The authors' repository departs from the paper's equations: it picks columns by rank over the whole batch,
applies a second softmax to probabilities, swaps teacher and student in the logarithmic term, transports
padded rows, and scales the Sinkhorn distance by 0.001. This module follows the repository, for
comparison only; train with `mlot.multi_level_ot`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlot import _arguments, _checks
from mlot.backends.torch.rows import compute_dtype

__all__ = ["ReleasedTerms", "released_loss", "released_terms"]

_COLUMNS = 50
_SINKHORN_ROUNDS = 10
_EPSILON = 0.1
_SEQUENCE_TEMPERATURE = 2.0
_STD_OFFSET = 1e-4
_TERM_WEIGHT = 0.1
_DISTANCE_SCALE = 0.001


@dataclass(frozen=True, eq=False)
class ReleasedTerms:
    """The released code's distillation loss and its terms, all scalars.

    Attributes:
        loss: ``factor * (had + 0.1 * sl + 0.1 * sd)``.
        had: absolute difference of the ranked columns, a mean over samples.
        sl: logarithmic term, with its second softmax and its roles swapped.
        sd: transport term, scaled by 0.001 and summed over samples.
    """

    loss: Tensor
    had: Tensor
    sl: Tensor
    sd: Tensor


def released_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    *,
    factor: float = 1.0,
    ignore_index: int = -100,
) -> Tensor:
    """Distillation loss of the released code (revision 712cfb4, option f=1), without cross-entropy.

    Args:
        student_logits: ``(B, T_s, V_s)``.
        teacher_logits: ``(B, T_t, V_t)``.
        student_labels: ``(B, T_s)`` integers, unshifted; the answer is one run of labels other than
            ``ignore_index``.
        teacher_labels: the same for the teacher, ``(B, T_t)``.
        factor: weight of the whole; the repository's configuration sets 1.5.
        ignore_index: label of positions that are no answer.

    Returns:
        A scalar, differentiable with respect to the logits; computed in float32 for lower precisions.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or shape, or a sequence has no answer.

    Source: the repository of Cui et al., AAAI 2025, described from reading and running it.
    """
    return released_terms(
        student_logits,
        teacher_logits,
        student_labels,
        teacher_labels,
        factor=factor,
        ignore_index=ignore_index,
    ).loss


def released_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_labels: Tensor,
    teacher_labels: Tensor,
    *,
    factor: float = 1.0,
    ignore_index: int = -100,
) -> ReleasedTerms:
    """Distillation loss of the released code and its terms; arguments as for `released_loss`."""
    _checks.number("factor", factor, allow_zero=True)
    _check("student", student_logits, student_labels)
    _check("teacher", teacher_logits, teacher_labels)
    _arguments.same_batch(student_logits, teacher_logits)
    student_answers = _answers("student", student_labels, ignore_index)
    teacher_answers = _answers("teacher", teacher_labels, ignore_index)
    # The student's last answer row, which predicts the end of the sequence, is left out, the teacher's not.
    student_sizes = [size - 1 for _, size in student_answers]
    teacher_sizes = [size for _, size in teacher_answers]
    longest = max(*student_sizes, *teacher_sizes)
    student = _answer_rows(student_logits, [start for start, _ in student_answers], student_sizes, longest)
    teacher = _answer_rows(teacher_logits, [start for start, _ in teacher_answers], teacher_sizes, longest)
    width = min(_COLUMNS, max(student.shape[2], teacher.shape[2]))
    student, teacher = _ranked_columns(student, width), _ranked_columns(teacher, width)

    had = torch.stack(
        [
            (s[:rows] - t[:rows]).abs().sum(-1).mean()
            for s, t, rows in zip(student, teacher, map(min, student_sizes, teacher_sizes), strict=True)
        ]
    ).mean()
    rows = min(student.shape[1], teacher.shape[1])
    sl = -(student[:, :rows].softmax(-1) * teacher[:, :rows].log_softmax(-1)).sum(-1).mean()
    sd = (
        _DISTANCE_SCALE
        * torch.stack([_transported(s, t) for s, t in zip(student, teacher, strict=True)]).sum()
    )
    return ReleasedTerms(factor * (had + _TERM_WEIGHT * sl + _TERM_WEIGHT * sd), had, sl, sd)


def _check(name: str, logits: Tensor, labels: Tensor) -> None:
    for what, value in ((f"{name}_logits", logits), (f"{name}_labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{what}: expected a torch tensor, got {type(value).__name__}")
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(
            f"{name}_logits: expected (B, T, V), none of them 0, got shape {tuple(logits.shape)}"
        )
    if not logits.is_floating_point():
        raise TypeError(f"{name}_logits: expected floating-point numbers, got {logits.dtype}")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"{name}_labels: expected shape {tuple(logits.shape[:2])}, as {name}_logits, "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name}_labels: expected integers, got {labels.dtype}")


def _answers(name: str, labels: Tensor, ignore_index: int) -> list[tuple[int, int]]:
    """First row that predicts each sequence's answer, and the number of its labels."""
    answers = []
    for n, row in enumerate((labels != ignore_index).cpu()):
        least = 2 if name == "student" else 1  # the student loses its last row
        size = int(row.sum())
        if size < least:
            raise ValueError(
                f"{name}_labels: expected at least {least} answer labels in sequence {n}, got {size}"
            )
        answers.append((max(int(row.int().argmax()) - 1, 0), size))
    return answers


def _answer_rows(logits: Tensor, starts: list[int], sizes: list[int], longest: int) -> Tensor:
    """Probabilities of standardised logits at the answer, moved to the front; zero rows after it."""
    length = min(longest, logits.shape[1])
    moved = []
    for sequence, start, size in zip(logits, starts, sizes, strict=True):
        answer = sequence[start : start + size].to(compute_dtype(sequence.dtype))
        probs = (answer / (answer.std(-1, keepdim=True) + _STD_OFFSET)).softmax(-1)
        padding = probs.new_zeros((length, probs.shape[1]))
        moved.append(torch.cat([probs, padding])[:length])
    return torch.stack(moved)


def _ranked_columns(probs: Tensor, width: int) -> Tensor:
    """The columns with the largest sums over batch and sequence together, padded by zeros to a width."""
    kept = min(width, probs.shape[2])
    columns = probs.detach().sum((0, 1)).argsort(descending=True, stable=True)[:kept]
    return torch.nn.functional.pad(probs[:, :, columns], (0, width - kept))


def _transported(student: Tensor, teacher: Tensor) -> Tensor:
    """Cost of the scaled kernel between all rows of one sample, padded ones included."""
    s = (student / _SEQUENCE_TEMPERATURE).softmax(-1)
    t = (teacher / _SEQUENCE_TEMPERATURE).softmax(-1)
    cost = (t[:, None, :] - s[None, :, :]).abs().sum(-1)
    kernel = torch.exp(-cost / _EPSILON)
    for _ in range(_SINKHORN_ROUNDS):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    return (kernel * cost).sum()
