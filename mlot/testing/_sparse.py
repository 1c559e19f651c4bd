"""Checks of selection from predictions of which only the likeliest columns are known."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from mlot._typing import Tail
from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers
from mlot.testing._problems import Problem, make_problem, rounded
from mlot.testing._selection import heaviest_error
from mlot.testing._subject import Errors, MismatchError, Subject, error_of, exactly
from mlot.topk import TopKLogprobs

_TAILS: tuple[Tail, ...] = ("fitted", "zero", "renormalize", "uniform")


def check_select_sparse(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The heaviest columns and their traces, under each supposition about what is not known."""
    problem = make_problem(rng, n, subject.single)
    mask = problem.teacher.mask
    vocabulary = int(problem.teacher.logits().shape[2])
    ids, logprobs = _likeliest(rng, problem, vocabulary, base := (1.0, 0.7)[n % 2])
    for tail, width in ((_TAILS[n % 4], vocabulary), (_TAILS[(n + 1) % 3], None)):
        source = TopKLogprobs(subject.array(ids), subject.array(logprobs), width, tail, base)
        wide = vocabulary if width is not None else max(int(ids.max()) + 1, 1)
        k = min(problem.k, wide)
        traces = subject.xp.select_sparse(
            source,
            subject.array(mask),
            k=k,
            temperature=problem.temperature,
            extra_temperatures=problem.extra,
        )
        label = f"tail {tail}, vocabulary {'known' if width else 'unknown'}"
        probs = {
            each: _completed(ids, logprobs, mask, wide, width is not None, tail, base / each, subject.single)
            for each in (problem.temperature, *problem.extra)
        }
        columns = subject.read(traces.columns, "integer")
        sums = np.array(
            [rows[valid].sum(axis=0) for rows, valid in zip(probs[problem.temperature], mask, strict=True)]
        )
        yield f"{label}: columns by mass", heaviest_error(columns, sums, k)
        mass = np.take_along_axis(sums, columns, axis=1)
        yield f"{label}: column mass", error_of(subject.read(traces.column_mass), mass, mask.sum(axis=1))
        yield f"{label}: mask", exactly(subject.read(traces.mask, "bool"), mask)
        for temperature, whole in probs.items():
            values = np.where(mask[:, :, None], subject.read(traces.at(temperature)), -np.inf)
            truth = np.take_along_axis(whole, columns[:, None, :], axis=2)
            yield f"{label}: probabilities at {temperature}", error_of(np.exp(values), truth, 1.0)
        kept = (traces.vocab_size, traces.temperature, traces.extra_temperatures, traces.standardize)
        if kept != (wide, problem.temperature, problem.extra, False):
            raise MismatchError(f"expected vocabulary {wide} and the temperatures asked for, got {kept}")


def _likeliest(
    rng: np.random.Generator, problem: Problem, vocabulary: int, base: float
) -> tuple[Integers, Floats]:
    """The likeliest columns of each position, some fewer than others, in any order; garbage beside -1."""
    mask = problem.teacher.mask
    most = int(rng.integers(1, vocabulary + 1))
    ids = np.full((*mask.shape, most), -1)
    logprobs = rng.choice([np.nan, np.inf, 0.0], size=ids.shape)
    for b, t in np.ndindex(*mask.shape):
        logs = oracle.log_softmax(rng.normal(scale=2.0, size=(1, vocabulary)), base)[0]
        count = int(rng.integers(1, most + 1))
        chosen = rng.permutation(np.argsort(-logs, kind="stable")[:count])
        order = rng.permutation(most)[:count]
        ids[b, t, order], logprobs[b, t, order] = chosen, rounded(logs[chosen], problem.single)
    return ids, logprobs


def _completed(
    ids: Integers,
    logprobs: Floats,
    mask: np.ndarray,
    wide: int,
    known: bool,
    tail: str,
    ratio: float,
    single: bool,
) -> Floats:
    """Probabilities ``(B, T, V)`` at another temperature, ``ratio`` being the old one over the new one."""
    probs = np.zeros((*mask.shape, wide))
    for b, t in np.argwhere(mask):
        entries = {
            i: np.exp(p) for i, p in zip(ids[b, t].tolist(), logprobs[b, t].tolist(), strict=True) if i >= 0
        }
        missing = 1 - sum(entries.values())
        absent = wide - len(entries) if known else np.inf
        unit = np.finfo(np.float32 if single else np.float64).eps
        if absent == 0 or missing <= min(64 * unit, 4 * unit + 1e-4):
            missing = 0.0
        powers = {i: p**ratio for i, p in entries.items()}
        total, share = sum(powers.values()), 0.0
        if tail == "uniform" and missing > 0:
            share = (missing / absent) ** ratio
            total += absent * share
        elif tail == "zero" and missing > 0:
            largest = min(max(min(entries.values()), missing / absent), missing)  # of the absent
            total += missing * largest ** (ratio - 1)
        elif tail == "fitted" and missing > 0:
            least = min(entries.values())
            many = absent if known else max(2**16 - len(entries), missing / max(least, 1e-30))
            total += _fitted(missing, least, len(entries), many, ratio)
        if ratio == 1 and tail != "renormalize":
            total = 1.0
        probs[b, t] = share / total
        for i, power in powers.items():
            probs[b, t, i] = power / total
    return probs


def _fitted(missing: float, least: float, kept: int, absent: float, ratio: float) -> float:
    """Sum of powers of absent probabilities that fall off as a power of their rank and share a mass."""
    largest = max(least, missing / absent)
    first, last = 1 + 0.5 / kept, (kept + absent + 0.5) / kept

    def integral(s: float) -> float:
        if abs(s - 1) < 1e-9:
            return kept * float(np.log(last / first))
        return float(kept * (first ** (1 - s) - last ** (1 - s)) / (s - 1))

    def excess(s: float) -> float:
        return float(np.log(largest * integral(s) / missing))

    high = 1.0
    while excess(high) > 0:
        high *= 2
    s = float(brentq(excess, 0.0, high, xtol=1e-13)) if excess(0.0) > 0 else 0.0
    ends = sorted((missing * min(largest, missing) ** (ratio - 1), absent * (missing / absent) ** ratio))
    return float(min(max(largest**ratio * integral(ratio * s), ends[0]), ends[1]))
