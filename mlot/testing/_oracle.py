r"""The quantities of the loss from plain NumPy and SciPy formulas, written without any of mlot's code.

Everything is computed in float64, one sequence at a time, from whole arrays: probabilities as softmax of the
logits at the temperature asked for (never through the normalisers of another one), transport by potentials.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class MissingPackageError(Exception):
    """A package that an oracle needs is not installed."""


@dataclass(frozen=True, eq=False)
class TraceData:
    """What traces hold, as NumPy arrays."""

    columns: Integers
    log_probs: Floats
    log_normalizers: Floats
    column_mass: Floats
    mask: Mask
    vocab_size: int
    temperature: float
    extra: tuple[float, ...]
    standardize: bool

    def at(self, temperature: float | None) -> Floats:
        """Log-probabilities at a temperature, from those at the temperature of selection."""
        if temperature is None or temperature == self.temperature:
            return self.log_probs
        normalizer = self.log_normalizers[:, :, self.extra.index(temperature)]
        return self.temperature / temperature * self.log_probs - normalizer[:, :, None]

    def moved(self, log_probs: Floats, log_normalizers: Floats) -> TraceData:
        """The same with other log-probabilities and normalisers."""
        return replace(self, log_probs=log_probs, log_normalizers=log_normalizers)


# -- probabilities ---------------------------------------------------------------------------------------


def standardized(logits: Floats) -> Floats:
    """Rows divided by the unbiased standard deviation, plus 1e-4, of those logits that are not -inf."""
    result = np.empty(logits.shape)
    for where in np.ndindex(logits.shape[:-1]):
        row = logits[where]
        possible = row[~np.isneginf(row)]
        squares = (possible - possible.sum() / max(len(possible), 1)) ** 2
        result[where] = row / (np.sqrt(squares.sum() / max(len(possible) - 1, 1)) + 1e-4)
    return result


def log_softmax(logits: Floats, temperature: float, standardize: bool = False) -> Floats:
    """Logarithm of softmax(z / temperature), row by row."""
    scaled = (standardized(logits) if standardize else logits) / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)


def mass(logits: Floats, mask: Mask, temperature: float, standardize: bool) -> Floats:
    """Sum of each column's probability over the valid positions, ``(B, V)``."""
    sums = np.zeros((len(logits), logits.shape[2]))
    for n, valid in enumerate(mask):
        sums[n] = np.exp(log_softmax(logits[n, valid], temperature, standardize)).sum(axis=0)
    return sums


def heaviest(sums: Floats, k: int) -> Integers:
    """Columns in descending order of their sums, ties by lower index, the first k."""
    order = [sorted(range(len(row)), key=lambda column: (-row[column], column))[:k] for row in sums.tolist()]
    return np.array(order, dtype=np.int64).reshape(len(sums), min(k, sums.shape[1]))


def traces(
    logits: Floats,
    mask: Mask,
    columns: Integers,
    temperature: float,
    extra: tuple[float, ...],
    standardize: bool,
) -> TraceData:
    """Traces of given columns."""
    batch, length, vocabulary = logits.shape
    kept = np.full((batch, length, columns.shape[1]), -np.inf)
    normalizers = np.zeros((batch, length, len(extra)))
    sums = np.zeros(columns.shape)
    for n, valid in enumerate(mask):
        base = log_softmax(logits[n, valid], temperature, standardize)
        kept[n, valid] = base[:, columns[n]]
        sums[n] = np.exp(base[:, columns[n]]).sum(axis=0)
        best = base.argmax(axis=1)[:, None]  # a column whose logarithm is finite
        for m, other in enumerate(extra):
            there = log_softmax(logits[n, valid], other, standardize)
            here, then = (np.take_along_axis(values, best, axis=1)[:, 0] for values in (base, there))
            normalizers[n, valid, m] = temperature / other * here - then
    return TraceData(columns, kept, normalizers, sums, mask, vocabulary, temperature, extra, standardize)


# -- costs and matching ----------------------------------------------------------------------------------


def weighted_log(weight: Floats, log_value: Floats) -> Floats:
    """Weight times logarithm; no weight gives 0."""
    return np.multiply(
        weight, log_value, out=np.zeros(np.broadcast(weight, log_value).shape), where=weight > 0
    )


def ends(log_student: Floats, log_teacher: Floats, pairs: Integers) -> tuple[Floats, Floats]:
    """Log-probabilities of one sequence at both ends of its pairs."""
    real = [(i, j) for i, j in pairs.tolist() if i >= 0]
    i, j = [i for i, _ in real], [j for _, j in real]
    return log_student[i], log_teacher[j]


def token_cost(log_student: Floats, log_teacher: Floats, pairs: Integers, kind: str) -> Floats:
    """Cost between columns, ``(B, k_t, k_s)``."""
    cost = np.zeros((len(pairs), log_teacher.shape[2], log_student.shape[2]))
    for n, rows in enumerate(pairs):
        s, t = ends(log_student[n], log_teacher[n], rows)
        if kind == "l1":
            cost[n] = np.abs(np.exp(t)[:, :, None] - np.exp(s)[:, None, :]).sum(axis=0)
        else:
            cost[n] = -weighted_log(np.exp(t)[:, :, None], s[:, None, :]).sum(axis=0)
    return cost


def sequence_cost(
    log_student: Floats,
    log_teacher: Floats,
    student_mask: Mask,
    teacher_mask: Mask,
    kind: str,
    coupling: Floats | None = None,
) -> Floats:
    """Cost between positions, ``(B, T_t, T_s)``, 0 where either is masked out."""
    cost = np.zeros((len(student_mask), teacher_mask.shape[1], student_mask.shape[1]))
    for n, i, j in itertools.product(*map(range, cost.shape)):
        if not (teacher_mask[n, i] and student_mask[n, j]):
            continue
        t, log_s = np.exp(log_teacher[n, i]), log_student[n, j]
        if coupling is not None:
            with np.errstate(divide="ignore"):
                log_s = np.log((coupling[n] * np.exp(log_s)).sum(axis=1))
        cost[n, i, j] = np.abs(t - np.exp(log_s)).sum() if kind == "l1" else -weighted_log(t, log_s).sum()
    return cost


def optimal_cost(cost: Floats) -> float:
    """Cost of the cheapest matching of one matrix: of all of them where they are few, else by SciPy."""
    rows, columns = cost.shape
    if math.perm(columns, rows) <= 1000:
        return min(
            float(cost[range(rows), list(choice)].sum())
            for choice in itertools.permutations(range(columns), rows)
        )
    barred = np.where(np.isfinite(cost), cost, np.abs(cost[np.isfinite(cost)]).sum() + 1)
    return float(cost[linear_sum_assignment(barred)].sum())


def matched_cost(cost: Floats, columns: Integers) -> float:
    """Cost of a matching of one matrix."""
    return float(cost[np.arange(len(columns)), columns].sum())


# -- transport -------------------------------------------------------------------------------------------


def uniform(student_mask: Mask, teacher_mask: Mask) -> tuple[Floats, Floats]:
    """Weights of the teacher's and of the student's positions."""
    weights = np.zeros(teacher_mask.shape), np.zeros(student_mask.shape)
    for n, (s, t) in enumerate(zip(student_mask, teacher_mask, strict=True)):
        if s.any() and t.any():
            weights[0][n, t], weights[1][n, s] = 1 / t.sum(), 1 / s.sum()
    return weights


def marginal_error(plan: Floats, a: Floats, b: Floats) -> float:
    """L1 distance of a plan's marginals from those asked for."""
    return float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())


def sinkhorn(cost: Floats, a: Floats, b: Floats, epsilon: float, n_iter: int) -> list[Floats]:
    """Plans after each round, for one sequence: potentials of the rows, then of the columns."""
    block = np.ix_(a > 0, b > 0)
    plans = [np.zeros(cost.shape) for _ in range(n_iter)]
    if not ((a > 0).any() and (b > 0).any()):
        return plans
    kernel, log_a, log_b = -cost[block] / epsilon, np.log(a[a > 0]), np.log(b[b > 0])
    g = np.zeros(len(log_b))
    for plan in plans:
        f = log_a - np.logaddexp.reduce(kernel + g[None, :], axis=1)
        g = log_b - np.logaddexp.reduce(kernel + f[:, None], axis=0)
        plan[block] = np.exp(kernel + f[:, None] + g[None, :])
    return plans


def inner(plan: Floats, cost: Floats) -> Floats:
    """Sum of plan times cost over all but the first axis; no mass gives 0."""
    result: Floats = weighted_log(plan, cost).reshape(len(plan), -1).sum(axis=1)
    return result


def pot() -> Any:
    """Python Optimal Transport.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise MissingPackageError("POT") from error
    return ot


def exact_value(cost: Floats, a: Floats, b: Floats) -> float:
    """Value of exact transport for one sequence, by POT."""
    solver = pot()
    if not ((a > 0).any() and (b > 0).any()):
        return 0.0
    return float(solver.emd2(a, b * (a.sum() / b.sum()), cost, numItermax=1_000_000))


# -- divergences -----------------------------------------------------------------------------------------


def had(log_student: Floats, log_teacher: Floats, pairs: Integers) -> Floats:
    """Sum of absolute differences over the pairs, ``(B,)``."""
    paired = [ends(s, t, rows) for s, t, rows in zip(log_student, log_teacher, pairs, strict=True)]
    return np.array([np.abs(np.exp(t) - np.exp(s)).sum() for s, t in paired])


def sl(log_student: Floats, log_teacher: Floats, pairs: Integers) -> Floats:
    """Sum of -t log s over the pairs, ``(B,)``."""
    paired = [ends(s, t, rows) for s, t, rows in zip(log_student, log_teacher, pairs, strict=True)]
    return np.array([-weighted_log(np.exp(t), s).sum() for s, t in paired])


def uld(student: Floats, teacher: Floats, pairs: Integers) -> Floats:
    """Distance of descending probabilities over the pairs, from logits ``(B, T, V)``."""
    sums = np.zeros(len(pairs))
    for n, rows in enumerate(pairs.tolist()):
        for i, j in rows:
            if i < 0:
                continue
            s = sorted(np.exp(log_softmax(student[n, i : i + 1], 1.0))[0].tolist(), reverse=True)
            t = sorted(np.exp(log_softmax(teacher[n, j : j + 1], 1.0))[0].tolist(), reverse=True)
            sums[n] += sum(abs(x - y) for x, y in itertools.zip_longest(t, s, fillvalue=0.0))
    return sums
