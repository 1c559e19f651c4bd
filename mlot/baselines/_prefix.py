"""Each teacher token to the longest student token that it begins with, at shared boundaries alone."""

from __future__ import annotations

from mlot import _arguments
from mlot._typing import Array, Reduction
from mlot.baselines import _plain as plain
from mlot.baselines._given import CHAIN, DEPTH
from mlot.config import MultiLevelOTConfig
from mlot.divergences import check_reduction, reduce_sums
from mlot.losses import multi_level_ot
from mlot.sources import Source
from mlot.targets import require_text, text_targets
from mlot.text import TextPlan, TextPositions


def byte_prefix(
    student: Source,
    teacher: Source,
    text: TextPositions,
    *,
    k: int = 256,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Give each teacher token's mass to the longest student token that its bytes begin with, and compare.

    .. math:: \sum_{(i, j)} \mathrm{KL}(q_j \,\|\, s(i)), \qquad
              q_j(u) \propto \sum_v t_j(v)\,[\mathrm{nxt}(\beta(v)) = u]

    over the pairs of positions that have read the same bytes: `mlot.text_targets` without what lies inside of
    the teacher's tokens and without chains. No mass is lost if every byte is a token of the student.

    Args:
        student: logits ``(B, T_s, V_s)`` or a `mlot.LinearHead`.
        teacher: logits ``(B, T_t, V_t)``, a `mlot.LinearHead` or `mlot.TopKLogprobs`.
        text: the text positions.
        k: number of tokens that are listed at each position; all others count as one.
        student_mask: positions of the student whose prediction counts, ``(B, T_s)`` booleans; ``None``: all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        temperature: of both models.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            pairs that have a target.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: byte-prefix marginalization, arXiv 2607.22334.
    """
    check_reduction(reduction, num_items)
    require_text(text)
    arguments = {"student": student, "student_mask": student_mask, "text.rows": text.rows}
    xp, (student, student_mask, rows) = _arguments.resolve(arguments, backend)
    _arguments.whole_source("student", student, "every token can be a target")
    student_mask = _arguments.source_and_mask(xp, "student", student, "student_mask", student_mask)
    if xp.kind(rows) != "integer":
        raise TypeError(f"text.rows: expected integers, got {rows.dtype}")
    shared = (rows[..., DEPTH : DEPTH + 1] == 0) * 1
    rows = rows * shared + (shared - 1)
    rows[..., CHAIN] = 1
    targets = text_targets(
        teacher,
        TextPositions(rows, text.teacher_ids, _longest(text.plan)),
        student_mask=student_mask,
        teacher_mask=teacher_mask,
        k=k,
        temperature=temperature,
        backend=backend,
    )
    config = MultiLevelOTConfig(
        k=k, matching="text", temperature=temperature, had_weight=0.0, sl_weight=1.0, sd_weight=0.0
    )
    cross = multi_level_ot(
        student, targets, student_mask=student_mask, config=config, reduction="none", backend=backend
    ).sl
    # The entropy of the targets, which are constants.
    counts = student_mask & (targets.served > 0)
    entropies = plain.negative_entropy(plain.exp(targets.log_probs)).sum(-1) + plain.negative_entropy(
        targets.rest
    )
    sums = cross + (entropies * counts).sum(-1)
    return reduce_sums(sums, xp.count_positions(counts), reduction, num_items)


def _longest(plan: TextPlan) -> TextPlan:
    """The plan by the longest token, made once."""
    if plan.reading == "longest":
        return plan
    if "longest" not in plan.cache:
        arrays = (
            plan.order,
            plan.offsets,
            plan.longest,
            plan.canonical,
            plan.segmentation,
            plan.equal,
            plan.roles,
        )
        plan.cache["longest"] = TextPlan(*arrays, plan.student_vocab_size, plan.teacher_vocab_size, "longest")
    kept: TextPlan = plan.cache["longest"]
    return kept
