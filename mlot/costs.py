"""Cost matrices between columns (token level) and between positions (sequence level). Rows: teacher."""

from __future__ import annotations

from mlot import _arguments, _checks
from mlot._typing import Array, CostKind
from mlot.traces import Traces

_KINDS = ("l1", "log")


def token_cost(
    student: Traces,
    teacher: Traces,
    kind: CostKind = "l1",
    *,
    pairs: Array | None = None,
    temperature: float | None = None,
    backend: str | None = None,
) -> Array:
    r"""Cost between whole columns, jointly over all paired positions (eq. 11).

    .. math:: C_{lm} = \sum_{(i, j)} |t_l(j) - s_m(i)| \quad\text{or}\quad
              C_{lm} = -\sum_{(i, j)} t_l(j) \log s_m(i)

    for ``kind`` ``"l1"`` or ``"log"``, over the pairs of student position :math:`i` and teacher position
    :math:`j`.

    Args:
        student: traces of :math:`k_s` columns.
        teacher: traces of :math:`k_t` columns.
        kind: ``"l1"`` or ``"log"``.
        pairs: ``(B, P, 2)`` integers ``[student, teacher]``, padded by -1; ``None`` pairs by index.
        temperature: one that both traces serve; ``None`` means their own.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B, k_t, k_s)``.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025, section "Token-level".

    >>> import numpy as np, mlot
    >>> traces = mlot.select(np.log([[[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]]]), k=2)
    >>> mlot.token_cost(traces, traces).round(3)
    array([[[0. , 0.8],
            [0.8, 0. ]]])
    """
    _arguments.traces("student", student)
    _arguments.traces("teacher", teacher)
    _arguments.same_batch(student, teacher)
    _checks.choice("kind", kind, _KINDS)
    _arguments.shared_temperature(student, teacher, temperature)
    xp, (student, teacher, pairs) = _arguments.resolve(
        {"student": student, "teacher": teacher, "pairs": pairs}, backend
    )
    pairs = _arguments.pairs(xp, pairs, student, teacher, student.mask, teacher.mask)
    return xp.token_cost(student, teacher, pairs, kind=kind, temperature=temperature)


def sequence_cost(
    student: Traces,
    teacher: Traces,
    kind: CostKind = "l1",
    *,
    temperature: float | None = 2.0,
    backend: str | None = None,
) -> Array:
    r"""Cost between positions over matched columns (the cost of eq. 17).

    .. math:: C_{ij} = \sum_l |t^k_l(i) - s^k_l(j)| \quad\text{or}\quad
              C_{ij} = -\sum_l t^k_l(i) \log s^k_l(j)

    for ``kind`` ``"l1"`` or ``"log"``. Column :math:`l` of the student must be the match of the teacher's.
    The L1 cost lies between 0 and 2.

    Args:
        student: traces of :math:`k` columns, in the order of the teacher's.
        teacher: traces of :math:`k` columns.
        kind: ``"l1"`` or ``"log"``.
        temperature: one that both traces serve; ``None`` means their own.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B, T_t, T_s)``; 0 where either position is masked out.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025, section "Sequence-level".
    """
    _arguments.matched_traces(student, teacher)
    _checks.choice("kind", kind, _KINDS)
    _arguments.shared_temperature(student, teacher, temperature)
    xp, (student, teacher) = _arguments.resolve({"student": student, "teacher": teacher}, backend)
    return xp.sequence_cost(student, teacher, kind=kind, temperature=temperature)
