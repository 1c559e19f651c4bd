"""Tokens of equal bytes by name, and a rest."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mlot import _checks
from mlot._typing import Array, Reduction
from mlot.baselines import _plain as plain
from mlot.baselines._given import Given
from mlot.text import TextPositions


def equal_strings(
    student: Array,
    teacher: Array,
    text: TextPositions,
    *,
    rest: Literal["one", "sorted"] = "one",
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Compare tokens of equal bytes by name, and all others as a rest.

    Let :math:`M` be the student's tokens that spell a token of the teacher (or correspond to a special one by
    role), :math:`t(u)` the teacher's probability of those bytes, and :math:`R_t, R_s` what all other tokens
    have. Over the pairs of positions that have read the same bytes,

    .. math:: \sum_{(i, j)} \Bigl[\sum_{u \in M} t(u) \log \frac{t(u)}{s(u)} + D\Bigr],
              \qquad D = R_t \log \frac{R_t}{R_s}
              \quad\text{or}\quad D = \sum_r |t_{(r)} - s_{(r)}|,

    the latter over the sorted probabilities of the other tokens, as in `mlot.uld`.

    Args:
        student: logits ``(B, T_s, V_s)``.
        teacher: logits ``(B, T_t, V_t)``.
        text: the text positions.
        rest: ``"one"``: all other tokens count as one, left out where the student has none; ``"sorted"``:
            they are compared in the order of their probabilities.
        student_mask: positions of the student whose prediction counts, ``(B, T_s)`` booleans; ``None``: all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        temperature: of both models.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            pairs.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: the hybrid loss of TRL's GOLD trainer (``uld_use_hybrid_loss``), which has a generalised
    Jensen-Shannon divergence in place of the first term, the second with ``"sorted"``, and weights of both.
    """
    _checks.choice("rest", rest, ("one", "sorted"))
    given = Given.of(
        student, teacher, text, student_mask, teacher_mask, temperature, reduction, num_items, backend
    )
    b, log_s, log_t = given.shared(temperature)
    plan = text.plan
    spelled = plan.equal >= 0
    mine = np.concatenate([plan.equal[spelled], plan.roles.reshape(-1, 2)[:, 1]])
    others = np.concatenate([plan.order[spelled], plan.roles.reshape(-1, 2)[:, 0]])
    t = plain.exp(log_t)
    in_student = given.projected(t, others, mine, np.ones(len(mine)), log_s.shape[1])
    matched = given.index(np.unique(mine))
    terms = plain.divergence(in_student[:, matched], log_s[:, matched])
    left_s = given.index(np.setdiff1d(np.arange(log_s.shape[1]), mine))
    left_t = given.index(np.setdiff1d(np.arange(log_t.shape[1]), others))
    if rest == "sorted":
        terms = terms + plain.sorted_difference(t[:, left_t], plain.exp(log_s[:, left_s]))
    elif len(left_s):
        mass = t[:, left_t].sum(-1)[:, None]
        terms = terms + plain.divergence(mass, plain.log_sum_exp(log_s[:, left_s])[:, None])
    return given.reduced(terms, b, reduction, num_items)
