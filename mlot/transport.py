"""Transport: from a cost and marginals to a plan, entropic or exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlot import _arguments, _checks
from mlot._typing import Array
from mlot.backends.base import Backend, Transport


@dataclass(frozen=True, eq=False)
class TransportResult:
    """A transport plan and its statistics; a batch axis is there if the cost had one.

    Attributes:
        plan: ``(B, T_t, T_s)``, rows the teacher's.
        value: ``(B,)``, the cost of the plan, ⟨P, C⟩.
        marginal_error: ``(B,)``, L1 distance of the plan's marginals from those asked for.
        n_iter: ``(B,)``, Sinkhorn rounds done; 0 for exact transport.
    """

    plan: Array
    value: Array
    marginal_error: Array
    n_iter: Array


def sinkhorn(
    cost: Array,
    a: Array | None = None,
    b: Array | None = None,
    *,
    epsilon: float = 0.1,
    n_iter: int = 20,
    tol: float | None = None,
    backend: str | None = None,
) -> TransportResult:
    r"""Scale the rows, then the columns, of a Gibbs kernel to given marginals, N times (eqs. 17-20).

    .. math:: K^0 = e^{-C/\lambda}, \quad
              K^{n-1/2} = \mathrm{diag}(a / K^{n-1}\mathbf 1)\,K^{n-1}, \quad
              K^n = K^{n-1/2}\,\mathrm{diag}(b / K^{n-1/2\top}\mathbf 1), \quad P = K^N

    The plan is that after :math:`N` rounds, and so is the gradient, through every round: it is neither the
    envelope gradient nor that of the limit. After a round the columns' marginals are exact, and
    ``marginal_error`` says how far the rows' are off. Backends that differentiate keep the potentials of each
    round, :math:`O(N (T_t + T_s))`, not the plans.

    Args:
        cost: ``(B, T_t, T_s)`` or ``(T_t, T_s)``, finite.
        a: weights of the rows, ``(B, T_t)`` or ``(T_t,)``, non-negative; ``None``: :math:`1/T_t` each.
        b: weights of the columns, ``(B, T_s)`` or ``(T_s,)``; ``None``: :math:`1/T_s` each.
        epsilon: :math:`\lambda`, the entropic regularisation, in the unit of the cost.
        n_iter: :math:`N`, the number of rounds (their bound, if ``tol`` is given).
        tol: stop a sequence after the first round whose marginal error is at most this.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `TransportResult`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range; totals of ``a`` and ``b``
            differ.

    Source: Cui et al., AAAI 2025; Cuturi, "Sinkhorn Distances", NeurIPS 2013.

    >>> import numpy as np, mlot
    >>> result = mlot.sinkhorn(np.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> result.plan.round(4)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    _checks.divisor("epsilon", epsilon)
    _checks.count("n_iter", n_iter)
    _checks.number("tol", tol, allow_none=True, allow_zero=True)
    xp, cost, a, b, single = _problem(cost, a, b, backend)
    transport = xp.sinkhorn(cost, a, b, epsilon=float(epsilon), n_iter=int(n_iter), tol=tol, cost_bound=None)
    return _result(transport, single)


def emd(
    cost: Array, a: Array | None = None, b: Array | None = None, *, backend: str | None = None
) -> TransportResult:
    r"""Solve optimal transport exactly.

    .. math:: \min_{P \ge 0} \langle P, C \rangle \quad\text{subject to}\quad
              P \mathbf 1 = a,\; P^\top \mathbf 1 = b

    The plan is a constant for differentiation; the value's gradient with respect to the cost is the plan,
    which is exact wherever the plan is unique. Weights get no gradient. Solved on the host.

    Args:
        cost: ``(B, T_t, T_s)`` or ``(T_t, T_s)``, finite.
        a: weights of the rows, ``(B, T_t)`` or ``(T_t,)``, non-negative; ``None``: :math:`1/T_t` each.
        b: weights of the columns, ``(B, T_s)`` or ``(T_s,)``; ``None``: :math:`1/T_s` each.
        backend: name of a backend; ``None`` finds it from the type of the arrays.

    Returns:
        `TransportResult`, with ``n_iter`` 0.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, shape or range; totals of ``a`` and ``b``
            differ; weights require a gradient.
        ImportError: POT is not installed.
        RuntimeError: POT's network simplex reports a failure.

    Source: Bonneel et al., "Displacement interpolation using Lagrangian mass transport", 2011 (POT's solver).
    """
    xp, cost, a, b, single = _problem(cost, a, b, backend)
    return _result(xp.emd(cost, a, b), single)


def _result(transport: Transport, single: bool) -> TransportResult:
    return TransportResult(*(array[0] for array in transport)) if single else TransportResult(*transport)


def _problem(
    cost: Array, a: Array | None, b: Array | None, backend: str | None
) -> tuple[Backend, Array, Array, Array, bool]:
    xp, (cost, a, b) = _arguments.resolve({"cost": cost, "a": a, "b": b}, backend)
    shape = tuple(cost.shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"cost: expected (B, T_t, T_s) or (T_t, T_s), got shape {shape}")
    _floating(xp, "cost", cost)
    if 0 in shape[-2:]:
        raise ValueError(f"cost: expected at least one row and one column, got shape {shape}")
    for name, weights, size in (("a", a, shape[-2]), ("b", b, shape[-1])):
        if weights is None:
            continue
        if tuple(weights.shape) not in ((size,), (*shape[:-2], size)):
            raise ValueError(
                f"{name}: expected shape {(*shape[:-2], size)} or ({size},), got {tuple(weights.shape)}"
            )
        _floating(xp, name, weights)
    single = len(shape) == 2
    if single:
        cost = cost[None]
    given = a is not None or b is not None
    every_row, every_column = xp.full_mask(cost), xp.full_mask(cost.swapaxes(1, 2))
    uniform_a, uniform_b = xp.marginals(every_column, every_row, cost)
    a = uniform_a if a is None else _weights(xp, "a", a, uniform_a)
    b = uniform_b if b is None else _weights(xp, "b", b, uniform_b)
    if given and shape[0]:
        total_a, total_b = (xp.stop_gradient(weights).sum(-1) for weights in (a, b))
        worst = int(abs(total_a - total_b).argmax())
        if float(abs(total_a - total_b)[worst]) > 1e-4 * float(total_a[worst]):
            raise ValueError(
                f"b: expected the total of a, {float(total_a[worst])}, got {float(total_b[worst])}"
            )
    return xp, cost, a, b, single


def _weights(xp: Backend, name: str, weights: Array, like: Array) -> Array:
    values = xp.stop_gradient(weights)
    if not bool((values >= 0).all()):
        raise ValueError(f"{name}: expected non-negative weights, got {float(values.min())}")
    if not bool((values.sum(-1) > 0).all()):
        raise ValueError(f"{name}: expected weights with a positive total, got 0")
    return weights + 0 * like  # given a batch axis and the precision of the computation


def _floating(xp: Any, name: str, array: Array) -> None:
    if xp.kind(array) != "float":
        raise TypeError(f"{name}: expected floating-point numbers, got {array.dtype}")
