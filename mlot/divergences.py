"""Divergences between two models' predictions: token level (HAD, SL, ULD) and sequence level (SD)."""

from __future__ import annotations

from mlot import _arguments, _checks
from mlot._typing import Array, CostKind, Reduction
from mlot.backends.base import Backend, Transport
from mlot.sources import Source
from mlot.traces import Traces

_REDUCTIONS = ("none", "sum", "mean")


def had(
    student: Traces,
    teacher: Traces,
    *,
    pairs: Array | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Holistic absolute difference of matched traces (eq. 14).

    .. math:: \mathrm{HAD} = \sum_{(i, j)} \sum_l |t^k_l(j) - s^k_l(i)|

    over pairs of student position :math:`i` and teacher position :math:`j`. The subgradient at ties is 0.

    Args:
        student: traces of :math:`k` columns, in the order of the teacher's.
        teacher: traces of :math:`k` columns.
        pairs: ``(B, P, 2)`` integers ``[student, teacher]``, padded by -1; ``None`` pairs by index.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            pairs.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025.
    """
    xp, student, teacher, pairs = _matched(student, teacher, pairs, reduction, num_items, backend)
    return reduce_sums(xp.had(student, teacher, pairs), xp.count_pairs(pairs), reduction, num_items)


def sl(
    student: Traces,
    teacher: Traces,
    *,
    pairs: Array | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Sequential logarithmic loss of matched traces (eq. 16).

    .. math:: \mathrm{SL} = -\sum_{(i, j)} \sum_l t^k_l(j) \log s^k_l(i)

    The logarithm comes from the log-softmax, never from a rounded probability, and a teacher probability of 0
    contributes exactly 0.

    Args:
        student: traces of :math:`k` columns, in the order of the teacher's.
        teacher: traces of :math:`k` columns.
        pairs: ``(B, P, 2)`` integers ``[student, teacher]``, padded by -1; ``None`` pairs by index.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            pairs.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025.
    """
    xp, student, teacher, pairs = _matched(student, teacher, pairs, reduction, num_items, backend)
    return reduce_sums(xp.sl(student, teacher, pairs), xp.count_pairs(pairs), reduction, num_items)


def sinkhorn_distance(
    student: Traces,
    teacher: Traces,
    *,
    temperature: float | None = 2.0,
    kind: CostKind = "l1",
    epsilon: float = 0.1,
    n_iter: int = 20,
    tol: float | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Sinkhorn distance between two sequences of predictions (eqs. 17-20).

    .. math:: \mathrm{SD} = T_s \langle P, C \rangle, \qquad
              P = \mathrm{Sinkhorn}_N(C; \lambda, \tfrac{1}{T_t}\mathbf 1, \tfrac{1}{T_s}\mathbf 1)

    with the sequence cost :math:`C` on all valid positions. For :math:`T_t = T_s` this is the paper's value,
    whose plan carries a mass of one per position.

    Args:
        student: traces of :math:`k` columns, in the order of the teacher's.
        teacher: traces of :math:`k` columns.
        temperature: one that both traces serve; ``None`` means their own.
        kind: cost between positions, ``"l1"`` or ``"log"``.
        epsilon: :math:`\lambda`, the entropic regularisation.
        n_iter: :math:`N`, the number of rounds.
        tol: stop a sequence after the first round whose marginal error is at most this.
        reduction: ``"none"``: ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of student positions.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025.
    """
    _checks.divisor("epsilon", epsilon)
    _checks.count("n_iter", n_iter)
    _checks.number("tol", tol, allow_none=True, allow_zero=True)
    _checks.choice("kind", kind, ("l1", "log"))
    _arguments.matched_traces(student, teacher)
    _arguments.shared_temperature(student, teacher, temperature)
    check_reduction(reduction, num_items)
    xp, (student, teacher) = _arguments.resolve({"student": student, "teacher": teacher}, backend)
    distance, _ = sequence_transport(
        xp, student, teacher, temperature=temperature, kind=kind, epsilon=epsilon, n_iter=n_iter, tol=tol
    )
    return reduce_sums(distance, xp.count_positions(student.mask), reduction, num_items)


def uld(
    student: Source,
    teacher: Source,
    *,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    pairs: Array | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> Array:
    r"""Universal logit distillation: the exact 1-D transport between sorted probabilities.

    .. math:: \mathrm{ULD} = \sum_{(i, j)} \sum_r |t_{(r)}(j) - s_{(r)}(i)|

    with the probabilities of each position in descending order, the narrower vocabulary padded by zeros.

    Args:
        student: logits ``(B, T_s, V_s)`` or a `LinearHead`.
        teacher: logits ``(B, T_t, V_t)`` or a `LinearHead`.
        student_mask: positions whose prediction counts, ``(B, T_s)`` booleans; ``None`` means all.
        teacher_mask: the same for the teacher, ``(B, T_t)``.
        pairs: ``(B, P, 2)`` integers ``[student, teacher]``, padded by -1; ``None`` pairs by index.
        reduction: ``"none"``: the sums above, ``(B,)``; ``"sum"``; ``"mean"``: divided by the number of
            pairs.
        num_items: with ``"mean"``, the number to divide by instead.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        ``(B,)`` or a scalar.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range; traces, which do not hold the
            whole vocabulary.

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for
    LLMs", arXiv 2402.12030.

    >>> import numpy as np, mlot
    >>> student, teacher = np.log([[[0.5, 0.5]]]), np.log([[[0.1, 0.7, 0.2]]])
    >>> mlot.uld(student, teacher).round(6)
    np.float64(0.6)
    """
    check_reduction(reduction, num_items)
    for name, source in (("student", student), ("teacher", teacher)):
        _arguments.whole_source(name, source, "ULD needs every column")
    xp, student, teacher, student_mask, teacher_mask, pairs = _arguments.compared(
        student, teacher, student_mask, teacher_mask, pairs, backend
    )
    sums = xp.uld(student, teacher, student_mask, teacher_mask, pairs)
    return reduce_sums(sums, xp.count_pairs(pairs), reduction, num_items)


def sequence_transport(
    xp: Backend,
    student: Traces,
    teacher: Traces,
    *,
    temperature: float | None,
    kind: CostKind,
    epsilon: float,
    n_iter: int,
    tol: float | None,
    coupling: Array | None = None,
) -> tuple[Array, Transport]:
    """Sinkhorn distance ``(B,)`` of checked traces, and the transport behind it."""
    cost = xp.sequence_cost(student, teacher, kind=kind, temperature=temperature, coupling=coupling)
    a, b = xp.marginals(student.mask, teacher.mask, cost)
    # Each row of an L1 cost is a difference of two (sub-)probability vectors.
    bound = 2.0 if kind == "l1" else None
    transport = xp.sinkhorn(cost, a, b, epsilon=epsilon, n_iter=n_iter, tol=tol, cost_bound=bound)
    return xp.count_positions(student.mask) * transport.value, transport


def reduce_sums(sums: Array, counts: Array, reduction: Reduction, num_items: float | Array | None) -> Array:
    """Reduce per-sequence sums ``(B,)``; an empty batch or a count of zero gives 0."""
    if reduction == "none":
        return sums
    if reduction == "sum":
        return sums.sum()
    return sums.sum() / (counts.sum().clip(1) if num_items is None else num_items)


def weighted(terms: tuple[tuple[float, Array], ...]) -> Array:
    """Weighted sum; a weight of zero leaves a term out, even an infinite one."""
    first, *others = (weight * value for weight, value in terms if weight != 0)
    return sum(others, start=first)


def check_reduction(reduction: Reduction, num_items: float | Array | None) -> None:
    _checks.choice("reduction", reduction, _REDUCTIONS)
    _arguments.num_items(num_items)
    if num_items is not None and reduction != "mean":
        raise ValueError(
            f"num_items: expected None unless reduction is 'mean', got {num_items} with {reduction!r}"
        )


def _matched(
    student: Traces,
    teacher: Traces,
    pairs: Array | None,
    reduction: Reduction,
    num_items: float | Array | None,
    backend: str | None,
) -> tuple[Backend, Traces, Traces, Array]:
    _arguments.matched_traces(student, teacher)
    check_reduction(reduction, num_items)
    xp, (student, teacher, pairs) = _arguments.resolve(
        {"student": student, "teacher": teacher, "pairs": pairs}, backend
    )
    return xp, student, teacher, _arguments.pairs(xp, pairs, student, teacher, student.mask, teacher.mask)
