"""Checks of what describes arrays, of masks, and of pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._registry import find_backend
from mlot.testing._oracle import Integers, Mask
from mlot.testing._problems import Problem, by_index, make_problem, restricted
from mlot.testing._subject import Errors, MismatchError, Subject, error_of, exactly


def _values(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """An array of each kind, of random shape and wide range."""
    shape = tuple(int(size) for size in rng.integers(1, 5, size=int(rng.integers(1, 4))))
    return {
        "float": rng.normal(size=shape) * 10.0 ** rng.integers(-8, 9, shape),
        "integer": rng.integers(-(2**40), 2**40, shape),
        "bool": rng.random(shape) < 0.5,
    }


def check_kind(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Floating, integer and boolean arrays are told apart."""
    for kind, values in _values(rng).items():
        yield f"kind of a {kind} array", exactly(np.array(subject.xp.kind(subject.array(values))), kind)
    for dtype, kind in ((np.float32, "float"), (np.int32, "integer")):
        array = subject.xp.from_numpy(np.ones(3, dtype=dtype), subject.wanted_device)
        yield f"kind of a {np.dtype(dtype).name} array", exactly(np.array(subject.xp.kind(array)), kind)


def check_device(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The device is text, the same for every array made on it, and the one asked for."""
    devices = [subject.xp.device(subject.array(values)) for values in _values(rng).values()]
    if not all(isinstance(device, str) and device for device in devices):
        raise MismatchError(f"expected text, got {devices[0]!r}")
    yield "one device for all arrays", 0.0 if len(set(devices)) == 1 else np.inf
    if subject.wanted_device is not None:
        wanted = str(subject.wanted_device).split(":")[0]
        yield "the device asked for", exactly(np.array(devices[0].split(":")[0]), wanted)


def check_convert(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Arrays of this and of other kinds become arrays of this backend; what cannot is a TypeError."""
    for kind, values in _values(rng).items():
        own = subject.xp.convert(subject.array(values), "weights")
        yield f"its own {kind} array", error_of(subject.read(own, kind), subject.held(values))
        if subject.device == "cpu":
            other = subject.xp.convert(subject.held(values), "weights")
            yield f"a NumPy {kind} array", error_of(subject.read(other, kind), subject.held(values))
    refused: list[tuple[str, Any]] = [("a plain object", object()), ("a list", [1.0, 2.0])]
    torch = _torch()
    if torch is not None and subject.device == "cpu":
        for kind, values in _values(rng).items():
            try:
                other = subject.xp.convert(torch.from_numpy(subject.held(values)), "weights")
            except TypeError as error:
                yield f"refusal of a torch {kind} array", _names(error)
            else:
                yield f"a torch {kind} array", error_of(subject.read(other, kind), subject.held(values))
        if subject.gradient is None:
            refused.append(("a torch array that requires a gradient", torch.ones(2, requires_grad=True)))
    for what, value in refused:
        try:
            subject.xp.convert(value, "weights")
        except TypeError as error:
            yield f"refusal of {what}", _names(error)
        else:
            raise MismatchError(f"expected a TypeError for {what}, got none")


def check_from_numpy(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Values, kinds and shapes survive; the result is of a type that some backend serves."""
    arrays = [
        *_values(rng).values(),
        rng.normal(size=(2, 3, 4)).transpose(2, 0, 1),
        np.zeros((2, 0)),
        np.array(rng.normal()),
    ]
    for values in arrays:
        array = subject.array(values)
        kind = {"f": "float", "i": "integer", "b": "bool"}[values.dtype.kind]
        if tuple(array.shape) != values.shape:
            raise MismatchError(f"expected shape {values.shape}, got {tuple(array.shape)}")
        yield f"{kind} values", exactly(subject.read(array, kind), subject.held(values))
        if find_backend(array) is None:
            raise MismatchError(f"no backend serves its result, a {type(array).__name__}")


def check_to_numpy(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Values come back as a NumPy array, of the type they were made from."""
    for kind, values in _values(rng).items():
        back = subject.xp.to_numpy(subject.array(values))
        if type(back) is not np.ndarray or back.dtype != subject.held(values).dtype:
            raise MismatchError(
                f"expected a NumPy array of {subject.held(values).dtype}, got {type(back).__name__}"
            )
        yield f"{kind} values", exactly(back, subject.held(values))


def check_stop_gradient(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Values stay as they are."""
    for kind, values in _values(rng).items():
        got = subject.read(subject.xp.stop_gradient(subject.array(values)), kind)
        yield f"{kind} values", exactly(got, subject.held(values))


def check_full_mask(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Everything is valid, for logits, a head, or any array of rank three."""
    problem = make_problem(rng, n, subject.single)
    for model in (problem.student, problem.teacher):
        got = subject.read(subject.xp.full_mask(subject.source(model)), "bool")
        yield "mask of a source", exactly(got, np.ones(model.mask.shape, dtype=bool))


def check_mask_from_labels(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Position t is valid when the label at t + 1 counts; the last position never is."""
    shape = (int(rng.integers(1, 4)), 1 if n == 1 else int(rng.integers(1, 9)))
    for ignore in (-100, 0):
        labels = rng.integers(0, 5, shape)
        labels[rng.random(shape) < 0.4] = ignore
        truth = np.zeros(shape, dtype=bool)
        for b, t in np.ndindex(*shape):
            truth[b, t] = t + 1 < shape[1] and labels[b, t + 1] != ignore
        got = subject.xp.mask_from_labels(subject.array(labels), ignore)
        yield f"ignore_index {ignore}", exactly(subject.read(got, "bool"), truth)


def check_index_pairs(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """The i-th valid positions are paired."""
    masks = _masks(make_problem(rng, n, subject.single))
    got = subject.read(subject.xp.index_pairs(*map(subject.array, masks)), "integer")
    truth = by_index(*masks)
    if got.ndim != 3 or got.shape[::2] != truth.shape[::2]:
        raise MismatchError(f"expected shape ({len(truth)}, P, 2), got {got.shape}")
    blank = (got == -1).all(axis=2) | (got >= 0).all(axis=2)
    yield "both entries of a missing pair are -1", 0.0 if blank.all() else np.inf
    yield "pairs of each sequence", 0.0 if _real(got) == _real(truth) else np.inf


def check_restrict_pairs(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Pairs that a mask excludes are blanked where they stand."""
    problem = make_problem(rng, 2 * n + 1, subject.single)
    masks = _masks(problem)
    pairs = problem.given_pairs if problem.given_pairs is not None else problem.pairs
    got = subject.xp.restrict_pairs(subject.array(pairs), *map(subject.array, masks))
    yield "pairs", exactly(subject.read(got, "integer"), restricted(pairs, *masks))


def check_count_pairs(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Number of pairs, floating."""
    problem = make_problem(rng, n, subject.single)
    got = subject.xp.count_pairs(subject.array(problem.pairs))
    yield "counts", exactly(subject.read(got), problem.counts())


def check_count_positions(subject: Subject, rng: np.random.Generator, n: int) -> Errors:
    """Number of valid positions, floating."""
    for mask in _masks(make_problem(rng, n, subject.single)):
        got = subject.read(subject.xp.count_positions(subject.array(mask)))
        yield "counts", exactly(got, [float(sum(row)) for row in mask.tolist()])


def _masks(problem: Problem) -> tuple[Mask, Mask]:
    return problem.student.mask, problem.teacher.mask


def _real(pairs: Integers) -> list[list[list[int]]]:
    return [[pair for pair in rows if pair[0] >= 0] for rows in pairs.tolist()]


def _names(error: TypeError) -> float:
    """Whether a message starts with the name of the argument."""
    return 0.0 if str(error).startswith("weights") else np.inf


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch
