"""The losses compared. All take the same batch, and of the teacher what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import mlot
from benchmarks.efficacy.training import mean_cross_entropy
from mlot.compat import released_loss
from mlot.nn import MultiLevelOTLoss, ULDLoss


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step sees.

    Attributes:
        labels: of the student's tokens, ``(B, T_s)``, unshifted.
        teacher_labels: of the teacher's tokens for the same windows, ``(B, T_t)``.
        teacher_logits: what the teacher predicts, ``(B, T_t, V_t)``, where the method asks for it.
        traces: the same, selected, where the method asks for them.
        pairs: positions at which both have read the same bytes, ``(B, P, 2)``.
    """

    labels: Tensor
    teacher_labels: Tensor | None = None
    teacher_logits: Tensor | None = None
    traces: mlot.Traces | None = None
    pairs: Tensor | None = None


#: From the student's logits, the batch, alpha and k to the loss of a step.
Loss = Callable[[Tensor, Batch, float, int], Tensor]


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        name: for files.
        label: for readers.
        loss: of a step.
        needs: what of the teacher: nothing, its ``"logits"``, its ``"traces"``, or ``"text"`` that it wrote.
        formula: what is minimised.
    """

    name: str
    label: str
    loss: Loss
    needs: str
    formula: str


def _plain(student: Tensor, batch: Batch, alpha: float, k: int) -> Tensor:
    return mean_cross_entropy(student, batch.labels)


def _uld(student: Tensor, batch: Batch, alpha: float, k: int) -> Tensor:
    loss: Tensor = ULDLoss(alpha)(student, batch.teacher_logits, batch.labels, batch.teacher_labels)
    return loss


def _released(student: Tensor, batch: Batch, alpha: float, k: int) -> Tensor:
    assert batch.teacher_logits is not None
    assert batch.teacher_labels is not None
    distillation = released_loss(student, batch.teacher_logits, batch.labels, batch.teacher_labels)
    return mean_cross_entropy(student, batch.labels) + alpha * distillation


def _ot(
    student: Tensor,
    batch: Batch,
    alpha: float,
    k: int,
    *,
    matching: str = "optimal",
    by_index: bool = False,
    had: float = 1.0,
    sl: float = 0.1,
    sd: float = 0.1,
) -> Tensor:
    config = mlot.MultiLevelOTConfig(k=k, matching=matching, had_weight=had, sl_weight=sl, sd_weight=sd)
    pairs = None if by_index else batch.pairs
    loss: Tensor = MultiLevelOTLoss(config, alpha)(student, batch.traces, batch.labels, pairs=pairs)
    return loss


CE, FULL = "ce", "optimal-boundary"

METHODS = (
    Method(CE, "cross-entropy alone", _plain, "", "CE"),
    Method(
        "sequence-kd",
        "sequence-level KD",
        _plain,
        "text",
        "CE, on windows of which a share alpha / (1 + alpha) the teacher wrote",
    ),
    Method("uld", "ULD", _uld, "logits", "CE + alpha ULD"),
    Method("released", "released code's loss", _released, "logits", "CE + alpha (released code's loss)"),
    Method(
        "rank-index",
        "MultiLevelOT: rank matching, index pairs",
        partial(_ot, matching="rank", by_index=True),
        "traces",
        "CE + alpha (HAD + 0.1 SL + 0.1 SD)",
    ),
    Method(
        "optimal-index",
        "MultiLevelOT: optimal matching, index pairs",
        partial(_ot, by_index=True),
        "traces",
        "CE + alpha (HAD + 0.1 SL + 0.1 SD)",
    ),
    Method(
        FULL,
        "MultiLevelOT: optimal matching, boundary pairs",
        _ot,
        "traces",
        "CE + alpha (HAD + 0.1 SL + 0.1 SD)",
    ),
    Method("no-had", "  without HAD", partial(_ot, had=0.0), "traces", "CE + alpha (0.1 SL + 0.1 SD)"),
    Method("no-sl", "  without SL", partial(_ot, sl=0.0), "traces", "CE + alpha (HAD + 0.1 SD)"),
    Method("no-sd", "  without SD", partial(_ot, sd=0.0), "traces", "CE + alpha (HAD + 0.1 SL)"),
)
BY_NAME = {method.name: method for method in METHODS}
