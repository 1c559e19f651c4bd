"""Checks of the plan from the text: targets by their definition over bytes, and the terms between both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlot._typing import Array
from mlot.align import TokenBytes, VocabularyMap, batch_text_positions, text_positions
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers, Mask
from mlot.testing._problems import Model, make_problem, rounded, some_columns
from mlot.testing._selection import model_traces_errors
from mlot.testing._slopes import slopes
from mlot.testing._subject import Errors, Subject, error_of, total
from mlot.text import TextPositions, TextTargets

_START = 0  # the token that begins every sequence, in both vocabularies; it spells nothing
_LEAST_SERVED = 0.3


@dataclass(frozen=True, eq=False)
class _Problem:
    """Texts of a small alphabet in the tokens of two vocabularies, and the teacher's predictions.

    The teacher has one special token, and the student two; ``closing`` has the one that ends each text.
    """

    student: list[bytes | None]
    teacher: list[bytes | None]
    rows: Integers
    ids: Integers
    closing: list[int]
    student_mask: Mask
    teacher_mask: Mask
    logits: Floats
    vocabulary: VocabularyMap


def check_text_targets(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Targets, rest and served share at every position, from what each string of bytes begins with."""
    problem = _make(rng, n, subject.single)
    temperature = (1.0, 0.7, 2.0)[n % 3]
    k = int(rng.integers(1, len(problem.student) + 1))
    plan = problem.vocabulary.plan("longest")
    positions = TextPositions(subject.array(problem.rows), subject.array(problem.ids), plan)
    targets = subject.xp.text_targets(
        subject.array(problem.logits),
        positions,
        subject.array(problem.student_mask),
        subject.array(problem.teacher_mask),
        k=k,
        temperature=temperature,
        min_served=_LEAST_SERVED,
    )
    q, served = _targets(problem, temperature)
    near = np.abs(served - _LEAST_SERVED) < 1e-4  # whether these are served is left to rounding
    served = np.where(served >= _LEAST_SERVED, served, 0.0)
    q = np.where(served[..., None] > 0, q, 0.0)
    ids, log_probs = subject.read(targets.ids, "integer"), subject.read(targets.log_probs)
    listed = np.where(ids >= 0, np.exp(log_probs), 0.0)
    truth = np.where(ids >= 0, np.take_along_axis(q, ids.clip(0), axis=2), 0.0)
    clear = ~near[..., None]
    yield "probabilities of the listed tokens", error_of(listed * clear, truth * clear, 1.0)
    largest = -np.sort(-q, axis=2)[:, :, :k]
    yield "the likeliest are listed", error_of(-np.sort(-listed, axis=2) * clear, largest * clear, 1.0)
    rest = np.where(served > 0, 1 - largest.sum(axis=2), 0.0)
    yield "rest", error_of(subject.read(targets.rest) * ~near, rest * ~near, 1.0)
    yield "served share", error_of(subject.read(targets.served) * ~near, served * ~near, 1.0)


def check_text_terms(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """HAD, SL, the mass on listed tokens, and traces of columns, from dense logits and from heads."""
    problem = make_problem(rng, n, subject.single)
    model, settings = problem.student, (problem.temperature, problem.extra, False)
    targets, has_target, columns = _given(rng, model, problem.k, problem.temperature, subject.single)
    had, sl, listed, traces = subject.xp.text_terms(
        subject.source(model),
        targets.map(subject.array),
        subject.array(has_target),
        subject.array(columns),
        subject.array(model.mask),
        temperature=problem.temperature,
        extra_temperatures=problem.extra,
    )
    truth = _terms(model.logits(), targets, has_target, problem.temperature)
    for what, got, want in zip(("HAD", "SL", "listed mass"), (had, sl, listed), truth, strict=True):
        unit = np.maximum(np.abs(want), has_target.sum(axis=1))
        yield what, error_of(subject.read(got), want, unit)
    for what, error in model_traces_errors(subject, traces, model, columns, settings):
        yield f"traces: {what}", error


def gradient_of_text_terms(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Of HAD, SL, the listed mass and the traces' log-probabilities, by logits and by heads."""
    problem = make_problem(rng, n, single=False, small=True)
    model = problem.student
    targets, has_target, columns = _given(rng, model, problem.k, problem.temperature, False)
    weights = rng.normal(size=(3, len(has_target)))
    kept = np.where(model.mask[:, :, None], rng.normal(size=(*model.mask.shape, columns.shape[1])), 0.0)

    def ours(*arrays: Array) -> Array:
        *terms, traces = subject.xp.text_terms(
            subject.source(model, *arrays),
            targets.map(subject.array),
            subject.array(has_target),
            subject.array(columns),
            subject.array(model.mask),
            temperature=problem.temperature,
            extra_temperatures=(),
        )
        value = total(subject, subject.xp.inner(subject.array(kept), traces.log_probs), np.ones(len(kept)))
        for term, weight in zip(terms, weights, strict=True):
            value = value + total(subject, term, weight)
        return value

    def truth(*arrays: Floats) -> float:
        logits = model.logits(*arrays)
        terms = _terms(logits, targets, has_target, problem.temperature)
        data = oracle.traces(logits, model.mask, columns, problem.temperature, (), False)
        traced = (data.log_probs[model.mask] * kept[model.mask]).sum()
        return float(sum((term * weight).sum() for term, weight in zip(terms, weights, strict=True)) + traced)

    yield from slopes(subject, rng, ours, truth, model.arrays, model.free())


# -- problems --------------------------------------------------------------------------------------------


def _make(rng: np.random.Generator, n: int, single: bool) -> _Problem:
    student, teacher = [*_words(rng), None], _words(rng)
    end = len(student) - 1
    vocabulary = VocabularyMap.from_bytes(student, teacher, roles=[(_START, _START)], ends=[(_START, end)])
    batch = int(rng.integers(1, 4))
    texts = [_text(rng, int(rng.integers(1, 12))) for _ in range(batch)]
    closing = rng.choice([_START, end], size=batch).tolist()
    sides = [
        [_tokens(text, words, last) for text, last in zip(texts, ends, strict=True)]
        for words, ends in ((student, closing), (teacher, [_START] * batch))
    ]
    rows = [
        text_positions(mine, other, text.decode(), vocabulary)
        for mine, other, text in zip(*sides, texts, strict=True)
    ]
    lengths = [max(len(tokens) for tokens in side) for side in sides]
    ids = np.zeros((batch, lengths[1]), dtype=np.int64)
    for row, tokens in zip(ids, sides[1], strict=True):
        row[: len(tokens)] = tokens.ids
    # A model may have columns beyond its tokenizer, and masks leave positions out.
    logits = rng.normal(scale=2, size=(batch, lengths[1], len(teacher) + n % 2))
    return _Problem(
        student,
        teacher,
        batch_text_positions(rows),
        ids,
        closing,
        rng.random((batch, lengths[0])) < 0.9,
        rng.random((batch, lengths[1])) < 0.9,
        rounded(logits, single),
        vocabulary,
    )


def _words(rng: np.random.Generator) -> list[bytes | None]:
    """A start token, every letter, and some longer strings."""
    longer = {_text(rng, int(rng.integers(2, 5))) for _ in range(int(rng.integers(0, 12)))}
    return [None, b"a", b"b", b"c", *sorted(longer)]


def _text(rng: np.random.Generator, length: int) -> bytes:
    return bytes(rng.choice(list(b"abc"), size=length).astype(np.uint8))


def _tokens(text: bytes, words: list[bytes | None], closing: int) -> TokenBytes:
    """The longest token at each place, after the start token and before one that ends the text."""
    ids, ends = [_START], [0]
    while ends[-1] < len(text):
        left = text[ends[-1] :]
        fitting = [u for u, word in enumerate(words) if word and left.startswith(word)]
        ids.append(max(fitting, key=lambda u: len(words[u] or b"")))
        ends.append(ends[-1] + len(words[ids[-1]] or b""))
    special = [True] + [False] * (len(ids) - 1) + [True]
    ids.append(closing)
    ends.append(len(text))
    starts = np.array([0, *ends[:-1]])
    return TokenBytes(np.array(ids), starts, np.array(ends), np.array(special), len(text))


def _given(
    rng: np.random.Generator, model: Model, k: int, temperature: float, single: bool
) -> tuple[TextTargets, Mask, Integers]:
    """Random targets for a student, where there are any, and columns."""
    batch, length, vocabulary = model.logits().shape
    width = int(rng.integers(1, vocabulary + 1))
    ids = np.stack([some_columns(rng, batch, vocabulary, width) for _ in range(length)], axis=1)
    q = rng.dirichlet(np.ones(width + 1), size=(batch, length))
    if width == vocabulary:
        q[..., -1] = 0.0
        q /= q.sum(axis=-1, keepdims=True)
    ids = np.where(rng.random(ids.shape) < 0.9, ids, -1)
    q[..., :-1][ids < 0] = 0.0
    with np.errstate(divide="ignore"):
        log_q = np.log(q[..., :-1])
    has_target = model.mask & (rng.random(model.mask.shape) < 0.8)
    targets = TextTargets(
        ids,
        rounded(log_q, single),
        rounded(np.where(width == vocabulary, 0.0, q[..., -1]), single),
        np.where(has_target, 1.0, 0.0),
        vocabulary,
        temperature,
    )
    return targets, has_target, some_columns(rng, batch, vocabulary, min(k, vocabulary))


# -- formulas --------------------------------------------------------------------------------------------


def _targets(problem: _Problem, temperature: float) -> tuple[Floats, Floats]:
    """Distribution over the student's tokens and served share at each of its positions."""
    q = np.zeros((*problem.student_mask.shape, len(problem.student)))
    served = np.zeros(problem.student_mask.shape)
    t = np.exp(oracle.log_softmax(problem.logits, temperature))
    for b, rows in enumerate(problem.rows.tolist()):
        for i, j, depth, _, _, _, _, following, chain in rows:
            if i < 0 or not (problem.student_mask[b, i] and problem.teacher_mask[b, j]):
                continue
            token = int(problem.ids[b, j + 1])
            read = (problem.teacher[token] or b"")[:depth]
            there = 0.0
            for v, word in enumerate(problem.teacher):
                if v == _START and not depth:  # special tokens correspond by role
                    q[b, i, problem.closing[b]] += t[b, j, v]
                    there += t[b, j, v]
                if word is None or not word.startswith(read):
                    continue
                there += t[b, j, v]
                first = _follows(problem.student, word[depth:])
                if first is not None:
                    q[b, i, first] += t[b, j, v]
            if chain > 1:
                spanned = math.prod(t[b, j + m, problem.ids[b, j + m + 1]] for m in range(chain))
                first = _follows(problem.student, (problem.teacher[token] or b"")[depth:])
                moved = spanned if first is None else min(spanned, q[b, i, first])
                if first is not None:
                    q[b, i, first] -= moved
                q[b, i, following] += moved
            mass = q[b, i].sum()
            served[b, i] = mass / there if there else 0.0
            q[b, i] /= mass or 1.0
    return q, served


def _follows(words: list[bytes | None], left: bytes) -> int | None:
    """The longest token that some bytes begin with."""
    fitting = [u for u, word in enumerate(words) if word and left.startswith(word)]
    return max(fitting, key=lambda u: len(words[u] or b"")) if fitting else None


def _terms(
    logits: Floats, targets: TextTargets, has_target: Mask, temperature: float
) -> tuple[Floats, Floats, Floats]:
    """HAD, SL and listed mass of each sequence; what is not listed is one more token."""
    had, sl, mass = np.zeros((3, len(logits)))
    for b, i in np.argwhere(has_target):
        log_s = oracle.log_softmax(logits[b, i][None], temperature)[0]
        real = targets.ids[b, i] >= 0
        ids, log_q = targets.ids[b, i][real], targets.log_probs[b, i][real]
        others = np.setdiff1d(np.arange(logits.shape[2]), ids)
        log_rest = np.logaddexp.reduce(log_s[others], initial=-np.inf)
        t = np.append(np.exp(log_q.astype(np.float64)), float(targets.rest[b, i]))
        log_all = np.append(log_s[ids], log_rest)
        had[b] += np.abs(t - np.exp(log_all)).sum()
        sl[b] -= oracle.weighted_log(t, log_all).sum()
        mass[b] += np.exp(log_s[ids]).sum()
    return had, sl, mass
