"""The losses compared. All see the same windows, and of the teacher what they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

import mlot
from mlot import baselines
from mlot.compat import released_loss


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step sees.

    Attributes:
        labels: of the student's tokens, ``(B, T_s)``, unshifted.
        teacher_labels: of the teacher's tokens for the same windows, ``(B, T_t)``.
        logits: what the teacher predicts, ``(B, T_t, V_t)``, where the method asks for it.
        traces: the same, selected, where the method asks for it.
        pairs: positions at which both have read the same bytes, ``(B, P, 2)``.
        targets: what the teacher says in the student's tokens, by variant.
        text: where the student reads in the teacher's tokens.
        projection: from one vocabulary to the other, by the strings alone.
    """

    labels: Tensor
    teacher_labels: Tensor | None = None
    logits: Tensor | None = None
    traces: mlot.Traces | None = None
    pairs: Tensor | None = None
    targets: Mapping[str, mlot.TextTargets] = field(default_factory=dict)
    text: mlot.TextPositions | None = None
    projection: baselines.StringProjection | None = None

    @property
    def masks(self) -> dict[str, Tensor]:
        """Positions of both models whose prediction counts."""
        masks = {"student_mask": mlot.mask_from_labels(self.labels)}
        if self.teacher_labels is not None:
            masks["teacher_mask"] = mlot.mask_from_labels(self.teacher_labels)
        return masks


#: From the student's logits and the batch to the distillation term of a step, and None where there is none.
Term = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Method:
    """One way to train the student: cross-entropy + alpha times a term.

    Attributes:
        name: for files.
        label: for readers.
        formula: the term, for readers.
        term: of distillation; ``None``: cross-entropy alone.
        needs: of the teacher: ``"logits"``, ``"traces"``, ``"positions"``, ``"written"`` (text that it
            wrote), or the name of a variant of targets.
        cross_entropy: whether there is cross-entropy, too.
    """

    name: str
    label: str
    formula: str
    term: Term | None = None
    needs: tuple[str, ...] = ()
    cross_entropy: bool = True


def _ot(student: Tensor, batch: Batch, *, config: mlot.MultiLevelOTConfig, by_index: bool = False) -> Tensor:
    pairs = None if by_index else batch.pairs
    result = mlot.multi_level_ot(
        student, batch.traces, student_mask=batch.masks["student_mask"], pairs=pairs, config=config
    )
    loss: Tensor = result.loss
    return loss


def _by_text(student: Tensor, batch: Batch, *, variant: str, config: mlot.MultiLevelOTConfig) -> Tensor:
    result = mlot.multi_level_ot(
        student, batch.targets[variant], student_mask=batch.masks["student_mask"], config=config
    )
    loss: Tensor = result.loss
    return loss


def _uld(student: Tensor, batch: Batch) -> Tensor:
    loss: Tensor = mlot.uld(student, batch.logits, **batch.masks)
    return loss


def _released(student: Tensor, batch: Batch) -> Tensor:
    assert batch.logits is not None
    assert batch.teacher_labels is not None
    return released_loss(student, batch.logits, batch.labels, batch.teacher_labels)


def _baseline(
    student: Tensor, batch: Batch, *, function: Callable[..., Tensor], **settings: object
) -> Tensor:
    return function(student, batch.logits, batch.text, **batch.masks, **settings)


def _projected(student: Tensor, batch: Batch) -> Tensor:
    loss: Tensor = baselines.projected_kl(student, batch.logits, batch.text, batch.projection, **batch.masks)
    return loss


#: Variants of the targets that the teacher's predictions are carried over to, and how they are made.
VARIANTS: dict[str, dict[str, object]] = {
    "text": {},
    "longest": {"reading": "longest"},
    "boundaries": {"inside": False},
    "no-chain": {"chain": False},
    "k-32": {"k": 32},
    "temperature-2": {"temperature": 2.0},
}


def _text(name: str, label: str, variant: str, formula: str = "KL(q || s)", **settings: float) -> Method:
    config = {"had_weight": 0.0, "sl_weight": 1.0, "sd_weight": 0.0, **settings}
    temperature = float(str(VARIANTS[variant].get("temperature", 1.0)))
    made = mlot.MultiLevelOTConfig(matching="text", k=256, temperature=temperature, **config)  # type: ignore[arg-type]
    return Method(name, label, formula, partial(_by_text, variant=variant, config=made), (variant,))


CE, FULL, PAPER = "ce", "text", "optimal-index"
_PAPER = mlot.MultiLevelOTConfig.paper()

_ALONE = _text("text-alone", "  without cross-entropy", "text")

METHODS = (
    Method(CE, "cross-entropy alone", ""),
    Method("sequence-kd", "sequence-level KD", "CE on text that the teacher wrote", None, ("written",)),
    Method("uld", "ULD", "ULD", _uld, ("logits",)),
    Method("released", "released code's loss", "released code's loss", _released, ("logits",)),
    Method(
        PAPER,
        "MultiLevelOT, pairs by index (the paper's)",
        "HAD + 0.1 SL + 0.1 SD",
        partial(_ot, config=_PAPER, by_index=True),
        ("traces",),
    ),
    Method(
        "optimal-boundary",
        "MultiLevelOT, pairs at shared boundaries",
        "HAD + 0.1 SL + 0.1 SD",
        partial(_ot, config=_PAPER),
        ("traces",),
    ),
    _text(FULL, "the plan from the text", "text"),
    _text("text-boundaries", "  at shared boundaries alone", "boundaries"),
    _text("text-longest", "  by the longest token", "longest"),
    _text("text-no-chain", "  without chains for long tokens", "no-chain"),
    _text("text-k-32", "  with 32 targets a position", "k-32"),
    _text("text-temperature-2", "  at temperature 2", "temperature-2"),
    _text("text-had", "  HAD in place of KL", "text", "HAD", had_weight=1.0, sl_weight=0.0),
    _text(
        "text-paper", "  the paper's three terms", "text", "HAD + 0.1 SL + 0.1 SD",
        had_weight=1.0, sl_weight=0.1, sd_weight=0.1,
    ),
    Method(_ALONE.name, _ALONE.label, _ALONE.formula, _ALONE.term, _ALONE.needs, cross_entropy=False),
    Method(
        "equal-strings",
        "equal strings, the rest sorted (GOLD's hybrid)",
        "KL over equal strings + sorted rest",
        partial(_baseline, function=baselines.equal_strings, rest="sorted"),
        ("logits", "positions"),
    ),
    Method(
        "projected",
        "projection by strings (X-Token's P-KL)",
        "KL(t || W s)",
        _projected,
        ("logits", "positions"),
    ),
    Method(
        "byte-prefix",
        "byte-prefix marginals (BPM)",
        "KL(q || s) at shared boundaries",
        partial(_baseline, function=baselines.byte_prefix),
        ("logits", "positions"),
    ),
    Method(
        "spans",
        "likelihood of spans (ALM's idea)",
        "binary KL of spans",
        partial(_baseline, function=baselines.span_likelihood),
        ("logits", "positions"),
    ),
)  # fmt: skip
BY_NAME = {method.name: method for method in METHODS}
