"""Checks of selection: which columns are kept, and what traces hold of them."""

from __future__ import annotations

import numpy as np

from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers, TraceData
from mlot.testing._problems import Model, Problem, make_problem, some_columns
from mlot.testing._subject import Errors, MismatchError, Subject, error_of, exactly
from mlot.traces import Traces


def check_select(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The heaviest columns, in order, and their traces."""
    problem = make_problem(rng, n, subject.single)
    for who, model in (("student", problem.student), ("teacher", problem.teacher)):
        traces = subject.xp.select(
            subject.source(model),
            subject.array(model.mask),
            k=min(problem.k, model.logits().shape[2]),
            temperature=problem.temperature,
            extra_temperatures=problem.extra,
            standardize=problem.standardize,
        )
        columns = subject.read(traces.columns, "integer")
        sums = oracle.mass(model.logits(), model.mask, problem.temperature, problem.standardize)
        yield f"{who}: columns by mass", heaviest_error(columns, sums, min(problem.k, sums.shape[1]))
        empty = ~model.mask.any(axis=1)
        lowest = np.broadcast_to(np.arange(columns.shape[1]), (int(empty.sum()), columns.shape[1]))
        yield f"{who}: lowest columns of an empty sequence", exactly(columns[empty], lowest)
        for what, error in _traces_errors(subject, traces, model, problem, columns):
            yield f"{who}: {what}", error
    yield "ties by lower index", _tie_error(subject, rng)


def check_take(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Traces of given columns, in the order given."""
    problem = make_problem(rng, n, subject.single)
    for who, model in (("student", problem.student), ("teacher", problem.teacher)):
        columns = some_columns(rng, len(model.mask), model.logits().shape[2], problem.k)
        traces = subject.xp.take(
            subject.source(model),
            subject.array(columns),
            subject.array(model.mask),
            temperature=problem.temperature,
            extra_temperatures=problem.extra,
            standardize=problem.standardize,
        )
        yield f"{who}: columns", exactly(subject.read(traces.columns, "integer"), columns)
        for what, error in _traces_errors(subject, traces, model, problem, columns):
            yield f"{who}: {what}", error


def check_keep(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Kept columns are those pointed at, in that order; all else stays."""
    problem = make_problem(rng, n, subject.single)
    model = problem.teacher
    data = problem.traces(model, some_columns(rng, len(model.mask), model.logits().shape[2], problem.k))
    width = int(rng.integers(1, data.columns.shape[1] + 1))
    index = some_columns(rng, len(model.mask), data.columns.shape[1], width)
    traces = subject.xp.keep(subject.traces(data), subject.array(index))
    pick = [list(zip(*rows, strict=True)) for rows in zip(data.columns, data.column_mass, strict=True)]
    kept = [[pick[b][column] for column in row] for b, row in enumerate(index.tolist())]
    yield "columns", exactly(subject.read(traces.columns, "integer"), [[c for c, _ in row] for row in kept])
    yield "column mass", error_of(subject.read(traces.column_mass), [[m for _, m in row] for row in kept])
    log_probs = np.stack([rows[:, row] for rows, row in zip(data.log_probs, index, strict=True)])
    yield "log-probabilities", error_of(subject.read(traces.log_probs), log_probs)
    yield "normalisers", error_of(subject.read(traces.log_normalizers), data.log_normalizers)
    yield from _settings_errors(subject, traces, data)


def heaviest_error(columns: Integers, sums: Floats, k: int) -> float:
    """How far the columns' masses are from the k largest, in order; infinite where columns repeat."""
    if columns.shape != (len(sums), k):
        raise MismatchError(f"expected columns of shape {(len(sums), k)}, got {columns.shape}")
    if (
        any(len(set(row)) < k for row in columns.tolist())
        or (columns < 0).any()
        or (columns >= sums.shape[1]).any()
    ):
        raise MismatchError(f"expected {k} different columns of {sums.shape[1]}, got {columns.tolist()}")
    return error_of(np.take_along_axis(sums, columns, axis=1), -np.sort(-sums, axis=1)[:, :k])


def _traces_errors(
    subject: Subject, traces: Traces, model: Model, problem: Problem, columns: Integers
) -> Errors:
    """Traces against softmax at every temperature that they serve."""
    settings = problem.temperature, problem.extra, problem.standardize
    yield from model_traces_errors(subject, traces, model, columns, settings)


def model_traces_errors(
    subject: Subject,
    traces: Traces,
    model: Model,
    columns: Integers,
    settings: tuple[float, tuple[float, ...], bool],
) -> Errors:
    """Traces of a model's columns against softmax; settings are temperatures and whether to standardise."""
    logits, (_, extra, standardize) = model.logits(), settings
    truth = oracle.traces(logits, model.mask, columns, *settings)
    yield from _settings_errors(subject, traces, truth)
    yield "column mass", error_of(subject.read(traces.column_mass), truth.column_mass, model.mask.sum(axis=1))
    yield "log-probabilities", _log_error(subject.read(traces.log_probs), truth.log_probs)
    if tuple(traces.log_normalizers.shape) != truth.log_normalizers.shape:
        raise MismatchError(
            f"expected normalisers {truth.log_normalizers.shape}, got {traces.log_normalizers.shape}"
        )
    for temperature in extra:
        there = oracle.traces(logits, model.mask, columns, temperature, (), standardize)
        values = subject.read(traces.at(temperature))
        blank = np.where(model.mask[:, :, None], values, -np.inf)
        yield f"log-probabilities at temperature {temperature}", _log_error(blank, there.log_probs)


def _settings_errors(subject: Subject, traces: Traces, truth: TraceData) -> Errors:
    kept = (traces.vocab_size, traces.temperature, traces.extra_temperatures, traces.standardize)
    wanted = (truth.vocab_size, truth.temperature, truth.extra, truth.standardize)
    if kept != wanted:
        raise MismatchError(f"expected vocabulary, temperatures and standardize {wanted}, got {kept}")
    yield "mask", exactly(subject.read(traces.mask, "bool"), truth.mask)


def _log_error(got: Floats, truth: Floats) -> float:
    """Error of logarithms, whose unit is 1 where they are small."""
    unit = np.abs(np.where(np.isfinite(truth), truth, 0.0)).max(axis=(1, 2), initial=1.0)
    return error_of(got, truth, unit)


def _tie_error(subject: Subject, rng: np.random.Generator) -> float:
    """Columns that are equal at every position come in the order of their indices.

    Each column is as likely as any other, or impossible, at each position, so that sums tie exactly.
    """
    while True:
        patterns = rng.integers(0, 2, size=(4, 3))  # positions at which a column is possible
        which = rng.integers(0, 4, size=13)
        live = patterns[which].T  # (T, V)
        if not live.any(axis=1).all():
            continue
        masses = (patterns / live.sum(axis=1)).sum(axis=1)
        if np.diff(np.unique(masses)).min(initial=1.0) > 1e-3 and len(np.unique(masses)) == len(
            np.unique(patterns, axis=0)
        ):
            break
    logits = np.where(live, 0.0, -1e4)[None]
    truth = sorted(range(13), key=lambda column: (-masses[which[column]], column))
    traces = subject.xp.select(
        subject.array(logits),
        subject.array(np.ones((1, 3), dtype=bool)),
        k=9,
        temperature=1.0,
        extra_temperatures=(2.0,),
        standardize=False,
    )
    return exactly(subject.read(traces.columns, "integer"), [truth[:9]])
