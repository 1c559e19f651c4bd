"""Checks of transport: entropic after given rounds, and exact."""

from __future__ import annotations

import itertools

import numpy as np

from mlot.backends.base import Transport
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats
from mlot.testing._problems import rounded
from mlot.testing._subject import Errors, Subject, error_of, exactly

SETTINGS = ((0.1, 20), (0.5, 1), (0.05, 3), (1.0, 7), (0.01, 11))


def transport_problem(rng: np.random.Generator, n: int, single: bool) -> tuple[Floats, Floats, Floats]:
    """Costs between 0 and 2 and weights, some of them zero; one sequence without any."""
    batch, rows, columns = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 9), (1, 9)))
    cost = rounded(2 * rng.random((batch, rows, columns)), single)
    a, b = (_weights(rng, batch, size, n) for size in (rows, columns))
    if batch > 1:
        a[0], b[0] = 0.0, 0.0
    return cost, rounded(a, single), rounded(b, single)


def check_sinkhorn(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Plan, value and error after the rounds asked for, and the round at which a tolerance stops."""
    cost, a, b = transport_problem(rng, n, subject.single)
    epsilon, n_iter = SETTINGS[n % (4 if subject.single else len(SETTINGS))]
    epsilon = max(epsilon, 0.1) if subject.single else epsilon
    plans = [oracle.sinkhorn(*problem, epsilon, n_iter) for problem in zip(cost, a, b, strict=True)]
    errors = np.array(
        [[oracle.marginal_error(p, x, y) for p in ps] for ps, x, y in zip(plans, a, b, strict=True)]
    )
    last = np.full(len(cost), n_iter)
    for bound in (None, 2.0):
        transport = _solve(subject, cost, a, b, epsilon, n_iter, None, bound)
        truth = np.stack([ps[-1] for ps in plans])
        for what, error in _transport_errors(subject, transport, cost, a, b, truth):
            yield f"{what}, epsilon {epsilon}, cost_bound {bound}", error
        yield "rounds", _rounds_error(subject, transport, last, a)
        tol = tolerance_between(rng, errors, 1e-4 if subject.single else 1e-9)
        if tol is None:
            continue
        stop = np.array(
            [next((r for r, e in enumerate(row, 1) if e <= tol), n_iter) for row in errors.tolist()]
        )
        transport = _solve(subject, cost, a, b, epsilon, n_iter, tol, bound)
        truth = np.stack([ps[r - 1] for ps, r in zip(plans, stop, strict=True)])
        for what, error in _transport_errors(subject, transport, cost, a, b, truth):
            yield f"{what}, with a tolerance, cost_bound {bound}", error
        yield "rounds until a tolerance", _rounds_error(subject, transport, stop, a)


def check_sinkhorn_by_pot(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Plans after few rounds and after many, against POT's solver."""
    ot = oracle.pot()
    cost, a, b = transport_problem(rng, n, subject.single)
    for n_iter in (3, 60):
        plan = subject.read(_solve(subject, cost, a, b, 0.2, n_iter, None, 2.0).plan)
        truth = np.zeros(cost.shape)
        for m in range(len(cost)):
            block = np.ix_(a[m] > 0, b[m] > 0)
            if truth[m][block].size:
                # POT scales columns before rows.
                truth[m][block] = ot.sinkhorn(
                    b[m][b[m] > 0], a[m][a[m] > 0], cost[m][block].T, 0.2,
                    numItermax=n_iter, stopThr=0, warn=False,
                ).T  # fmt: skip
        yield f"plan after {n_iter} rounds", error_of(plan, truth)


def check_emd(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The value of exact transport, and a plan that has it."""
    oracle.pot()
    cost, a, b = transport_problem(rng, n, subject.single)
    transport = subject.xp.emd(subject.array(cost), subject.array(a), subject.array(b))
    truth = [oracle.exact_value(*problem) for problem in zip(cost, a, b, strict=True)]
    unit = np.where(a.sum(axis=1) > 0, np.maximum(truth, a.sum(axis=1)), 0.0)
    yield "value", error_of(subject.read(transport.value), truth, unit)
    plan = subject.read(transport.plan)
    yield "non-negative plan", 0.0 if (plan >= 0).all() else np.inf
    yield "rows of the plan", error_of(plan.sum(axis=2), a)
    yield "columns of the plan", error_of(plan.sum(axis=1), b)
    yield "cost of the plan", error_of(oracle.inner(plan, cost), truth, unit)
    yield "marginal error", error_of(subject.read(transport.marginal_error), np.zeros(len(cost)), unit)
    yield "rounds", exactly(subject.read(transport.n_iter, "integer"), np.zeros(len(cost)))


def check_inner(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Sum of products; a mass of zero counts nothing, even at an infinite cost."""
    shape = tuple(int(size) for size in rng.integers(1, 7, 3))
    cost = rounded(3 * rng.random(shape), subject.single)
    plan = rounded(rng.random(shape) * (rng.random(shape) < 0.7), subject.single)
    for what, prices in (("finite cost", cost), ("infinite cost", np.where(plan == 0, np.inf, cost))):
        got = subject.read(subject.xp.inner(subject.array(plan), subject.array(prices)))
        yield what, error_of(got, oracle.inner(plan, prices))


def _solve(
    subject: Subject, cost: Floats, a: Floats, b: Floats, epsilon: float, n_iter: int, tol: float | None,
    cost_bound: float | None,
) -> Transport:  # fmt: skip
    return subject.xp.sinkhorn(
        *(subject.array(values) for values in (cost, a, b)),
        epsilon=epsilon,
        n_iter=n_iter,
        tol=tol,
        cost_bound=cost_bound,
    )


def _transport_errors(
    subject: Subject, transport: Transport, cost: Floats, a: Floats, b: Floats, truth: Floats
) -> Errors:
    mass = a.sum(axis=1)
    yield "plan", error_of(subject.read(transport.plan), truth)
    yield "value", error_of(subject.read(transport.value), oracle.inner(truth, cost))
    error = [oracle.marginal_error(*problem) for problem in zip(truth, a, b, strict=True)]
    yield "marginal error", error_of(subject.read(transport.marginal_error), error, mass)


def _rounds_error(subject: Subject, transport: Transport, truth: Floats, a: Floats) -> float:
    """Rounds done, by the sequences that have mass."""
    rounds = subject.read(transport.n_iter, "integer")
    some = a.sum(axis=1) > 0
    return exactly(rounds[some], truth[some]) if rounds.shape == truth.shape else np.inf


def tolerance_between(rng: np.random.Generator, errors: Floats, least: float) -> float | None:
    """A tolerance well between the errors of two rounds, where there is one: rounding must not choose."""
    levels = np.unique(errors[errors > least])
    gaps = [(low * high) ** 0.5 for low, high in itertools.pairwise(levels) if high > 1.1 * low]
    return float(rng.choice(gaps)) if gaps else None


def _weights(rng: np.random.Generator, batch: int, size: int, n: int) -> Floats:
    weights = rng.random((batch, size)) + 0.1
    if size > 1:
        weights[:, 1:] *= rng.random((batch, size - 1)) < 0.8
    result: Floats = (1.0 + n % 2) * weights / weights.sum(axis=1, keepdims=True)
    return result
