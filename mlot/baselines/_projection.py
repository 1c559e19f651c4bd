"""A projection between vocabularies by string rules, and the divergence after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlot import _checks
from mlot._resolve import type_name
from mlot._typing import Array, Reduction
from mlot.baselines import _plain as plain
from mlot.baselines._given import Given
from mlot.text import TextPlan, TextPositions

_LEAST = 1e-30  # below any probability that is worth a logarithm


@dataclass(frozen=True, eq=False)
class StringProjection:
    r"""A sparse matrix :math:`W` from the student's tokens to the teacher's; see `string_projection`.

    Args:
        student: student token of each entry, ``(N,)`` integers.
        teacher: teacher token of each entry, ``(N,)`` integers.
        weights: :math:`W_{uv}`, ``(N,)``; those of a student token sum to one.
        student_vocab_size: :math:`V_s`.
        teacher_vocab_size: :math:`V_t`.
    """

    student: NDArray[np.int64]
    teacher: NDArray[np.int64]
    weights: NDArray[np.float64]
    student_vocab_size: int
    teacher_vocab_size: int

    def __repr__(self) -> str:
        return (
            f"StringProjection({self.student_vocab_size} to {self.teacher_vocab_size} tokens, "
            f"{len(self.weights)} entries)"
        )


def string_projection(plan: TextPlan, *, decay: float = 0.1) -> StringProjection:
    r"""Projection of the student's tokens onto the teacher's by string rules.

    A student token that spells a token of the teacher goes to it. Any other goes to the tokens
    :math:`v_0, v_1, \dots` that the teacher's tokenizer cuts it into, with weights :math:`\propto d^m`; where
    that is not known, to the longest token of the teacher that it begins with. Special tokens go to those of
    their role.

    Args:
        plan: the plan with the roles of both exchanged, which says for each token of the *student* what the
            teacher's tokenizer makes of it:
            ``VocabularyMap.from_tokenizers(teacher_tokenizer, student_tokenizer).plan()``.
        decay: :math:`d`, above 0 and at most 1.

    Returns:
        `StringProjection`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or range.

    Source: X-Token, arXiv 2605.21699, whose projection begins with such rules and may be learned further.

    >>> from mlot.align import VocabularyMap
    >>> cut = lambda data: [data[n] - ord("1") for n in range(len(data))]
    >>> plan = VocabularyMap.from_bytes([b"1", b"2"], [b"1", b"12"], tokenize=cut).plan()
    >>> projection = string_projection(plan, decay=0.5)
    >>> projection.student, projection.teacher, projection.weights.round(3)
    (array([0, 1, 1]), array([0, 0, 1]), array([1.   , 0.667, 0.333]))
    """
    if not isinstance(plan, TextPlan):
        raise TypeError(f"plan: expected a TextPlan, got {type_name(plan)}")
    _checks.number("decay", decay)
    if decay > 1:
        raise ValueError(f"decay: expected a number above 0 and at most 1, got {decay}")
    first = plan.offsets[:-1]
    number = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    begins = np.zeros(int(plan.offsets[-1]), bool)
    begins[first] = True
    piece = np.where(plan.canonical >= 0, plan.canonical, np.where(begins, plan.longest, -1)).astype(np.int64)
    piece[first] = np.where(plan.equal >= 0, plan.equal, piece[first])
    kept = (piece >= 0) & (begins | (plan.equal < 0)[number])
    number, piece = number[kept], piece[kept]
    rank = np.arange(len(number)) - np.searchsorted(number, number)  # of each piece in its token
    weights = float(decay) ** rank
    weights = weights / np.bincount(number, weights, minlength=len(plan))[number]
    roles = plan.roles.reshape(-1, 2).astype(np.int64)
    student = np.concatenate([plan.order[number].astype(np.int64), roles[:, 0]])
    order = np.argsort(student, kind="stable")
    return StringProjection(
        student[order],
        np.concatenate([piece, roles[:, 1]])[order],
        np.concatenate([weights, np.ones(len(roles))])[order],
        plan.teacher_vocab_size,
        plan.student_vocab_size,
    )


def projected_kl(
    student: Array,
    teacher: Array,
    text: TextPositions,
    projection: StringProjection,
    *,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Project the student's distribution onto the teacher's vocabulary, and compare it there.

    .. math:: \sum_{(i, j)} \mathrm{KL}\bigl(\tilde t(j) \,\|\, W^\top s(i)\bigr)

    over the pairs of positions that have read the same bytes, with :math:`\tilde t` the teacher's
    distribution given that its token is one that :math:`W` reaches.

    Args:
        student: logits ``(B, T_s, V_s)``.
        teacher: logits ``(B, T_t, V_t)``.
        text: the text positions.
        projection: :math:`W`, made by `string_projection`.
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

    Source: P-KL of X-Token, arXiv 2605.21699, which also averages predictions over longer spans and compares
    the teacher's likeliest tokens alone.
    """
    if not isinstance(projection, StringProjection):
        raise TypeError(f"projection: expected a StringProjection, got {type_name(projection)}")
    given = Given.of(
        student, teacher, text, student_mask, teacher_mask, temperature, reduction, num_items, backend
    )
    for name, source, size in (
        ("student", given.student, projection.student_vocab_size),
        ("teacher", given.teacher, projection.teacher_vocab_size),
    ):
        if source.shape[2] < size:
            raise ValueError(
                f"projection: expected one of at most {source.shape[2]} tokens of the {name}, got {size}"
            )
    b, log_s, log_t = given.shared(temperature)
    w = projection
    mass = given.projected(plain.exp(log_s), w.student, w.teacher, w.weights, log_t.shape[1])
    reached = given.index(np.unique(w.teacher))
    t = plain.exp(log_t[:, reached])
    t = t / t.sum(-1)[:, None].clip(_LEAST)
    return given.reduced(
        plain.divergence(t, plain.log(mass[:, reached].clip(_LEAST))), b, reduction, num_items
    )
