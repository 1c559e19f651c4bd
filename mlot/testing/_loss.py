"""Checks of the whole loss, for every matching, against the paper's equations put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import mlot
from mlot._result import MultiLevelOTResult
from mlot._typing import Array, CostKind, Matching
from mlot.config import MultiLevelOTConfig
from mlot.testing import _oracle as oracle
from mlot.testing._matching import excess, truth_unit
from mlot.testing._oracle import Floats, Integers
from mlot.testing._problems import Problem, make_problem
from mlot.testing._selection import heaviest_error
from mlot.testing._slopes import apart
from mlot.testing._subject import Errors, MismatchError, Subject, error_of, exactly, labelled

MATCHINGS: tuple[Matching, ...] = ("optimal", "greedy", "rank", "sinkhorn")


@dataclass(frozen=True)
class Terms:
    """The terms of the loss, unweighted, ``(B,)`` each, and the plans behind them."""

    had: Floats
    sl: Floats
    sd: Floats
    loss: Floats
    plan: Floats
    coupling: Floats | None


def check_loss(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Selection, matching, terms, plans and reductions of `mlot.multi_level_ot`."""
    problem = make_problem(rng, n, subject.single)
    arguments = loss_arguments(subject, problem, as_traces=n % 4 == 2)
    for m, matching in enumerate(MATCHINGS):
        config = settings(problem, matching, n + m)
        result = mlot.multi_level_ot(**arguments, config=config, reduction="none", return_plan=True)
        yield from labelled(matching, _columns_errors(subject, problem, config, result))
        yield from labelled(matching, _terms_errors(subject, problem, config, result))
        yield from labelled(matching, _reduction_errors(subject, problem, config, arguments, n + m))


def loss_arguments(subject: Subject, problem: Problem, *, as_traces: bool = False) -> dict[str, Array]:
    """Arguments of `mlot.multi_level_ot`; the teacher as saved traces if wanted."""
    teacher = None
    if as_traces:
        model = problem.teacher
        sums = oracle.mass(model.logits(), model.mask, problem.temperature, problem.standardize)
        teacher = subject.traces(problem.traces(model, oracle.heaviest(sums, sums.shape[1])))
    return {
        "student": subject.source(problem.student),
        "teacher": subject.source(problem.teacher) if teacher is None else teacher,
        "student_mask": subject.array(problem.student.mask),
        "teacher_mask": None if as_traces else subject.array(problem.teacher.mask),
        "pairs": None if problem.given_pairs is None else subject.array(problem.given_pairs),
        "backend": subject.hint,
    }


def settings(problem: Problem, matching: Matching, n: int) -> MultiLevelOTConfig:
    """Settings that vary with n within what the precision of the problem bears."""
    finite = all(np.isfinite(m.logits()[m.mask]).all() for m in (problem.student, problem.teacher))
    token_cost: CostKind = "log" if n % 5 == 3 else "l1"
    sequence_cost: CostKind = "log" if n % 3 == 1 and finite else "l1"
    # Rounding moves a plan by the error of the cost over epsilon, and logarithmic costs may be large.
    rough = 20.0 if "log" in (token_cost, sequence_cost) else 1.0
    return MultiLevelOTConfig(
        k=problem.k,
        matching=matching,
        pool=(None, problem.k, problem.k + 3)[n % 3],
        temperature=problem.temperature,
        sequence_temperature=(problem.extra or (problem.temperature,))[0],
        standardize=problem.standardize,
        had_weight=(1.0, 0.5)[n % 2],
        sl_weight=(0.1, 0.3)[n % 2],
        sd_weight=(0.1, 0.7)[n % 2],
        epsilon=rough if problem.single else (0.1, 0.3)[n % 2],
        n_iter=(20, 3, 1)[n % 3],
        token_cost=token_cost,
        sequence_cost=sequence_cost,
    )


def terms(
    problem: Problem,
    config: MultiLevelOTConfig,
    student: Floats,
    teacher: Floats,
    student_columns: Integers,
    teacher_columns: Integers,
) -> Terms:
    """The loss of logits on given columns."""
    masks = problem.student.mask, problem.teacher.mask
    sides = ((student, masks[0], student_columns), (teacher, masks[1], teacher_columns))
    tokens, positions = (
        [oracle.traces(z, mask, columns, tau, (), config.standardize).log_probs for z, mask, columns in sides]
        for tau in (config.temperature, config.sequence_temperature)
    )
    coupling = None
    if config.matching == "sinkhorn":
        coupling, had, sl = _soft(tokens[0], tokens[1], problem.pairs, config)
    else:
        had = oracle.had(tokens[0], tokens[1], problem.pairs)
        sl = oracle.sl(tokens[0], tokens[1], problem.pairs)
    cost = oracle.sequence_cost(positions[0], positions[1], *masks, config.sequence_cost, coupling)
    a, b = oracle.uniform(*masks)
    plan = np.stack(
        [oracle.sinkhorn(*of, config.epsilon, config.n_iter)[-1] for of in zip(cost, a, b, strict=True)]
    )
    sd = masks[0].sum(axis=1) * oracle.inner(plan, cost)
    loss = config.had_weight * had + config.sl_weight * sl + config.sd_weight * sd
    return Terms(had, sl, sd, loss, plan, coupling)


def clear(problem: Problem, config: MultiLevelOTConfig, columns: Integers, teacher_columns: Integers) -> bool:
    """Whether the loss on these columns compares no two probabilities that are nearly equal."""
    sides = ((problem.student, columns), (problem.teacher, teacher_columns))
    tokens, positions = (
        [oracle.traces(m.logits(), m.mask, kept, tau, (), config.standardize).log_probs for m, kept in sides]
        for tau in (config.temperature, config.sequence_temperature)
    )
    soft = config.matching == "sinkhorn"
    for log_s, log_t, rows in zip(*tokens, problem.pairs, strict=True):
        s, t = oracle.ends(log_s, log_t, rows)
        if not (apart(s[:, None, :], t[:, :, None]) if soft else apart(s, t)):
            return False
    student = positions[0]
    if soft:
        coupling = _soft(tokens[0], tokens[1], problem.pairs, config)[0]
        with np.errstate(divide="ignore"):
            student = np.log(np.exp(student) @ coupling.swapaxes(1, 2))
    return apart(student[:, None, :, :], positions[1][:, :, None, :])


def read_columns(subject: Subject, result: MultiLevelOTResult) -> tuple[Integers, Integers]:
    """Columns of the student and of the teacher that a result rests on."""
    columns = result.student_columns, result.teacher_columns
    return subject.read(columns[0], "integer"), subject.read(columns[1], "integer")


def _soft(
    student: Floats, teacher: Floats, pairs: Integers, config: MultiLevelOTConfig
) -> tuple[Floats, Floats, Floats]:
    """Coupling between columns, and HAD and SL under it."""
    costs = {kind: oracle.token_cost(student, teacher, pairs, kind) for kind in ("l1", "log")}
    k = student.shape[2]
    even = np.full(k, 1 / k)
    coupling = np.stack(
        [
            k * oracle.sinkhorn(cost, even, even, config.epsilon, config.n_iter)[-1]
            for cost in costs[config.token_cost]
        ]
    )
    return coupling, oracle.inner(coupling, costs["l1"]), oracle.inner(coupling, costs["log"])


def _columns_errors(
    subject: Subject, problem: Problem, config: MultiLevelOTConfig, result: MultiLevelOTResult
) -> Errors:
    """Selected and matched columns, right up to near-ties."""
    columns, teacher_columns = read_columns(subject, result)
    sums = [
        oracle.mass(model.logits(), model.mask, config.temperature, config.standardize)
        for model in (problem.student, problem.teacher)
    ]
    k = min(problem.k, sums[0].shape[1], sums[1].shape[1])
    yield "teacher's columns", heaviest_error(teacher_columns, sums[1], k)
    if config.matching in ("rank", "sinkhorn"):
        yield "student's columns", heaviest_error(columns, sums[0], k)
        return
    if columns.shape != teacher_columns.shape or any(len(set(row)) < k for row in columns.tolist()):
        raise MismatchError(
            f"expected {k} different student columns for each sequence, got {columns.tolist()}"
        )
    pool = min(max(8 * k, 256) if config.pool is None else max(config.pool, k), sums[0].shape[1])
    candidates = oracle.heaviest(sums[0], pool)
    logs = [
        oracle.traces(model.logits(), model.mask, kept, config.temperature, (), config.standardize).log_probs
        for model, kept in ((problem.student, candidates), (problem.teacher, teacher_columns))
    ]
    cost = oracle.token_cost(logs[0], logs[1], problem.pairs, config.token_cost)
    for n, matrix in enumerate(cost):
        where = candidates[n].tolist()
        if not set(columns[n].tolist()) <= set(where):
            yield "matched columns within the pool", _outside(columns[n], sums[0][n], pool)
            continue
        chosen = np.array([where.index(column) for column in columns[n].tolist()])
        if config.matching == "optimal":
            yield "matching", excess(matrix, chosen)
        else:
            yield "matching", _greedy_excess(matrix, chosen)


def _outside(columns: Integers, sums: Floats, pool: int) -> float:
    """How much lighter than the lightest candidate a column is that was taken from outside the pool."""
    least = np.sort(sums)[-pool]
    return float((least - sums[columns]).max() / max(least, 1e-300))


def _greedy_excess(cost: Floats, columns: Integers) -> float:
    """How much dearer any of the choices is than the cheapest column left at that point."""
    free, worst = np.ones(cost.shape[1], dtype=bool), 0.0
    unit = float(np.abs(cost[np.isfinite(cost)]).max(initial=0.0)) or 1.0
    for row, column in zip(cost, columns.tolist(), strict=True):
        if row[column] != row[free].min():
            worst = max(worst, float(row[column] - row[free].min()) / unit)
        free[column] = False
    return worst


def _terms_errors(
    subject: Subject, problem: Problem, config: MultiLevelOTConfig, result: MultiLevelOTResult
) -> Errors:
    columns, teacher_columns = read_columns(subject, result)
    logits = problem.student.logits(), problem.teacher.logits()
    truth = terms(problem, config, *logits, columns, teacher_columns)
    positions = problem.student.mask.sum(axis=1)
    counts = problem.counts()
    for name, unit in (("had", counts), ("sl", counts), ("sd", positions * truth.plan.sum(axis=(1, 2)))):
        value = getattr(truth, name)
        yield name, error_of(subject.read(getattr(result, name)), value, truth_unit(value, unit))
    yield "loss", error_of(subject.read(result.loss), truth.loss, truth_unit(truth.loss, counts + positions))
    yield "plan", error_of(subject.read(result.plan), truth.plan)
    if truth.coupling is not None:
        yield "coupling", error_of(subject.read(result.coupling), truth.coupling)
    diagnostics = result.diagnostics()
    yield "number of pairs", exactly(diagnostics.pairs, counts)
    a, b = oracle.uniform(problem.student.mask, problem.teacher.mask)
    error = [oracle.marginal_error(*of) for of in zip(truth.plan, a, b, strict=True)]
    yield "marginal error", error_of(diagnostics.marginal_error, error, a.sum(axis=1))


def _reduction_errors(
    subject: Subject, problem: Problem, config: MultiLevelOTConfig, arguments: dict[str, Array], n: int
) -> Errors:
    """Reductions, from the terms of each sequence that the same call without one gives."""
    each = mlot.multi_level_ot(**arguments, config=config, reduction="none")
    items = (None, 7.0)[n // 2 % 2] if n % 2 == 0 else None
    reduced = mlot.multi_level_ot(
        **arguments, config=config, reduction="mean" if n % 2 == 0 else "sum", num_items=items
    )
    pairs, positions = problem.counts().sum(), float(problem.student.mask.sum())
    for name, count in (("had", pairs), ("sl", pairs), ("sd", positions)):
        divisor = 1.0 if n % 2 else max(count, 1.0) if items is None else items
        truth = subject.read(getattr(each, name)).sum() / divisor
        yield f"{name}, reduced", error_of(subject.read(getattr(reduced, name)), truth)
