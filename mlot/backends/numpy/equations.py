r"""The equations of MultiLevelOT for one sequence, in float64, to be read beside the paper.

Every function takes what one sequence's valid positions hold, with no batch, no mask and no padding. The
symbols are the paper's: teacher probabilities :math:`t` and student probabilities :math:`s`, ``(T, V)`` or,
once columns are kept, ``(T, k)``; costs have the teacher in their rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, logsumexp

from mlot._typing import CostKind, HardMatching

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def standardized(logits: Floats) -> Floats:
    """Logits ``(T, V)`` divided by their standard deviation over the vocabulary, -inf not counted."""
    possible = logits != -np.inf
    # Of a single token there is no deviation, and whatever the divisor, its probability is 1.
    several = possible.sum(axis=-1) > 1
    divisor = np.ones((len(logits), 1))
    divisor[several] = 1e-4 + np.std(logits[several], axis=-1, ddof=1, keepdims=True, where=possible[several])
    return logits / divisor


def log_probabilities(logits: Floats, temperature: float) -> Floats:
    """Logarithm of softmax(z / τ), row by row."""
    result: Floats = log_softmax(logits / temperature, axis=-1)
    return result


def log_normalizer(log_probs: Floats, base: float, temperature: float) -> Floats:
    """Log Σ_v exp((τ₀/τ) log p_v): what turns log-probabilities at τ₀ into those at τ."""
    result: Floats = logsumexp(base / temperature * log_probs, axis=-1)
    return result


def heaviest_columns(probs: Floats, k: int) -> Integers:
    """Equations (10), (12): the k columns with the largest Σ_i t(i), ties by lower index."""
    mass = probs.sum(axis=0)
    return np.argsort(-mass, kind="stable")[:k]


def token_cost(student: Floats, teacher: Floats, log_student: Floats, kind: CostKind) -> Floats:
    """Cost between columns over the paired rows: Σ_i |t_l(i) - s_m(i)|, or -Σ_i t_l(i) log s_m(i)."""
    cost = np.empty((teacher.shape[1], student.shape[1]))
    for row in range(teacher.shape[1]):
        t = teacher[:, row : row + 1]
        if kind == "l1":
            cost[row] = np.abs(t - student).sum(axis=0)
        else:
            cost[row] = -times(t, log_student).sum(axis=0)
    return cost


def assignment(cost: Floats, method: HardMatching) -> Integers:
    """Equation (11): the student column for each teacher column."""
    if method == "rank":
        return np.arange(cost.shape[0])
    if method == "optimal":
        # Infinite costs (a student probability of zero under the logarithmic cost) only need to be avoided.
        cost = finite(cost)
        return np.asarray(linear_sum_assignment(cost + tie_break(cost))[1], dtype=np.int64)
    free = np.ones(cost.shape[1], dtype=bool)
    columns = np.empty(cost.shape[0], dtype=np.int64)
    for row, costs in enumerate(finite(cost)):
        columns[row] = np.flatnonzero(free)[np.argmin(costs[free])]
        free[columns[row]] = False
    return columns


def tie_break(cost: Floats) -> Floats:
    """What is added to a cost so that, among equally cheap matchings, the one nearest to the order wins.

    Over few positions L1 costs tie on whole regions (with one position, whenever both of two teacher
    probabilities lie below both of two student probabilities), and rounding must not choose.
    """
    rows, columns = np.sqrt(np.arange(cost.shape[0])), np.sqrt(np.arange(cost.shape[1]))
    size = float(np.abs(cost).max(initial=0.0))
    return np.asarray(1e-12 * size * (rows[:, None] - columns[None, :]) ** 2)


def finite(cost: Floats) -> Floats:
    """Cost with infinities replaced by a number that outweighs everything finite."""
    if np.isfinite(cost).all():
        return cost
    bound = np.abs(cost[np.isfinite(cost)]).sum() + 1.0
    return np.where(np.isfinite(cost), cost, bound)


def had(student: Floats, teacher: Floats) -> float:
    """Equation (14): Σ_i Σ_l |t_l(i) - s_l(i)|."""
    return float(np.abs(teacher - student).sum())


def sl(log_student: Floats, teacher: Floats) -> float:
    """Equation (16): -Σ_i Σ_l t_l(i) log s_l(i)."""
    return float(-times(teacher, log_student).sum())


def sequence_cost(student: Floats, teacher: Floats, log_student: Floats, kind: CostKind) -> Floats:
    """C_ij = Σ_l |t_l(i) - s_l(j)| over matched columns, or its logarithmic kin -Σ_l t_l(i) log s_l(j)."""
    cost = np.empty((len(teacher), len(student)))
    for i, t in enumerate(teacher):
        cost[i] = np.abs(t - student).sum(axis=1) if kind == "l1" else -times(t, log_student).sum(axis=1)
    return cost


def sinkhorn(
    cost: Floats, a: Floats, b: Floats, epsilon: float, n_iter: int, tol: float | None
) -> tuple[Floats, int]:
    """Equations (17)-(20): scale the rows of exp(-C/λ) to a, then its columns to b, N times.

    Written with the logarithm of the kernel, so that a small λ loses nothing. Weights are positive here.
    """
    log_kernel = -cost / epsilon
    for iteration in range(1, n_iter + 1):
        log_kernel += np.log(a)[:, None] - logsumexp(log_kernel, axis=1, keepdims=True)
        log_kernel += np.log(b)[None, :] - logsumexp(log_kernel, axis=0, keepdims=True)
        if tol is not None and marginal_error(np.exp(log_kernel), a, b) <= tol:
            return np.exp(log_kernel), iteration
    return np.exp(log_kernel), n_iter


def marginal_error(plan: Floats, a: Floats, b: Floats) -> float:
    """L1 distance of a plan's marginals from a and b."""
    return float(np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum())


def emd(cost: Floats, a: Floats, b: Floats) -> Floats:
    """Exact transport plan, by POT's network simplex."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            'backend: exact transport needs POT, which is not installed; pip install "mlot[pot]"'
        ) from error
    if np.isnan(cost).any():
        return np.full(cost.shape, np.nan)
    # What is infinitely dear is more so than all that is not, but takes mass where nothing else can.
    finite = np.isfinite(cost)
    dearest = 1.0 + 2.0 * np.abs(cost[finite]).sum()
    cost = np.where(finite, cost, np.where(cost > 0, dearest, -dearest))
    # The simplex wants equal totals to the last bit.
    plan, log = ot.emd(a, b * (a.sum() / b.sum()), cost, numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"cost: POT's exact solver failed: {log['warning']}")
    return np.asarray(plan, dtype=np.float64)


def uld(student: Floats, teacher: Floats) -> float:
    """Boizard et al.: Σ_i Σ_r |t_(r)(i) - s_(r)(i)|, probabilities descending, the narrower padded by 0."""
    width = max(student.shape[1], teacher.shape[1])

    def descending(probs: Floats) -> Floats:
        return np.pad(np.sort(probs, axis=1)[:, ::-1], ((0, 0), (0, width - probs.shape[1])))

    return float(np.abs(descending(teacher) - descending(student)).sum())


def times(weight: Floats, value: Floats) -> Floats:
    """Product in which a weight of zero gives zero, even with an infinite value."""
    with np.errstate(invalid="ignore"):
        return np.where(weight == 0.0, 0.0, weight * value)
