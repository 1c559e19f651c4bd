"""Checks of gradients: of selection, costs and divergences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mlot._typing import Array, CostKind
from mlot.testing import _oracle as oracle
from mlot.testing._matching import KINDS
from mlot.testing._oracle import Floats, Integers, Mask, TraceData
from mlot.testing._problems import Model, Problem, make_problem, some_columns
from mlot.testing._slopes import (
    apart,
    clear_problem,
    clear_traces,
    distinct_mass,
    leaves,
    seen,
    slopes,
    trace_slopes,
    valid_total,
)
from mlot.testing._subject import Errors, Subject, labelled, total
from mlot.traces import Traces

# -- constants and copies --------------------------------------------------------------------------------


def gradient_of_stop_gradient(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """What is stopped is a constant: x * stop(x) has the derivative x."""
    values, weights = rng.normal(size=(2, 3, 4))
    gradients = subject.gradient(  # type: ignore[misc]
        lambda x: total(subject, subject.xp.stop_gradient(x) * x, weights), [subject.array(values)]
    )
    off = np.abs(subject.read(gradients[0]) - weights * values).max() / np.abs(weights * values).max()
    yield "derivative of x * stop(x)", float(off)


def gradient_of_convert(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The backend's own arrays keep their gradient."""
    values, weights = rng.normal(size=(2, 3, 4))
    yield from slopes(
        subject,
        rng,
        lambda x: total(subject, subject.xp.convert(x, "x"), weights),
        lambda x: float((x * weights).sum()),
        [values],
    )


# -- selection -------------------------------------------------------------------------------------------


def gradient_of_select(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Traces of the selected columns, by logits and by heads; the choice itself is a constant."""
    problem = clear_problem(rng, n, distinct_mass)
    model = problem.student
    sums = oracle.mass(model.logits(), model.mask, problem.temperature, problem.standardize)
    columns = oracle.heaviest(sums, problem.student_k)
    select = partial(subject.xp.select, k=problem.student_k)
    yield from _selection_slopes(subject, rng, problem, select, columns)


def gradient_of_take(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Traces of given columns, by logits and by heads."""
    problem = make_problem(rng, n, single=False, small=True)
    model = problem.student
    columns = some_columns(rng, len(model.mask), model.logits().shape[2], problem.k)

    def take(source: Array, mask: Array, **settings: object) -> Traces:
        return subject.xp.take(source, subject.array(columns), mask, **settings)  # type: ignore[arg-type]

    yield from _selection_slopes(subject, rng, problem, take, columns)


def _selection_slopes(
    subject: Subject,
    rng: np.random.Generator,
    problem: Problem,
    traces_of: Callable[..., Traces],
    columns: Integers,
) -> Errors:
    """Slopes of random sums of log-probabilities and normalisers at the valid positions."""
    model = problem.student
    kept = rng.normal(size=(*model.mask.shape, columns.shape[1]))
    others = rng.normal(size=(*model.mask.shape, len(problem.extra)))

    def ours(*arrays: Array) -> Array:
        traces = traces_of(
            subject.source(model, *arrays),
            subject.array(model.mask),
            temperature=problem.temperature,
            extra_temperatures=problem.extra,
            standardize=problem.standardize,
        )
        return _both(subject, traces, kept, others, model.mask)

    def truth(*arrays: Floats) -> float:
        settings = problem.temperature, problem.extra, problem.standardize
        data = oracle.traces(model.logits(*arrays), model.mask, columns, *settings)
        sums = (data.log_probs[model.mask] * kept[model.mask]).sum()
        return float(sums + (data.log_normalizers * others)[model.mask].sum())

    yield from slopes(subject, rng, ours, truth, model.arrays, model.free())


def gradient_of_keep(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The kept columns pass their gradient on."""
    _, student, _ = clear_traces(rng, n)
    index = some_columns(rng, len(student.mask), student.columns.shape[1], 2)
    kept = rng.normal(size=(*student.mask.shape, 2))
    others = rng.normal(size=student.log_normalizers.shape)

    def ours(log_probs: Array, normalizers: Array) -> Array:
        traces = subject.xp.keep(subject.traces(student, log_probs, normalizers), subject.array(index))
        return _both(subject, traces, kept, others, student.mask)

    def truth(log_probs: Floats, normalizers: Floats) -> float:
        picked = np.stack([rows[:, row] for rows, row in zip(log_probs, index, strict=True)])
        sums = (picked[student.mask] * kept[student.mask]).sum()
        return float(sums + (normalizers * others)[student.mask].sum())

    yield from slopes(subject, rng, ours, truth, leaves(student), seen(student))


def _both(subject: Subject, traces: Traces, kept: Floats, others: Floats, mask: Mask) -> Array:
    return valid_total(subject, traces.log_probs, kept, mask) + valid_total(
        subject, traces.log_normalizers, others, mask
    )


# -- costs and divergences -------------------------------------------------------------------------------


def gradient_of_token_cost(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By both models' traces, for both kinds of cost, at every temperature."""
    problem, student, teacher = clear_traces(rng, n)

    def cost(s: Traces, t: Traces, *, kind: CostKind, temperature: float | None) -> Array:
        return subject.xp.token_cost(s, t, subject.array(problem.pairs), kind=kind, temperature=temperature)

    for kind in KINDS:
        for temperature in (None, *problem.extra):
            operation = partial(cost, kind=kind, temperature=temperature)
            formula = partial(oracle.token_cost, pairs=problem.pairs, kind=kind)
            errors = trace_slopes(subject, rng, operation, formula, student, teacher, temperature)
            yield from labelled(kind, errors)


def gradient_of_sequence_cost(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By both models' traces and by a coupling."""
    problem, student, teacher, coupling = _mixed_traces(rng, n)
    masks = problem.student.mask, problem.teacher.mask

    def operation(s: Traces, t: Traces, *mix: Array, kind: CostKind, temperature: float | None) -> Array:
        return subject.xp.sequence_cost(
            s, t, kind=kind, temperature=temperature, coupling=mix[0] if mix else None
        )

    def formula(s: Floats, t: Floats, *mix: Floats, kind: CostKind) -> Floats:
        return oracle.sequence_cost(s, t, *masks, kind, *mix)

    for kind in KINDS:
        for temperature in (None, *problem.extra):
            for others in ([], [coupling]):
                errors = trace_slopes(
                    subject,
                    rng,
                    partial(operation, kind=kind, temperature=temperature),
                    partial(formula, kind=kind),
                    *(student, teacher, temperature),
                    others,
                )
                yield from labelled(f"{kind}, with a coupling" if others else kind, errors)


def _mixed_traces(rng: np.random.Generator, n: int) -> tuple[Problem, TraceData, TraceData, Floats]:
    """Traces and a coupling under which student and teacher are clearly different too."""
    while True:
        problem, student, teacher = clear_traces(rng, n)
        coupling = rng.dirichlet(np.full(3, 5.0), size=(len(student.columns), 3))
        for temperature in (None, *problem.extra):
            if not _apart_when_mixed(student.at(temperature), teacher.at(temperature), coupling):
                break
        else:
            return problem, student, teacher, coupling


def _apart_when_mixed(student: Floats, teacher: Floats, coupling: Floats) -> bool:
    with np.errstate(divide="ignore"):
        mixed = np.log(np.einsum("blm,bjm->bjl", coupling, np.exp(student)))
    return apart(mixed[:, None, :, :], teacher[:, :, None, :])


def gradient_of_had(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By both models' traces; zero between equal traces."""
    problem, student, teacher = clear_traces(rng, n)

    def operation(s: Traces, t: Traces) -> Array:
        return subject.xp.had(s, t, subject.array(problem.pairs))

    formula = partial(oracle.had, pairs=problem.pairs)
    yield from trace_slopes(subject, rng, operation, formula, student, teacher)
    positions = np.arange(student.mask.shape[1])
    same = np.where(student.mask[:, :, None], np.stack([positions, positions], axis=1)[None], -1)
    gradients = subject.gradient(  # type: ignore[misc]
        lambda x: subject.xp.had(
            subject.traces(student, x), subject.traces(student), subject.array(same)
        ).sum(),
        [subject.array(student.log_probs)],
    )
    yield "subgradient at ties", np.inf if subject.read(gradients[0]).any() else 0.0


def gradient_of_sl(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By both models' traces, also where the teacher gives a column no mass."""
    problem, student, teacher = clear_traces(rng, n)

    def operation(s: Traces, t: Traces) -> Array:
        return subject.xp.sl(s, t, subject.array(problem.pairs))

    formula = partial(oracle.sl, pairs=problem.pairs)
    yield from trace_slopes(subject, rng, operation, formula, student, teacher)
    student.log_probs[:, :, 0] = teacher.log_probs[:, :, 0] = -np.inf
    yield from labelled("impossible column", trace_slopes(subject, rng, operation, formula, student, teacher))


def gradient_of_uld(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """By the logits or heads of both models; zero at positions that have no pair."""
    problem = clear_problem(rng, n, _sorted_apart)
    models = problem.student, problem.teacher
    weights = rng.normal(size=len(problem.pairs))
    split = len(models[0].arrays)

    def ours(*arrays: Array) -> Array:
        distances = subject.xp.uld(
            subject.source(models[0], *arrays[:split]),
            subject.source(models[1], *arrays[split:]),
            subject.array(models[0].mask),
            subject.array(models[1].mask),
            subject.array(problem.pairs),
        )
        return total(subject, distances, weights)

    def truth(*arrays: Floats) -> float:
        logits = models[0].logits(*arrays[:split]), models[1].logits(*arrays[split:])
        return float((oracle.uld(*logits, problem.pairs) * weights).sum())

    free = [entries for side, model in enumerate(models) for entries in _paired(problem.pairs, side, model)]
    yield from slopes(subject, rng, ours, truth, [*models[0].arrays, *models[1].arrays], free)


def _paired(pairs: Integers, side: int, model: Model) -> list[Mask]:
    """Entries of a model's arrays that a position with a pair depends on."""
    partner = np.zeros(model.mask.shape, dtype=bool)
    for b, rows in enumerate(pairs[:, :, side].tolist()):
        partner[b, [position for position in rows if position >= 0]] = True
    first, *rest = model.free()
    return [first & partner[:, :, None], *rest]


def _sorted_apart(problem: Problem) -> bool:
    """Whether sorted probabilities of paired positions are clearly different, in a row and between rows."""
    for b, rows in enumerate(problem.pairs.tolist()):
        for i, j in rows:
            if i < 0:
                continue
            s, t = (
                np.sort(oracle.log_softmax(model.logits()[b, where], 1.0))[::-1]
                for model, where in ((problem.student, i), (problem.teacher, j))
            )
            width = min(len(s), len(t))
            if not (apart(s[:width], t[:width]) and apart(s[1:], s[:-1]) and apart(t[1:], t[:-1])):
                return False
    return True
