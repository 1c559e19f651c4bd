"""Checks of gradients: of transport, and of the whole loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

import mlot
from mlot._typing import Array, Matching
from mlot.config import MultiLevelOTConfig
from mlot.testing import _loss, _transport
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers, Mask
from mlot.testing._problems import Problem, make_problem
from mlot.testing._slopes import slopes
from mlot.testing._subject import Errors, Subject, labelled, total

# -- transport -------------------------------------------------------------------------------------------


def gradient_of_sinkhorn(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Of plan and value, through all the rounds done, by cost and weights."""
    epsilon, n_iter = _transport.SETTINGS[n % len(_transport.SETTINGS)]
    epsilon = max(epsilon, 0.03)  # below, a difference over the step is no derivative any more
    cost, a, b = _transport.transport_problem(rng, n, single=False)
    positive = [np.where(w.sum(axis=1, keepdims=True) > 0, w + 0.1, 0.0)[-1:] for w in (a, b)]
    yield from _sinkhorn_slopes(subject, rng, [cost[-1:], *positive], epsilon, n_iter, n % 2 == 0)
    masses = (a > 0)[:, :, None] & (b > 0)[:, None, :]
    errors = _sinkhorn_slopes(subject, rng, [cost], epsilon, n_iter, n % 2 == 1, (a, b), [masses])
    yield from labelled("zero weights", errors)


def _sinkhorn_slopes(
    subject: Subject,
    rng: np.random.Generator,
    arrays: list[Floats],
    epsilon: float,
    n_iter: int,
    bounded: bool,
    fixed: Sequence[Floats] = (),
    free: list[Mask] | None = None,
) -> Errors:
    """Slopes without and with a tolerance, by the arrays; what follows them is fixed."""
    cost, a, b = [*arrays, *fixed]
    plan_weights, value_weights = rng.normal(size=cost.shape), rng.normal(size=len(cost))
    plans = [oracle.sinkhorn(*of, epsilon, n_iter) for of in zip(cost, a, b, strict=True)]
    levels = [[oracle.marginal_error(p, x, y) for p in ps] for ps, x, y in zip(plans, a, b, strict=True)]
    for tol in (None, _transport.tolerance_between(rng, np.array(levels), 1e-7)):
        rounds = [
            next((r for r, e in enumerate(row, 1) if tol is not None and e <= tol), n_iter) for row in levels
        ]

        def ours(*inputs: Array, tol: float | None) -> Array:
            transport = subject.xp.sinkhorn(
                *inputs,
                *(subject.array(values) for values in fixed),
                epsilon=epsilon,
                n_iter=n_iter,
                tol=tol,
                cost_bound=2.0 if bounded else None,
            )
            return total(subject, transport.plan, plan_weights) + total(
                subject, transport.value, value_weights
            )

        def truth(*inputs: Floats, rounds: list[int]) -> float:
            problems = zip(*inputs, *fixed, rounds, strict=True)
            plans = np.stack([oracle.sinkhorn(c, x, y, epsilon, r)[-1] for c, x, y, r in problems])
            return float(
                (plans * plan_weights).sum() + (oracle.inner(plans, inputs[0]) * value_weights).sum()
            )

        errors = slopes(subject, rng, partial(ours, tol=tol), partial(truth, rounds=rounds), arrays, free)
        yield from labelled("no tolerance" if tol is None else "a tolerance", errors)


def gradient_of_emd(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The value's gradient by the cost is the plan."""
    oracle.pot()
    cost, a, b = _transport.transport_problem(rng, n, single=False)
    weights = rng.normal(size=len(cost))

    def ours(prices: Array) -> Array:
        return total(subject, subject.xp.emd(prices, subject.array(a), subject.array(b)).value, weights)

    def truth(prices: Floats) -> float:
        return float(sum(w * oracle.exact_value(*of) for w, *of in zip(weights, prices, a, b, strict=True)))

    yield from slopes(subject, rng, ours, truth, [cost])


def gradient_of_inner(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By plan and cost."""
    plan, cost = 0.1 + rng.random((2, 2, 3, 4))
    weights = rng.normal(size=2)
    yield from slopes(
        subject,
        rng,
        lambda p, c: total(subject, subject.xp.inner(p, c), weights),
        lambda p, c: float((oracle.inner(p, c) * weights).sum()),
        [plan, cost],
    )


# -- the whole loss --------------------------------------------------------------------------------------


def gradient_of_loss(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By the logits or heads of both models, for every matching; columns and matching are constants."""
    for m, matching in enumerate(_loss.MATCHINGS):
        problem, config, columns = _clear_loss(subject, rng, n, n + m, matching)
        models = problem.student, problem.teacher
        split = len(models[0].arrays)
        weights = rng.normal(size=len(problem.pairs))
        ours = partial(_our_loss, subject, problem, config, split, weights)
        truth = partial(_true_loss, problem, config, split, weights, columns)
        arrays = [*models[0].arrays, *models[1].arrays]
        errors = slopes(subject, rng, ours, truth, arrays, [*models[0].free(), *models[1].free()])
        yield from labelled(matching, errors)


def _our_loss(
    subject: Subject,
    problem: Problem,
    config: MultiLevelOTConfig,
    split: int,
    weights: Floats,
    *arrays: Array,
) -> Array:
    arguments = _loss.loss_arguments(subject, problem)
    arguments["student"] = subject.source(problem.student, *arrays[:split])
    arguments["teacher"] = subject.source(problem.teacher, *arrays[split:])
    return total(subject, mlot.multi_level_ot(**arguments, config=config, reduction="none").loss, weights)


def _true_loss(
    problem: Problem,
    config: MultiLevelOTConfig,
    split: int,
    weights: Floats,
    columns: tuple[Integers, Integers],
    *arrays: Floats,
) -> float:
    logits = problem.student.logits(*arrays[:split]), problem.teacher.logits(*arrays[split:])
    return float((_loss.terms(problem, config, *logits, *columns).loss * weights).sum())


def _clear_loss(
    subject: Subject, rng: np.random.Generator, n: int, m: int, matching: Matching
) -> tuple[Problem, MultiLevelOTConfig, tuple[Integers, Integers]]:
    """A problem of which no compared probabilities are close, its settings and its columns."""
    for _ in range(500):
        problem = make_problem(rng, n, single=False, small=True)
        config = _loss.settings(problem, matching, m)
        result = mlot.multi_level_ot(**_loss.loss_arguments(subject, problem), config=config)
        columns = _loss.read_columns(subject, result)
        if _loss.clear(problem, config, *columns):
            return problem, config, columns
    raise RuntimeError("found no problem far from kinks")
