"""Comparing gradients with central differences, on data that is far from every kink."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlot._typing import Array
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Mask, TraceData
from mlot.testing._problems import Problem, make_problem, some_columns
from mlot.testing._subject import Errors, MismatchError, Subject, total

STEP = 1e-6
DIRECTIONS = 2
#: Least distance of two probabilities, relative to their sum, at which |t - s| is differentiated.
CLEAR = 1e-4


def slopes(
    subject: Subject,
    rng: np.random.Generator,
    ours: Callable[..., Array],
    truth: Callable[..., float],
    arrays: Sequence[Floats],
    free: Sequence[Mask] | None = None,
) -> Errors:
    """Errors of directional derivatives by each array, relative to the gradient's size.

    Where ``free`` is false nothing depends on an array, and the gradient must be exactly zero.
    """
    assert subject.gradient is not None
    gradients = subject.gradient(ours, [subject.array(array) for array in arrays])
    for n, array in enumerate(arrays):
        gradient = subject.read(gradients[n])
        where = np.ones(array.shape, dtype=bool) if free is None else free[n]
        if gradient.shape != array.shape:
            raise MismatchError(f"expected a gradient of shape {array.shape}, got {gradient.shape}")
        yield f"argument {n}: zero where nothing depends on it", np.inf if gradient[~where].any() else 0.0
        for _ in range(DIRECTIONS):
            step = np.where(where, rng.normal(size=array.shape), 0.0)
            up, down = (truth(*arrays[:n], array + sign * STEP * step, *arrays[n + 1 :]) for sign in (1, -1))
            slope = (up - down) / (2 * STEP)
            off = abs(float((gradient[where] * step[where]).sum()) - slope)
            # A difference of values of size f resolves slopes down to about 1e-10 f, and no gradient of zero.
            size = max(abs(slope), float(np.linalg.norm(gradient[where])), 1e-3 * max(1.0, abs(up)))
            yield f"argument {n}: slope in a random direction", off / size if off else 0.0


def trace_slopes(
    subject: Subject,
    rng: np.random.Generator,
    operation: Callable[..., Array],
    formula: Callable[..., Floats],
    student: TraceData,
    teacher: TraceData,
    temperature: float | None = None,
    others: Sequence[Floats] = (),
) -> Errors:
    """`slopes` of a random sum of a result, by the arrays of both models' traces and by others.

    ``operation`` takes traces of student and teacher, ``formula`` their log-probabilities at the temperature;
    both then take the others.
    """
    shape = formula(student.at(temperature), teacher.at(temperature), *others).shape
    weights = rng.normal(size=shape)

    def ours(s: Array, s_normalizers: Array, t: Array, t_normalizers: Array, *rest: Array) -> Array:
        traces = subject.traces(student, s, s_normalizers), subject.traces(teacher, t, t_normalizers)
        return total(subject, operation(*traces, *rest), weights)

    def truth(s: Floats, s_normalizers: Floats, t: Floats, t_normalizers: Floats, *rest: Floats) -> float:
        sides = (student.moved(s, s_normalizers), teacher.moved(t, t_normalizers))
        return float((formula(*(side.at(temperature) for side in sides), *rest) * weights).sum())

    arrays = [*leaves(student), *leaves(teacher), *others]
    free = [*seen(student), *seen(teacher), *(np.ones(other.shape, dtype=bool) for other in others)]
    for what, error in slopes(subject, rng, ours, truth, arrays, free):
        yield f"{what}, temperature {temperature}", error


def leaves(data: TraceData) -> list[Floats]:
    """Differentiable arrays of traces."""
    return [data.log_probs, data.log_normalizers]


def seen(data: TraceData) -> list[Mask]:
    """Entries of `leaves` that a result may depend on: those of valid positions, of possible columns."""
    valid = data.mask[:, :, None]
    return [np.isfinite(data.log_probs) & valid, np.broadcast_to(valid, data.log_normalizers.shape)]


def valid_total(subject: Subject, array: Array, weights: Floats, mask: Mask) -> Array:
    """Weighted sum over the valid positions of ``(B, T, n)``, a scalar."""
    result = subject.array(np.zeros(()))
    for b, t in zip(*np.nonzero(mask), strict=True):
        result = result + total(subject, array[int(b), int(t)], weights[b, t])
    return result


# -- far from kinks --------------------------------------------------------------------------------------


def clear_problem(rng: np.random.Generator, n: int, accept: Callable[[Problem], bool]) -> Problem:
    """A small problem that is accepted as far from every kink."""
    for _ in range(500):
        problem = make_problem(rng, n, single=False, small=True)
        if accept(problem):
            return problem
    raise RuntimeError("found no problem far from kinks")


def apart(student: Floats, teacher: Floats) -> bool:
    """Whether all probabilities that will be compared are clearly different."""
    s, t = np.exp(student), np.exp(teacher)
    return bool((np.abs(t - s) > CLEAR * (t + s))[t + s > 0].all())


def clear_traces(rng: np.random.Generator, n: int) -> tuple[Problem, TraceData, TraceData]:
    """Traces of three columns each, clearly different between any two columns and positions."""
    for _ in range(500):
        problem = make_problem(rng, n, single=False, small=True)
        student, teacher = (
            problem.traces(model, some_columns(rng, len(model.mask), model.logits().shape[2], 3))
            for model in (problem.student, problem.teacher)
        )
        temperatures = (None, *problem.extra)
        if all(
            apart(student.at(t)[:, :, None, :, None], teacher.at(t)[:, None, :, None, :])
            for t in temperatures
        ):
            return problem, student, teacher
    raise RuntimeError("found no traces far from kinks")


def distinct_mass(problem: Problem) -> bool:
    """Whether no two columns of the student are nearly as heavy."""
    model = problem.student
    sums = oracle.mass(model.logits(), model.mask, problem.temperature, problem.standardize)
    return bool((np.diff(np.sort(sums[model.mask.any(axis=1)], axis=1), axis=1) > 1e-3).all())
