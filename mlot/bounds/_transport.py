r"""How far the value of N rounds of Sinkhorn can move when only bounds on its cost are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def value_bounds(
    cost: Floats, low: Floats, high: Floats, *, epsilon: float, n_iter: int, tol: float | None
) -> tuple[float, float, float]:
    r"""Value :math:`\langle P_N(C), C \rangle` at a cost, and bounds for all from ``low`` to ``high``.

    Marginals are uniform. The last half round makes the columns sum to :math:`b`, so the value is
    :math:`\sum_j b_j \sum_i w_{ij} C_{ij}` with weights
    :math:`w_{\cdot j} = \mathrm{softmax}_i(f_i - C_{ij} / \lambda)`. The bounds are the tightest of three.

    1. *Range.* A mean lies between the extremes: :math:`\sum_j b_j \min_i C^-_{ij}` and
       :math:`\sum_j b_j \max_i C^+_{ij}`. With a tolerance, which may stop at another round, this is all, and
       what is returned as the value is its lower end.
    2. *Intervals of potentials.* :math:`f_i = \log a_i - \mathrm{LSE}_j(g_j - C_{ij} / \lambda)` falls in
       :math:`g` and grows with :math:`C`, as :math:`g` does in its turn: ends of intervals follow from ends.
       Then each weight has an interval, and the extreme mean under interval weights takes the upper ends for
       the largest costs and the lower ends for the rest (a linear-fractional programme over a box), or the
       reverse.
    3. *Hilbert's metric.* Let the spread be the largest less the smallest difference of the potentials of two
       runs, at ``cost`` and at another :math:`C'`. A half round from the same potentials parts them by at
       most the spread of :math:`(C - C') / \lambda`; a half round at ``cost`` from different ones contracts
       their spread by :math:`\tanh(\Delta / 4)` (Birkhoff), :math:`\Delta` the projective diameter of its
       kernel, :math:`\max (C_{ij} - C_{i'j} - C_{ij'} + C_{i'j'}) / \lambda`; the triangle inequality adds
       both. Weights do not see constants, so half the spread to either side of the potentials at ``cost``
       bounds them, and the mean as in 2.
    """
    from scipy.special import logsumexp  # takes a while to import

    f, f_low, f_high, spread = potential_bounds(cost, low, high, epsilon=epsilon, n_iter=n_iter)
    logits = f[:, None] - cost / epsilon
    weights = np.exp(logits - logsumexp(logits, axis=0))
    value = float((weights * cost).sum() / cost.shape[1])
    bottom, top = float(low.min(axis=0).mean()), float(high.max(axis=0).mean())
    if tol is None:
        for below, above in ((f_low, f_high), (f - spread / 2, f + spread / 2)):
            lightest, heaviest = below[:, None] - high / epsilon, above[:, None] - low / epsilon
            top = min(top, _extreme_mean(high, lightest, heaviest))
            bottom = max(bottom, -_extreme_mean(-low, lightest, heaviest))
    else:  # the value at the cost, too, is that of a round which is not known here
        return bottom, bottom, top
    return value, min(bottom, value), max(top, value)


def potential_bounds(
    cost: Floats, low: Floats, high: Floats, *, epsilon: float, n_iter: int
) -> tuple[Floats, Floats, Floats, float]:
    """Potentials of the rows in the last of N rounds, their least and largest, and the spread; see above."""
    from scipy.special import logsumexp  # takes a while to import

    rows, columns = cost.shape
    log_a, log_b = -np.log(rows), -np.log(columns)
    g, g_low, g_high = np.zeros((3, columns))
    f = f_low = f_high = np.zeros(rows)
    spread = 0.0
    step = (float((high - cost).max()) + float((cost - low).max())) / epsilon
    contracting = contraction(cost, epsilon)
    for n in range(n_iter):
        f = log_a - logsumexp(g - cost / epsilon, axis=1)
        f_low = log_a - logsumexp(g_high - low / epsilon, axis=1)
        f_high = log_a - logsumexp(g_low - high / epsilon, axis=1)
        spread = step + contracting * spread
        if n == n_iter - 1:
            break
        g = log_b - logsumexp(f[:, None] - cost / epsilon, axis=0)
        g_low = log_b - logsumexp(f_high[:, None] - low / epsilon, axis=0)
        g_high = log_b - logsumexp(f_low[:, None] - high / epsilon, axis=0)
        spread = step + contracting * spread
    return f, f_low, f_high, spread


def contraction(cost: Floats, epsilon: float) -> float:
    """Birkhoff's coefficient of a half round: what it leaves of the spread between two potentials at most."""
    diameter = max(float(np.ptp(row - cost, axis=1).max()) for row in cost) / epsilon
    return float(np.tanh(diameter / 4))


def _extreme_mean(values: Floats, lightest: Floats, heaviest: Floats) -> float:
    """Mean over columns of the largest mean of a column under weights between two (given by logarithms)."""
    order = np.argsort(-values, axis=0)
    values, lightest, heaviest = (np.take_along_axis(x, order, axis=0) for x in (values, lightest, heaviest))
    reference = heaviest.max(axis=0)
    light, heavy = np.exp(lightest - reference), np.exp(heaviest - reference)
    gain = heavy - light
    weights = light.sum(axis=0) + np.cumsum(gain, axis=0)  # the first so many at their heaviest
    sums = (light * values).sum(axis=0) + np.cumsum(gain * values, axis=0)
    best = np.divide(sums, weights, out=np.full(sums.shape, -np.inf), where=weights > 0)
    return float(best.max(axis=0).mean())
