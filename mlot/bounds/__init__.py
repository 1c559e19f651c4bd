"""How far a loss from the most likely tokens alone can be from the loss that the whole distribution gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments
from mlot._intervals import Floats, Intervals, certain, of_columns
from mlot._typing import Array, Reduction
from mlot.bounds._transport import value_bounds
from mlot.config import MultiLevelOTConfig, checked_config
from mlot.divergences import check_reduction, reduce_sums, weighted
from mlot.losses import columns_of, match, traces_of
from mlot.sources import Source
from mlot.topk import TopKLogprobs
from mlot.traces import Traces


@dataclass(frozen=True, eq=False)
class TruncationBounds:
    """Bounds on what truncation does to each term, in the reduction asked for.

    Attributes:
        loss: bound for the weighted sum.
        had: bound for HAD.
        sl: bound for SL.
        sd: bound for the Sinkhorn distance.
        missing_mass: mean over the teacher's valid positions of the mass that is missing, ``(B,)``.
        certain_columns: how many of the selected columns the whole distribution would certainly select, too,
            ``(B,)`` integers.
    """

    loss: Any
    had: Any
    sl: Any
    sd: Any
    missing_mass: NDArray[np.float64]
    certain_columns: NDArray[np.int64]


def truncation_bounds(
    student: Source,
    teacher: TopKLogprobs,
    *,
    student_mask: Array | None = None,
    teacher_mask: Array | None = None,
    pairs: Array | None = None,
    config: MultiLevelOTConfig | None = None,
    reduction: Reduction = "mean",
    num_items: float | Array | None = None,
    backend: str | None = None,
) -> TruncationBounds:
    r"""Bound the error of each term of the loss that comes from knowing only the most likely tokens.

    Of the whole distribution all that is used is that the listed log-probabilities are its largest. Each of
    its probabilities :math:`t` then lies in an interval, at every temperature (see `TopKLogprobs`), and what
    the absent columns of a position share is bounded as well. For the columns selected here,

    - **HAD**: :math:`\sum_l |t_l - s_l|` moves by at most :math:`\sum_l |t_l - \hat t_l|`, and lies between
      the sums of the least and of the largest :math:`|t_l - s_l|`; the tighter of both. With
      ``matching="optimal"`` (and the L1 cost) HAD is a minimum over matchings, whose lower bound is the
      minimum with least costs, so the bound holds **even if the matching changes**; else the matching is
      held.
    - **SL** is linear in :math:`t` with weights :math:`-\log s_l`: the bound is its extreme over the
      intervals, in which the absent columns' share goes to the largest weights. The matching is held.
    - **SD**: the intervals give one for each entry of the cost. The value of N rounds of Sinkhorn is bounded
      over all costs between, by the range of the cost, by intervals of the potentials, and by contraction in
      Hilbert's metric, whichever is tightest (the proof is in ``mlot/bounds/_transport.py``). The matching is
      held. With ``tol`` only the range is used.

    All bounds are 0, up to rounding, where every token is listed. At temperatures above that of the
    log-probabilities they are wide unless ``vocab_size`` is given, since a long tail may then hold anything.
    This solves assignments on the host and is meant for looking now and then, not for every step.

    Args:
        student: logits ``(B, T_s, V_s)``, a `LinearHead`, or `Traces`.
        teacher: `TopKLogprobs`, ``(B, T_t, K)``.
        student_mask: as for `multi_level_ot`, as all that follow.
        teacher_mask: ``(B, T_t)`` booleans, or ``None`` for all positions that have an entry.
        pairs: ``(B, P, 2)`` integers ``[student position, teacher position]``, or ``None``.
        config: settings; ``None`` means the paper's. ``matching="sinkhorn"`` is refused.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        num_items: with ``"mean"``, the number to divide by.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `TruncationBounds`, NumPy numbers. A bound is infinite where the student gives probability 0 to a
        column that the teacher may not.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range; the teacher is no
            `TopKLogprobs`.

    >>> import numpy as np, mlot
    >>> rng = np.random.default_rng(0)
    >>> logs = np.log(rng.dirichlet(np.full(40, 0.1), size=(1, 7)))
    >>> ids = np.argsort(-logs)[:, :, :20]
    >>> teacher = mlot.TopKLogprobs(ids, np.take_along_axis(logs, ids, 2), vocab_size=40)
    >>> student = rng.normal(size=(1, 5, 30))
    >>> config = mlot.MultiLevelOTConfig(k=8)
    >>> bounds = mlot.truncation_bounds(student, teacher, config=config)
    >>> got = mlot.multi_level_ot(student, teacher, config=config).had
    >>> whole = mlot.multi_level_ot(student, logs, config=config).had
    >>> bool(abs(got - whole) <= bounds.had + 1e-9), bounds.certain_columns
    (True, array([8]))
    """
    config = checked_config(config)
    if config.matching == "sinkhorn":
        raise ValueError("config: expected a matching of columns, since no bound is known for 'sinkhorn'")
    check_reduction(reduction, num_items)
    if not isinstance(teacher, TopKLogprobs):
        raise TypeError(f"teacher: expected TopKLogprobs, got {type(teacher).__name__}")
    _arguments.student_source("student", student)
    xp, student, teacher, student_mask, teacher_mask, pairs = _arguments.compared(
        student, teacher, student_mask, teacher_mask, pairs, backend
    )
    k, pool = columns_of(config, student, teacher)
    pooled = traces_of(xp, student, student_mask, pool, config, "student").map(xp.stop_gradient)
    traces = traces_of(xp, teacher, teacher_mask, k, config, "teacher")
    matched = pooled if config.matching == "rank" else match(xp, pooled, traces, pairs, config)[0]
    held = _on_host(xp, teacher)
    pooled, matched, traces = (
        each.map(lambda x: _float64(xp.to_numpy(x))) for each in (pooled, matched, traces)
    )
    rows = np.asarray(xp.to_numpy(pairs))
    bounds = np.array(
        [_sequence(held, n, pooled, matched, traces, rows[n], config) for n in range(len(rows))]
    ).reshape(-1, 5)
    pair_counts = (rows[:, :, 0] >= 0).sum(axis=1).astype(np.float64)
    positions = pooled.mask.sum(axis=1).astype(np.float64)
    divisor = float(num_items) if num_items is not None else None
    had, sl, sd = (
        reduce_sums(bounds[:, m], counts, reduction, divisor)
        for m, counts in enumerate((pair_counts, pair_counts, positions))
    )
    loss = weighted(((config.had_weight, had), (config.sl_weight, sl), (config.sd_weight, sd)))
    return TruncationBounds(loss, had, sl, sd, bounds[:, 3], bounds[:, 4].astype(np.int64))


def _on_host(xp: Any, teacher: TopKLogprobs) -> TopKLogprobs:
    """The same in NumPy's arrays, its values looked at."""
    ids, logprobs = (np.asarray(xp.to_numpy(xp.stop_gradient(x))) for x in (teacher.ids, teacher.logprobs))
    width = teacher.shape[2] if teacher.vocab_size is not None else None
    return replace(teacher, ids=ids, logprobs=logprobs, vocab_size=width)


def _float64(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _sequence(
    source: TopKLogprobs,
    n: int,
    pooled: Traces,
    student: Traces,
    teacher: Traces,
    pairs: NDArray[np.int64],
    config: MultiLevelOTConfig,
) -> tuple[float, float, float, float, int]:
    """Bounds on HAD, SL and SD of one sequence, its missing mass, and its certain columns."""
    mask, columns, tau = teacher.mask[n], teacher.columns[n], config.temperature
    i, j = pairs[pairs[:, 0] >= 0].T
    token = of_columns(source, n, mask, columns, tau)
    there = token.at(j)
    t = np.exp(teacher.log_probs[n, j])
    log_s = student.log_probs[n, i]
    minimised = config.matching == "optimal" and config.token_cost == "l1"
    had = _had(np.exp(log_s), t, there, np.exp(pooled.log_probs[n, i]) if minimised else None)
    sl = _sl(log_s, t, there)
    rows, other = mask.astype(bool), student.mask[n].astype(bool)
    sd = 0.0
    if rows.any() and other.any():
        whole = of_columns(source, n, mask, columns, config.sequence_temperature)
        here = whole.at(rows)
        at_t = np.exp(teacher.at(config.sequence_temperature)[n, rows])
        log_there = student.at(config.sequence_temperature)[n, other]
        sd = int(other.sum()) * _sd(log_there, at_t, here, config)
    kept = np.where(source.ids[n] >= 0, source.logprobs[n].astype(np.float64), -np.inf)
    missing = np.clip(1 - np.exp(kept[rows]).sum(axis=1), 0, None)
    certain_columns = certain(source, n, rows, columns, tau)
    return had, sl, sd, float(missing.mean()) if len(missing) else 0.0, certain_columns


def _shift(t: Floats, intervals: Intervals) -> Floats:
    """At most how much the probabilities of a position differ from those supposed, summed, ``(P,)``."""
    each = np.maximum(intervals.high - t, t - intervals.low).clip(0)
    absent = np.where(intervals.absent, each, 0.0).sum(axis=1)
    supposed = np.where(intervals.absent, t, 0.0).sum(axis=1)
    kept: Floats = np.where(intervals.absent, 0.0, each).sum(axis=1)
    total: Floats = kept + np.minimum(absent, supposed + intervals.absent_mass)
    return total


def _had(s: Floats, t: Floats, intervals: Intervals, candidates: Floats | None) -> float:
    from scipy.optimize import linear_sum_assignment  # takes a while to import

    value, shift = np.abs(t - s).sum(axis=1), _shift(t, intervals)
    most = np.maximum(np.abs(intervals.low - s), np.abs(intervals.high - s)).sum(axis=1)
    up = float(np.minimum(most - value, shift).sum())
    if candidates is None:
        down = float(np.minimum(value - _distance(s, intervals.low, intervals.high).sum(axis=1), shift).sum())
        return max(up, down, 0.0)
    least = np.stack(
        [
            _distance(candidates, intervals.low[:, m : m + 1], intervals.high[:, m : m + 1]).sum(axis=0)
            for m in range(t.shape[1])
        ]
    ).reshape(t.shape[1], candidates.shape[1])
    down = float(value.sum() - least[linear_sum_assignment(least)].sum())
    return max(up, min(down, float(shift.sum())), 0.0)


def _distance(s: Floats, low: Floats, high: Floats) -> Floats:
    """Distance of numbers from intervals."""
    return np.maximum(np.maximum(low - s, s - high), 0.0)


def _sl(log_s: Floats, t: Floats, intervals: Intervals) -> float:
    if (np.isneginf(log_s) & (intervals.high > 0)).any():
        return np.inf
    weights = np.where(np.isneginf(log_s), 0.0, -log_s)
    most = (_largest(intervals, weights) - weights * t).sum()
    least = (weights * (t - intervals.low)).sum()
    return max(float(most), float(least), 0.0)


def _largest(intervals: Intervals, weights: Floats) -> Floats:
    """Weight times probability of each column where their sum over a position is the largest that can be."""
    free = np.where(intervals.absent, intervals.high, 0.0)
    order = np.argsort(-weights, axis=-1)
    sorted_free = np.take_along_axis(np.broadcast_to(free, weights.shape), order, axis=-1)
    before = np.cumsum(sorted_free, axis=-1) - sorted_free
    absent_mass = np.broadcast_to(intervals.absent_mass[:, None], weights.shape)
    taken = np.clip(absent_mass - before, 0, sorted_free)
    absent = np.empty(weights.shape)
    np.put_along_axis(absent, order, taken, axis=-1)
    return weights * np.where(intervals.absent, absent, intervals.high)


def _sd(log_s: Floats, t: Floats, intervals: Intervals, config: MultiLevelOTConfig) -> float:
    """Bound on the value of the plan between positions, before it is multiplied by the student's."""
    s = np.exp(log_s)
    cost, low, high = np.empty((3, len(t), len(s)))
    if config.sequence_cost == "log" and np.isneginf(log_s).any():
        return np.inf
    shift = _shift(t, intervals)
    for i in range(len(t)):
        one = intervals.at(slice(i, i + 1))
        if config.sequence_cost == "log":
            cost[i], low[i] = -log_s @ t[i], -log_s @ intervals.low[i]
            repeated = intervals.at(np.full(len(s), i))
            high[i] = _largest(repeated, -log_s).sum(axis=1)
            continue
        cost[i] = np.abs(t[i] - s).sum(axis=1)
        low[i] = np.maximum(_distance(s, one.low, one.high).sum(axis=1), cost[i] - shift[i])
        high[i] = np.maximum(np.abs(one.low - s), np.abs(one.high - s)).sum(axis=1)
        high[i] = np.minimum(np.minimum(high[i], cost[i] + shift[i]), 1 + s.sum(axis=1))
    low, high = np.minimum(low, cost), np.maximum(high, cost)
    value, bottom, top = value_bounds(
        cost, low, high, epsilon=config.epsilon, n_iter=config.n_iter, tol=config.tol
    )
    return max(top - value, value - bottom, 0.0)
