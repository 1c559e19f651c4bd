"""Modules for training loops: cross-entropy plus a distillation term, from logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mlot import _arguments, _checks
from mlot._composite import Composite
from mlot._packing import parts_of, summed
from mlot._result import MultiLevelOTResult
from mlot._student_pass import StudentPass
from mlot.backends import get_backend
from mlot.config import MultiLevelOTConfig, checked_config, default_alpha
from mlot.divergences import uld
from mlot.losses import multi_level_ot
from mlot.masks import mask_from_labels
from mlot.sources import LinearHead
from mlot.teachers import MultiTeacherResult, Teacher, multi_teacher_ot
from mlot.text import TextPositions

__all__ = ["DistillationTerms", "MultiLevelOTLoss", "ULDLoss"]

#: What a student of `MultiLevelOTLoss` can be.
StudentLogits: TypeAlias = Tensor | Composite

#: What a teacher of `MultiLevelOTLoss` can be: one source, or several weighted ones.
TeacherLogits: TypeAlias = Tensor | Composite | Sequence[Teacher]


@dataclass(frozen=True, eq=False)
class DistillationTerms:
    """A training loss and what it is made of.

    Attributes:
        loss: cross-entropy plus the weighted distillation term, a scalar.
        cross_entropy: mean negative log-likelihood of the student's targets, a scalar.
        distillation: the distillation term before its weight, a scalar.
        ot: everything that `mlot.multi_level_ot` (or `mlot.multi_teacher_ot`) returned, where that is the
            distillation term.
        sequences: of several sequences in one row, what it returned for each, not reduced.
    """

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    ot: MultiLevelOTResult | MultiTeacherResult | None = None
    sequences: tuple[MultiLevelOTResult, ...] = ()


class MultiLevelOTLoss(nn.Module):
    r"""Cross-entropy plus multi-level optimal transport (eq. 21).

    .. math:: \mathcal L = \mathrm{CE} + \alpha\,(\mathrm{HAD} + \beta\,\mathrm{SL} + \gamma\,\mathrm{SD})

    Both parts are means over positions, as `mlot.multi_level_ot` with ``reduction="mean"``.

    Args:
        config: settings of the transport; ``None`` means the paper's.
        alpha: weight of the distillation term; with 0 it is not computed. ``None``: the paper's 0.15, and 1
            for ``matching="text"``.
        overwrite_logits: write the gradient of dense logits into their own memory, which spares one array of
            their size. The logits are gone after the backward pass; whatever else needs them there, and a
            second backward pass, is refused by autograd. Without effect with ``standardize=True`` and other
            settings that take several passes over the student, and in compiled code.

    Raises:
        TypeError, ValueError: a setting is of the wrong kind or out of range.

    Source: Cui et al., AAAI 2025.

    >>> import torch, mlot.nn
    >>> criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=8))
    >>> student, teacher = torch.randn(2, 5, 30, requires_grad=True), torch.randn(2, 7, 40)
    >>> loss = criterion(student, teacher, torch.randint(30, (2, 5)), torch.randint(40, (2, 7)))
    >>> loss.backward()
    """

    def __init__(
        self,
        config: MultiLevelOTConfig | None = None,
        alpha: float | None = None,
        *,
        overwrite_logits: bool = False,
    ) -> None:
        super().__init__()
        self.config = checked_config(config)
        self.alpha = default_alpha(self.config) if alpha is None else alpha
        _checks.number("alpha", self.alpha, allow_zero=True)
        _checks.flag("overwrite_logits", overwrite_logits)
        self.overwrite_logits = overwrite_logits

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, config={self.config}"

    def forward(
        self,
        student_logits: StudentLogits,
        teacher_logits: TeacherLogits,
        student_labels: Tensor,
        teacher_labels: Tensor | Sequence[Tensor | None] | None = None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
        text: TextPositions | None = None,
        student_columns: Tensor | None = None,
        student_position_ids: Tensor | None = None,
        teacher_position_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `terms`."""
        rest: dict[str, Any] = {"pairs": pairs, "text": text, "student_columns": student_columns}
        rest |= {"student_position_ids": student_position_ids, "teacher_position_ids": teacher_position_ids}
        return self.terms(
            student_logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch, **rest
        ).loss

    def terms(
        self,
        student_logits: StudentLogits,
        teacher_logits: TeacherLogits,
        student_labels: Tensor,
        teacher_labels: Tensor | Sequence[Tensor | None] | None = None,
        num_items_in_batch: float | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
        text: TextPositions | None = None,
        student_columns: Tensor | None = None,
        student_position_ids: Tensor | None = None,
        teacher_position_ids: Tensor | None = None,
    ) -> DistillationTerms:
        """Compute the loss and its terms.

        Args:
            student_logits: ``(B, T_s, V_s)`` logits, a `mlot.LinearHead`, or a
                `mlot.distributed.VocabShard` of either.
            teacher_logits: the same of the teacher, ``(B, T_t, V_t)``, `mlot.TopKLogprobs`, `mlot.Traces`
                saved earlier, `mlot.TextTargets`, or a sequence of `mlot.Teacher`.
            student_labels: ``(B, T_s)`` integers, unshifted, -100 where the token is no target.
            teacher_labels: the same for the teacher, ``(B, T_t)``; ``None`` for traces, which know their
                mask, and for top-k log-probabilities, of which the positions with an entry count. With
                several teachers ``None``, or labels or ``None`` for each: those without use their own
                ``mask``.
            num_items_in_batch: number of positions to divide every mean by instead of those of this batch:
                what transformers' ``Trainer`` passes under gradient accumulation.
            pairs: ``(B, P, 2)`` integers ``[student, teacher]``, padded by -1; ``None`` pairs by index.
                Several teachers bring their own.
            text: with ``matching="text"``, where the student reads in the teacher's tokens.
            student_columns: a matching to use in place of one that is computed; see `mlot.multi_level_ot`.
            student_position_ids: of several sequences in one row, ``(B, T_s)`` integers that start again
                where a sequence does; each counts as if it had a row for itself.
            teacher_position_ids: the same for the teacher, ``(B, T_t)``, whose sequences come in the same
                order; ``None`` for traces and the like with a row for each sequence.

        Returns:
            `DistillationTerms`.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, shape or range.
        """
        if student_position_ids is not None:
            if _several(teacher_logits) or student_columns is not None:
                raise ValueError(
                    "student_position_ids: expected None with several teachers or student_columns, got some"
                )
            _student_mask(student_logits, student_labels, num_items_in_batch)
            sides = (student_logits, teacher_logits, student_labels, teacher_labels)
            places = (student_position_ids, teacher_position_ids)
            parts = parts_of(*sides, *places, pairs, text)
            nll, whole, each = summed(self.terms, parts, self.config, num_items_in_batch)
            return replace(self._sum(nll, whole), sequences=each)
        if teacher_position_ids is not None:
            raise ValueError("teacher_position_ids: expected None without student_position_ids, got some")
        if _several(teacher_logits):
            for name, value in (("text", text), ("student_columns", student_columns)):
                if value is not None:
                    raise ValueError(f"{name}: expected None with several teachers, got it for one")
            return self._several(
                student_logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch, pairs
            )
        student_mask, teacher_mask = _masks(
            student_logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch
        )
        ot, student = None, self._pass(student_logits, student_labels, student_mask)
        if self.alpha:
            ot = multi_level_ot(
                student,
                teacher_logits,
                student_mask=student_mask,
                teacher_mask=teacher_mask,
                pairs=pairs,
                config=self.config,
                num_items=num_items_in_batch,
                text=text,
                student_columns=student_columns,
            )
        return self._sum(_mean_nll(student, num_items_in_batch), ot)

    def _pass(self, logits: StudentLogits, labels: Tensor, mask: Tensor) -> StudentPass:
        return StudentPass(logits, _next(labels), mask, overwrite=self.overwrite_logits)

    def _several(
        self,
        student: StudentLogits,
        teachers: Any,
        student_labels: Tensor,
        teacher_labels: Any,
        num_items: float | Tensor | None,
        pairs: Tensor | None,
    ) -> DistillationTerms:
        """Cross-entropy once, and transport from every teacher."""
        if pairs is not None:
            raise ValueError("pairs: expected None with several teachers, each of which brings its own")
        student_mask, masked = _masks_of_several(student, teachers, student_labels, teacher_labels, num_items)
        ot, once = None, self._pass(student, student_labels, student_mask)
        if self.alpha:
            ot = multi_teacher_ot(
                once, masked, student_mask=student_mask, config=self.config, num_items=num_items
            )
        return self._sum(_mean_nll(once, num_items), ot)

    def _sum(self, nll: Tensor, ot: MultiLevelOTResult | MultiTeacherResult | None) -> DistillationTerms:
        if ot is None:
            return DistillationTerms(nll, nll, torch.zeros_like(nll))
        return DistillationTerms(nll + self.alpha * ot.loss, nll, ot.loss, ot)


class ULDLoss(nn.Module):
    r"""Cross-entropy plus universal logit distillation.

    .. math:: \mathcal L = \mathrm{CE} + \alpha\,\mathrm{ULD}

    Args:
        alpha: weight of ULD; with 0 it is not computed.

    Raises:
        TypeError, ValueError: ``alpha`` is no number, or negative.

    Source: Boizard et al., arXiv 2402.12030.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        _checks.number("alpha", alpha, allow_zero=True)
        self.alpha = alpha

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"

    def forward(
        self,
        student_logits: Tensor | LinearHead,
        teacher_logits: Tensor | LinearHead,
        student_labels: Tensor,
        teacher_labels: Tensor,
        num_items_in_batch: float | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `terms`."""
        return self.terms(
            student_logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch, pairs=pairs
        ).loss

    def terms(
        self,
        student_logits: Tensor | LinearHead,
        teacher_logits: Tensor | LinearHead,
        student_labels: Tensor,
        teacher_labels: Tensor,
        num_items_in_batch: float | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
    ) -> DistillationTerms:
        """Compute the loss and its terms; arguments as for `MultiLevelOTLoss.terms`, but no traces."""
        student_mask, teacher_mask = _masks(
            student_logits, teacher_logits, student_labels, teacher_labels, num_items_in_batch
        )
        distance = None
        if self.alpha:
            distance = uld(
                student_logits,
                teacher_logits,
                student_mask=student_mask,
                teacher_mask=teacher_mask,
                pairs=pairs,
                num_items=num_items_in_batch,
            )
        nll = mean_cross_entropy(student_logits, student_labels, student_mask, num_items_in_batch)
        if distance is None:
            return DistillationTerms(nll, nll, torch.zeros_like(nll))
        return DistillationTerms(nll + self.alpha * distance, nll, distance)


def _masks(
    student: StudentLogits,
    teacher: Any,
    student_labels: Tensor,
    teacher_labels: Any,
    num_items: float | Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Check labels against what they belong to, and turn them into masks."""
    student_mask = _student_mask(student, student_labels, num_items)
    if teacher_labels is None:
        if not (isinstance(teacher, Composite) and teacher._knows_mask):
            raise TypeError(
                "teacher_labels: expected integers (B, T_t), got None without traces for a teacher"
            )
        return student_mask, None
    return student_mask, _mask_of("teacher_labels", teacher_labels, teacher, "teacher_logits")


def _several(teacher: Any) -> bool:
    """Whether a teacher is a sequence of them."""
    return isinstance(teacher, Sequence) and not isinstance(teacher, str)


def _masks_of_several(
    student: StudentLogits,
    teachers: Sequence[Teacher],
    student_labels: Tensor,
    teacher_labels: Any,
    num_items: float | Tensor | None,
) -> tuple[Tensor, list[Teacher]]:
    """The student's mask, and the teachers with theirs."""
    student_mask = _student_mask(student, student_labels, num_items)
    if teacher_labels is None:
        teacher_labels = [None] * len(teachers)
    if not _several(teacher_labels) or len(teacher_labels) != len(teachers):
        got = f"{len(teacher_labels)}" if _several(teacher_labels) else type(teacher_labels).__name__
        raise ValueError(
            f"teacher_labels: expected None or one (labels or None) for each of {len(teachers)} teachers, "
            f"got {got}"
        )
    masked = []
    for m, (teacher, labels) in enumerate(zip(teachers, teacher_labels, strict=True)):
        if not isinstance(teacher, Teacher):
            raise TypeError(f"teacher_logits[{m}]: expected a mlot.Teacher, got {type(teacher).__name__}")
        name = f"teacher_labels[{m}]"
        if labels is None:
            known = isinstance(teacher.source, Composite) and teacher.source._knows_mask
            if teacher.mask is None and not known:
                raise TypeError(f"{name}: expected integers (B, T_t), got None for a Teacher without a mask")
            masked.append(teacher)
            continue
        if teacher.mask is not None:
            raise ValueError(f"{name}: expected None for a Teacher with a mask of its own, got labels")
        mask = _mask_of(name, labels, teacher.source, f"teacher_logits[{m}].source")
        masked.append(replace(teacher, mask=mask))
    return student_mask, masked


def _student_mask(student: StudentLogits, labels: Tensor, num_items: float | Tensor | None) -> Tensor:
    _arguments.num_items(num_items)
    if not (isinstance(student, Composite) and student._reads):
        _arguments.whole_source("student_logits", student, "cross-entropy needs them")
    return _mask_of("student_labels", labels, student, "student_logits")


def _mask_of(name: str, labels: Any, source: Any, of: str) -> Tensor:
    """Check labels against a source, and turn them into its mask."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(labels).__name__}")
    if not hasattr(source, "shape"):
        raise TypeError(f"{of}: expected an array or a source, got {type(source).__name__}")
    if tuple(labels.shape) != tuple(source.shape[:2]):
        raise ValueError(
            f"{name}: expected shape {tuple(source.shape[:2])}, as {of}, got {tuple(labels.shape)}"
        )
    if get_backend("torch").kind(labels) != "integer":
        raise TypeError(f"{name}: expected integers, got {labels.dtype}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        # elsewhere looking would wait for the device
        targets, vocabulary = labels[:, 1:], int(source.shape[2])
        wrong = targets[(targets != -100) & ((targets < 0) | (targets >= vocabulary))]
        if len(wrong):
            raise ValueError(f"{name}: expected -100 or 0 to {vocabulary - 1}, got {int(wrong[0])}")
    mask: Tensor = mask_from_labels(labels)
    return mask


def _next(labels: Tensor) -> Tensor:
    """The label that each position predicts; the last position predicts none."""
    return torch.cat([labels[:, 1:], labels[:, :1]], dim=1)


def mean_cross_entropy(
    source: StudentLogits, labels: Tensor, mask: Tensor, num_items: float | Tensor | None
) -> Tensor:
    return _mean_nll(StudentPass(source, _next(labels), mask), num_items)


def _mean_nll(student: StudentPass, num_items: float | Tensor | None) -> Tensor:
    total = student.negative_log_likelihood().sum()
    return total / (student.mask.sum().clamp(min=1) if num_items is None else num_items)
