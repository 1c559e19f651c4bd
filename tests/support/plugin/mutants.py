"""Backends that are wrong on purpose, each in one operation: the conformance suite must name that operation.

Each function below stands for one mistake. It takes the backend, the right operation and its arguments. More are in
`mutants_costs` and `mutants_torch`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from mlot.backends import Backend
from mlot.backends.numpy.backend import NumpyBackend
from mlot.sources import LinearHead

Right = Callable[..., Any]


class Mutant(NamedTuple):
    operation: str
    mistake: str
    backend: type[Backend]


MUTANTS: list[Mutant] = []


def wrong(
    operation: str, base: type[Backend] = NumpyBackend
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a backend whose operation is the decorated function, named after it."""

    def decorate(mistake: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Backend, *args: Any, **kwargs: Any) -> Any:
            return mistake(self, partial(getattr(base, operation), self), *args, **kwargs)

        name = mistake.__name__.strip("_").replace("_", " ")
        MUTANTS.append(Mutant(operation, f"{base.name}: {name}", type("Wrong", (base,), {operation: method})))
        return mistake

    return decorate


# -- describing arrays -----------------------------------------------------------------------------------


@wrong("kind")
def integers_are_floating(xp, right, array):
    return "float" if right(array) == "integer" else right(array)


@wrong("device")
def no_device(xp, right, array):
    return None


@wrong("convert")
def takes_lists(xp, right, array, name):
    return np.asarray(array) if isinstance(array, list) else right(array, name)


@wrong("convert")
def loses_a_gradient(xp, right, array, name):
    return right(array.detach() if isinstance(array, torch.Tensor) else array, name)


@wrong("convert")
def message_without_the_name(xp, right, array, name):
    return right(array, "array")


@wrong("from_numpy")
def rounds_to_single(xp, right, array, device=None):
    return right(array.astype(np.float32) if array.dtype == np.float64 else array, device)


@wrong("from_numpy")
def flattens_scalars(xp, right, array, device=None):
    return right(np.atleast_1d(array), device)


@wrong("to_numpy")
def rounds_back(xp, right, array):
    return array.astype(np.float32) if array.dtype == np.float64 else array


@wrong("stop_gradient")
def changes_values(xp, right, array):
    return array + 1 if array.dtype == np.float64 else array


# -- masks and pairs -------------------------------------------------------------------------------------


@wrong("full_mask")
def leaves_the_last_out(xp, right, source):
    mask = right(source)
    mask[:, -1] = False
    return mask


@wrong("mask_from_labels")
def does_not_shift(xp, right, labels, ignore_index):
    return labels != ignore_index


@wrong("mask_from_labels")
def knows_only_one_index(xp, right, labels, ignore_index):
    return right(labels, -100)


@wrong("index_pairs")
def by_position(xp, right, student_mask, teacher_mask):
    width = min(student_mask.shape[1], teacher_mask.shape[1])
    both = student_mask[:, :width] & teacher_mask[:, :width]
    return np.where(both[:, :, None], np.arange(width)[None, :, None], -1) + np.zeros(
        (1, 1, 2), dtype=np.int64
    )


@wrong("restrict_pairs")
def forgets_the_teacher(xp, right, pairs, student_mask, teacher_mask):
    return right(pairs, student_mask, np.ones_like(teacher_mask))


@wrong("restrict_pairs")
def blanks_one_entry(xp, right, pairs, student_mask, teacher_mask):
    return np.where(right(pairs, student_mask, teacher_mask)[:, :, :1] < 0, pairs * [0, 1] - [1, 0], pairs)


@wrong("count_pairs")
def counts_padding(xp, right, pairs):
    return right(np.abs(pairs))


@wrong("count_positions")
def counts_all(xp, right, mask):
    return right(np.ones_like(mask))


# -- selection -------------------------------------------------------------------------------------------


@wrong("select")
def ties_to_higher_index(xp, right, source, mask, *, k, **settings):
    if isinstance(source, LinearHead):
        return right(source, mask, k=k, **settings)
    width = source.shape[2]
    columns = width - 1 - right(source[:, :, ::-1], mask, k=k, **settings).columns
    return xp.take(source, columns, mask, **settings)


@wrong("select")
def ignores_the_mask(xp, right, source, mask, *, k, **settings):
    columns = right(source, np.ones_like(mask), k=k, **settings).columns
    return xp.take(source, columns, mask, **settings)


@wrong("select")
def in_the_order_of_columns(xp, right, source, mask, **settings):
    traces = right(source, mask, **settings)
    return xp.keep(traces, np.argsort(traces.columns, axis=1))


@wrong("select")
def over_the_whole_batch(xp, right, source, mask, *, k, **settings):
    everything = right(source, mask, k=source.shape[2], **settings)
    mass = np.zeros((len(mask), source.shape[2]))
    np.put_along_axis(mass, everything.columns, everything.column_mass, axis=1)
    order = np.argsort(-mass.sum(axis=0), kind="stable")[:k]
    return xp.take(source, np.tile(order, (len(mask), 1)), mask, **settings)


@wrong("select")
def at_temperature_one(xp, right, source, mask, *, k, temperature, **settings):
    columns = right(source, mask, k=k, temperature=1.0, **settings).columns
    return xp.take(source, columns, mask, temperature=temperature, **settings)


@wrong("select_sparse")
def forgets_that_mass_is_missing(xp, right, source, *args, **settings):
    return right(replace(source, tail="renormalize"), *args, **settings)


@wrong("select_sparse")
def at_the_temperature_of_the_log_probabilities(xp, right, source, mask, *, temperature, **settings):
    columns = right(source, mask, temperature=source.temperature, **settings)
    return replace(columns, temperature=temperature)


@wrong("select_sparse")
def counts_what_is_masked_out(xp, right, source, mask, **settings):
    return replace(right(source, np.ones_like(mask), **settings), mask=mask)


@wrong("take")
def one_normaliser_for_all(xp, right, *args, **settings):
    traces = right(*args, **settings)
    return replace(traces, log_normalizers=traces.log_normalizers[:, :, :1] + 0 * traces.log_normalizers)


@wrong("take")
def does_not_standardise(xp, right, *args, standardize, **settings):
    return replace(right(*args, standardize=False, **settings), standardize=standardize)


@wrong("take")
def forgets_the_softcap(xp, right, source, *args, **settings):
    return right(
        replace(source, softcap=None) if isinstance(source, LinearHead) else source, *args, **settings
    )


@wrong("take")
def leaves_zero_under_the_mask(xp, right, source, columns, mask, **settings):
    traces = right(source, columns, mask, **settings)
    return replace(traces, log_probs=np.where(mask[:, :, None], traces.log_probs, 0.0))


@wrong("take")
def mean_for_mass(xp, right, *args, **settings):
    traces = right(*args, **settings)
    return replace(traces, column_mass=traces.column_mass / traces.mask.shape[1])


@wrong("keep")
def sorts_the_index(xp, right, traces, index):
    return right(traces, np.sort(index, axis=1))


@wrong("keep")
def keeps_the_first_mass(xp, right, traces, index):
    return replace(right(traces, index), column_mass=traces.column_mass[:, : index.shape[1]])
