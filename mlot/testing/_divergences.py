"""Checks of the divergences between positions: HAD, SL and ULD."""

from __future__ import annotations

import numpy as np

from mlot.testing import _oracle as oracle
from mlot.testing._matching import matched_traces, truth_unit
from mlot.testing._problems import counted, make_problem
from mlot.testing._subject import Errors, Subject, error_of, exactly


def check_had(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Absolute differences over the pairs; nothing between equal traces."""
    student, teacher, pairs = matched_traces(subject, rng, n)
    got = subject.xp.had(subject.traces(student), subject.traces(teacher), subject.array(pairs))
    counts = counted(pairs[:, :, 0] >= 0)
    truth = oracle.had(student.log_probs, teacher.log_probs, pairs)
    yield "value", error_of(subject.read(got), truth, truth_unit(truth, counts))
    valid = [np.flatnonzero(row) for row in student.mask]
    same = np.full((len(valid), student.mask.shape[1], 2), -1)
    for row, positions in zip(same, valid, strict=True):
        row[: len(positions)] = positions[:, None]
    got = subject.xp.had(subject.traces(student), subject.traces(student), subject.array(same))
    yield "value for equal traces", exactly(subject.read(got), np.zeros(len(valid)))


def check_sl(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Cross terms over the pairs, of probabilities too small to be held as well."""
    student, teacher, pairs = matched_traces(subject, rng, n)
    counts = counted(pairs[:, :, 0] >= 0)
    for what in ("value", "value without teacher mass"):
        got = subject.xp.sl(subject.traces(student), subject.traces(teacher), subject.array(pairs))
        truth = oracle.sl(student.log_probs, teacher.log_probs, pairs)
        yield what, error_of(subject.read(got), truth, truth_unit(truth, counts))
        # Again with a column that neither model thinks possible.
        student.log_probs[:, :, 0] = teacher.log_probs[:, :, 0] = -np.inf


def check_uld(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Distance of sorted probabilities, from dense logits and from heads."""
    problem = make_problem(rng, n, subject.single)
    models = problem.student, problem.teacher
    got = subject.xp.uld(
        subject.source(models[0]),
        subject.source(models[1]),
        subject.array(models[0].mask),
        subject.array(models[1].mask),
        subject.array(problem.pairs),
    )
    truth = oracle.uld(problem.student.logits(), problem.teacher.logits(), problem.pairs)
    yield "value", error_of(subject.read(got), truth, truth_unit(truth, problem.counts()))
