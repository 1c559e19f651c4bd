"""Matching: which student column stands for which teacher column."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments, _checks
from mlot._typing import Array, HardMatching


def assign(cost: Array, method: HardMatching = "optimal", *, backend: str | None = None) -> Array:
    r"""Match every row of a cost with a column of its own (eq. 11).

    .. math:: q = \arg\min_{q\ \text{injective}} \sum_l C_{l\,q(l)}

    for ``"optimal"``; among matchings that are equally cheap (to about 1e-12 of the largest cost), the
    one nearest to the order of rows and columns, so that rounding does not choose. ``"greedy"`` goes
    through the rows in order and gives each the cheapest column left, ties by lower index. ``"rank"``
    matches the l-th row with the l-th column whatever the cost, which is a matching by mass when columns
    are sorted by it, as those of traces are.

    Args:
        cost: ``(B, R, S)`` with R <= S.
        method: ``"optimal"``, ``"greedy"`` or ``"rank"``.
        backend: name of a backend; ``None`` finds it from the type of ``cost``.

    Returns:
        ``(B, R)`` integers. Constant for differentiation: by the envelope theorem the gradient of the matched
        cost is exact wherever the minimiser is unique.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range.

    Source: Cui et al., AAAI 2025; Crouse, "On implementing 2D rectangular assignment algorithms", 2016.

    >>> import numpy as np, mlot
    >>> cost = np.array([[[1.0, 2.0, 9.0], [1.0, 9.0, 9.0]]])
    >>> mlot.assign(cost), mlot.assign(cost, "greedy")
    (array([[1, 0]]), array([[0, 1]]))
    """
    _checks.choice("method", method, ("optimal", "greedy", "rank"))
    xp, (cost,) = _arguments.resolve({"cost": cost}, backend)
    if len(cost.shape) != 3 or cost.shape[1] > cost.shape[2]:
        raise ValueError(f"cost: expected (B, R, S) with R <= S, got shape {tuple(cost.shape)}")
    if xp.kind(cost) != "float":
        raise TypeError(f"cost: expected floating-point numbers, got {cost.dtype}")
    return xp.assign(xp.stop_gradient(cost), method=method)


def default_pool(k: int) -> int:
    """Number of candidates for a match when ``pool`` is ``None``: 8 k, at least 256."""
    return max(8 * k, 256)


def matching_gap(
    cost: NDArray[np.float64],
    columns: NDArray[np.int64],
    teacher_mass: NDArray[np.float64],
    outside_mass: float,
) -> float:
    r"""Bound how far a matching found in a pool is from the best over the whole vocabulary (eq. 11).

    A column outside the pool has mass at most :math:`m`, so by the triangle inequality it costs the teacher
    column :math:`l` at least :math:`\max(0, \sum_i t_l(i) - m)`. The pooled problem with :math:`k` phantom
    columns of just that cost is a relaxation of the true problem; the bound is the matching's cost minus the
    relaxation's optimum. It is 0 whenever the relaxation uses no phantom, and never negative.

    Args:
        cost: L1 cost ``(k, pool)`` of one sequence.
        columns: matched candidates, ``(k,)``.
        teacher_mass: :math:`\sum_i t_l(i)` over the paired positions, ``(k,)``.
        outside_mass: :math:`m`, a bound on the mass that any column outside the pool has over the paired
            positions (which counts a position as often as it is paired); minus infinity if there
            is none.

    Returns:
        The bound, in the unit of the cost.

    Raises:
        ValueError: the shapes do not fit together, or a column is outside the cost.

    Source: ours; the relaxation is checked against matchings over the whole vocabulary in the tests.
    """
    from scipy.optimize import linear_sum_assignment  # takes a while to import

    if np.ndim(cost) != 2 or cost.shape[0] > cost.shape[1]:
        raise ValueError(f"cost: expected (k, pool) with k <= pool, got shape {np.shape(cost)}")
    for name, array in (("columns", columns), ("teacher_mass", teacher_mass)):
        if np.shape(array) != (len(cost),):
            raise ValueError(f"{name}: expected shape ({len(cost)},), got {np.shape(array)}")
    if len(columns) and not 0 <= np.min(columns) <= np.max(columns) < cost.shape[1]:
        raise ValueError(
            f"columns: expected 0 to {cost.shape[1] - 1}, got {np.min(columns)} to {np.max(columns)}"
        )
    rows = np.arange(len(cost))
    phantom = np.maximum(teacher_mass - outside_mass, 0.0)
    relaxed = np.concatenate([cost, np.repeat(phantom[:, None], len(cost), axis=1)], axis=1)
    assignment = linear_sum_assignment(relaxed)
    if (assignment[1] < cost.shape[1]).all():
        return 0.0  # exactly, where breaking ties and rounding would leave a trace
    return max(float(cost[rows, columns].sum() - relaxed[assignment].sum()), 0.0)
