"""Checks of costs between columns and between positions, of the matching, and of the marginals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlot._typing import CostKind
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers, TraceData
from mlot.testing._problems import make_problem, rounded, some_columns
from mlot.testing._subject import Errors, MismatchError, Subject, error_of, exactly

KINDS: tuple[CostKind, ...] = ("l1", "log")


def matched_traces(
    subject: Subject, rng: np.random.Generator, n: int, *, steep: bool = True
) -> tuple[TraceData, TraceData, Integers]:
    """Traces of two models with as many columns each, and pairs of their positions.

    One student column is so improbable that only its logarithm can be held.
    """
    problem = make_problem(rng, n, subject.single)
    width = min(problem.k, problem.student_k, problem.teacher.logits().shape[2])
    student, teacher = (
        problem.traces(model, some_columns(rng, len(model.mask), model.logits().shape[2], width))
        for model in (problem.student, problem.teacher)
    )
    if steep and width > 1:
        student.log_probs[:, :, -1] -= 900.0 if n % 2 else 60.0
    return student, teacher, problem.pairs


def check_token_cost(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Cost between columns, of as many or more of the student's, at every temperature."""
    problem = make_problem(rng, n, subject.single)
    models = problem.student, problem.teacher
    common = min(problem.k, *(model.logits().shape[2] for model in models))
    widths = (common, common) if n % 3 == 0 else (2 * problem.k, problem.k)
    student, teacher = (
        problem.traces(model, some_columns(rng, len(model.mask), model.logits().shape[2], width))
        for model, width in zip(models, widths, strict=True)
    )
    if student.columns.shape[1] > 1:
        student.log_probs[:, :, 0] -= 900.0
    for kind in KINDS:
        for temperature in (None, *problem.extra):
            got = subject.xp.token_cost(
                subject.traces(student),
                subject.traces(teacher),
                subject.array(problem.pairs),
                kind=kind,
                temperature=temperature,
            )
            truth = oracle.token_cost(student.at(temperature), teacher.at(temperature), problem.pairs, kind)
            unit = truth_unit(truth, problem.counts())
            yield f"{kind} at temperature {temperature}", error_of(subject.read(got), truth, unit)


def check_sequence_cost(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Cost between positions, with and without a coupling, at every temperature."""
    student, teacher, _ = matched_traces(subject, rng, n, steep=False)
    batch, width = student.columns.shape
    coupling = rounded(rng.dirichlet(np.ones(width), size=(batch, width)), subject.single)
    steep, _, _ = matched_traces(subject, np.random.default_rng(n), n)
    for kind in KINDS:
        for temperature in (None, *student.extra):
            for mixed in (None, coupling):
                got = subject.xp.sequence_cost(
                    subject.traces(student),
                    subject.traces(teacher),
                    kind=kind,
                    temperature=temperature,
                    coupling=None if mixed is None else subject.array(mixed),
                )
                truth = _sequence_cost(student, teacher, kind, temperature, mixed)
                what = f"{kind} at temperature {temperature}" + (
                    " with a coupling" if mixed is not None else ""
                )
                yield what, error_of(subject.read(got), truth, truth_unit(truth, _both(student, teacher)))
        got = subject.xp.sequence_cost(
            subject.traces(steep), subject.traces(steep), kind=kind, temperature=None
        )
        truth = _sequence_cost(steep, steep, kind, None, None)
        yield (
            f"{kind} of small probabilities",
            error_of(subject.read(got), truth, truth_unit(truth, _both(steep, steep))),
        )


def check_assign(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Matchings are injective and cheapest; greedy and rank do what they say; ties keep the order."""
    batch, rows = int(rng.integers(1, 4)), int(rng.integers(1, 5 + n % 8))
    columns = rows + int(rng.integers(0, 6))
    shape = (batch, rows, columns)
    plain = rounded(rng.random(shape) * 10.0 ** rng.integers(-3, 4), subject.single)
    barred = plain.copy()
    barred[(rng.random(shape) < 0.3) & ~np.eye(rows, columns, dtype=bool)] = np.inf
    coarse = rng.integers(0, 3, shape).astype(np.float64)
    for what, cost in (("random", plain), ("with infinities", barred), ("with ties", coarse)):
        matching = _matching(subject, cost, "optimal")
        yield f"optimal, {what}", max(map(excess, cost, matching))
        yield (
            f"greedy, {what}",
            exactly(_matching(subject, cost, "greedy"), [greedy(matrix) for matrix in cost]),
        )
        yield f"rank, {what}", exactly(_matching(subject, cost, "rank"), [list(range(rows))] * batch)
    for what, cost, truth in _tied(rng, subject.single):
        yield f"optimal, {what}", exactly(_matching(subject, cost[None], "optimal"), [truth])


def check_marginals(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Equal weights for valid positions; none where one of the sides is empty."""
    problem = make_problem(rng, n, subject.single)
    masks = problem.student.mask, problem.teacher.mask
    like = subject.array(rng.normal(size=(len(masks[0]), 2, 3)))
    student_mask, teacher_mask = map(subject.array, masks)
    got = subject.xp.marginals(student_mask, teacher_mask, like)
    for name, weights, truth in zip(("teacher", "student"), got, oracle.uniform(*masks), strict=True):
        yield name, error_of(subject.read(weights), truth)


def truth_unit(truth: Floats, mass: Floats) -> Floats:
    """Scale of a sum of probabilities: its largest entry, or the mass that was summed if that is more."""
    finite = np.where(np.isfinite(truth), np.abs(truth), 0.0)
    result: Floats = np.maximum(finite.reshape(len(truth), -1).max(axis=1, initial=0.0), mass)
    return result


def excess(cost: Floats, columns: Integers) -> float:
    """How much dearer a matching is than the cheapest, relative to the largest finite cost."""
    paid, best = oracle.matched_cost(cost, columns), oracle.optimal_cost(cost)
    if paid == best:
        return 0.0
    return (paid - best) / float(np.abs(cost[np.isfinite(cost)]).max(initial=0.0) or 1.0)


def greedy(cost: Floats) -> list[int]:
    """Row after row, the cheapest column that is left, the first of several."""
    taken: list[int] = []
    for row in cost.tolist():
        taken.append(min((c for c in range(len(row)) if c not in taken), key=lambda c: (row[c], c)))
    return taken


def _matching(subject: Subject, cost: Floats, method: str) -> Integers:
    columns = subject.read(subject.xp.assign(subject.array(cost), method=method), "integer")  # type: ignore[arg-type]
    if columns.shape != cost.shape[:2]:
        raise MismatchError(f"expected shape {cost.shape[:2]}, got {columns.shape}")
    if any(len(set(row)) < len(row) or min(row) < 0 or max(row) >= cost.shape[2] for row in columns.tolist()):
        raise MismatchError(
            f"{method}: expected different columns of {cost.shape[2]} in a row, got {columns.tolist()}"
        )
    return columns


def _tied(rng: np.random.Generator, single: bool) -> Iterator[tuple[str, Floats, list[int]]]:
    """Costs of which several matchings are cheapest, and the one that is nearest to the order."""
    rows = int(rng.integers(2, 7))
    columns = rows + int(rng.integers(0, 4))
    in_order = list(range(rows))
    yield "all costs equal", np.full((rows, columns), 0.25), in_order
    cheap = rng.integers(1, 3, (rows, columns)).astype(np.float64)
    cheap[in_order, in_order] = 1.0
    yield "the order among the cheapest", cheap, in_order
    blocks = rng.permutation(3)
    dear = 1.0 + rng.random((3, 3))
    dear[range(3), blocks] = 0.5
    pairs = np.repeat(np.repeat(rounded(dear, single), 2, axis=0), 2, axis=1)
    yield "equal columns", pairs, [2 * block + side for block in blocks.tolist() for side in (0, 1)]
    if not single:  # in float32 these costs tie only up to rounding
        t, s = (np.sort(rng.random(rows))[::-1] for _ in range(2))
        spread: Floats = np.abs(t[:, None] - s[None, :])
        yield "one position", spread, in_order


def _sequence_cost(
    student: TraceData, teacher: TraceData, kind: str, temperature: float | None, coupling: Floats | None
) -> Floats:
    return oracle.sequence_cost(
        student.at(temperature), teacher.at(temperature), student.mask, teacher.mask, kind, coupling
    )


def _both(student: TraceData, teacher: TraceData) -> Floats:
    """1 where both sides have a valid position, else 0: the scale of a cost between positions."""
    rows = zip(student.mask, teacher.mask, strict=True)
    return np.array([float(s.any() and t.any()) for s, t in rows])
