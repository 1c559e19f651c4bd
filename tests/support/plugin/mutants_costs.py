"""Reference backends that are wrong on purpose in a cost, a matching, a plan or a divergence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import softmax

from mlot.sources import LinearHead
from plugin.mutants import wrong

# -- costs, matching, transport --------------------------------------------------------------------------


def _transposed(cost):
    return cost.swapaxes(1, 2).copy() if cost.shape[1] == cost.shape[2] else cost


@wrong("token_cost")
def transposed(xp, right, *args, **settings):
    return _transposed(right(*args, **settings))


@wrong("token_cost")
def one_kind_only(xp, right, *args, kind, temperature):
    return right(*args, kind="l1", temperature=temperature)


@wrong("token_cost")
def mean_over_pairs(xp, right, student, teacher, pairs, **settings):
    return right(student, teacher, pairs, **settings) / np.maximum(xp.count_pairs(pairs), 1)[:, None, None]


@wrong("token_cost")
def logarithm_of_a_clipped_probability(xp, right, student, *args, **settings):
    return right(replace(student, log_probs=np.maximum(student.log_probs, np.log(1e-12))), *args, **settings)


@wrong("assign")
def greedy_is_optimal(xp, right, cost, *, method):
    return right(cost, method="optimal")


@wrong("assign")
def optimal_is_greedy(xp, right, cost, *, method):
    return right(cost, method="greedy" if method == "optimal" else method)


@wrong("assign")
def against_the_order(xp, right, cost, *, method):
    if method != "optimal":
        return right(cost, method=method)
    return cost.shape[2] - 1 - right(cost[:, :, ::-1], method=method)


@wrong("assign")
def not_injective(xp, right, cost, *, method):
    return cost.argmin(axis=2) if method == "greedy" else right(cost, method=method)


@wrong("sequence_cost")
def rows_of_the_student(xp, right, *args, **settings):
    return _transposed(right(*args, **settings))


@wrong("sequence_cost")
def coupling_transposed(xp, right, *args, coupling=None, **settings):
    return right(*args, coupling=None if coupling is None else coupling.swapaxes(1, 2), **settings)


@wrong("sequence_cost")
def at_the_temperature_of_selection(xp, right, *args, temperature, **settings):
    return right(*args, temperature=None, **settings)


@wrong("sequence_cost")
def one_under_the_mask(xp, right, student, teacher, **settings):
    both = teacher.mask[:, :, None] & student.mask[:, None, :]
    return np.where(both, right(student, teacher, **settings), 1.0)


@wrong("marginals")
def masked_positions_included(xp, right, student_mask, teacher_mask, like):
    return right(np.ones_like(student_mask), np.ones_like(teacher_mask), like)


@wrong("marginals")
def single_precision(xp, right, *args):
    return tuple(weights.astype(np.float32) for weights in right(*args))


@wrong("marginals")
def weights_beside_an_empty_side(xp, right, student_mask, teacher_mask, like):
    return right(student_mask, np.where(teacher_mask.any(1, keepdims=True), teacher_mask, True), like)


@wrong("sinkhorn")
def one_round_less(xp, right, *args, n_iter, **settings):
    return right(*args, n_iter=max(n_iter - 1, 1), **settings)


@wrong("sinkhorn")
def columns_before_rows(xp, right, cost, a, b, **settings):
    found = right(cost.swapaxes(1, 2), b, a, **settings)
    return found._replace(plan=found.plan.swapaxes(1, 2))


@wrong("sinkhorn")
def runs_past_the_tolerance(xp, right, *args, tol, **settings):
    return right(*args, tol=None, **settings)


@wrong("sinkhorn")
def value_with_entropy(xp, right, *args, epsilon, **settings):
    found = right(*args, epsilon=epsilon, **settings)
    logs = np.log(np.where(found.plan > 0, found.plan, 1.0))
    return found._replace(value=found.value + epsilon * (found.plan * logs).sum(axis=(1, 2)))


@wrong("sinkhorn")
def error_of_the_columns_only(xp, right, cost, a, b, **settings):
    found = right(cost, a, b, **settings)
    return found._replace(marginal_error=np.abs(found.plan.sum(axis=1) - b).sum(axis=1))


@wrong("sinkhorn")
def writes_into_the_cost(xp, right, cost, *args, **settings):
    found = right(cost, *args, **settings)
    cost *= 0.5
    return found


@wrong("emd")
def entropic(xp, right, cost, a, b):
    found = xp.sinkhorn(cost, a, b, epsilon=0.05, n_iter=50, tol=None, cost_bound=None)
    return found._replace(n_iter=0 * found.n_iter)


@wrong("emd")
def value_of_another_plan(xp, right, cost, a, b):
    return right(cost, a, b)._replace(
        plan=a[:, :, None] * b[:, None, :] / np.maximum(a.sum(1), 1e-9)[:, None, None]
    )


# -- divergences -----------------------------------------------------------------------------------------


@wrong("had")
def off_by_a_thousandth(xp, right, *args):
    return 1.001 * right(*args)


@wrong("had")
def pairs_by_index(xp, right, student, teacher, pairs):
    return right(student, teacher, xp.index_pairs(student.mask, teacher.mask))


@wrong("sl")
def logarithm_of_a_rounded_probability(xp, right, student, *args):
    return right(replace(student, log_probs=np.log(np.maximum(np.exp(student.log_probs), 1e-12))), *args)


@wrong("sl")
def roles_swapped(xp, right, student, teacher, pairs):
    return right(teacher, student, pairs[:, :, ::-1])


@wrong("sl")
def nothing_times_infinity(xp, right, student, teacher, pairs):
    impossible = np.isneginf(student.log_probs) & student.mask[:, :, None]
    return right(student, teacher, pairs) + np.where(impossible.any(axis=(1, 2)), np.nan, 0.0)


@wrong("uld")
def ascending(xp, right, student, teacher, student_mask, teacher_mask, pairs):
    """The padding stands beside the largest probabilities instead of the smallest."""
    if isinstance(student, LinearHead) or isinstance(teacher, LinearHead):
        return right(student, teacher, student_mask, teacher_mask, pairs)
    width = max(student.shape[2], teacher.shape[2])
    sums = np.zeros(len(pairs))
    for n, (i, j) in ((n, pair) for n, rows in enumerate(pairs) for pair in rows if pair[0] >= 0):
        rows = [np.sort(softmax(z.astype(float))) for z in (student[n, i], teacher[n, j])]
        s, t = (np.pad(row, (0, width - len(row))) for row in rows)
        sums[n] += np.abs(t - s).sum()
    return sums


@wrong("uld")
def narrower_is_not_padded(xp, right, student, teacher, *args):
    if isinstance(student, LinearHead) or isinstance(teacher, LinearHead):
        return right(student, teacher, *args)
    width = min(student.shape[2], teacher.shape[2])
    cut = (np.take_along_axis(z, np.argsort(-z, axis=2)[:, :, :width], axis=2) for z in (student, teacher))
    return right(*cut, *args)


@wrong("text_targets")
def targets_are_not_conditioned(xp, right, *args, **kwargs):
    targets = right(*args, **kwargs)
    with np.errstate(divide="ignore"):
        log_served = np.log(targets.served)
    return replace(
        targets, log_probs=targets.log_probs + np.where(targets.served > 0, log_served, 0)[..., None]
    )


@wrong("text_terms")
def the_rest_is_left_out(xp, right, student, targets, *args, **kwargs):
    return right(student, replace(targets, rest=np.zeros_like(targets.rest)), *args, **kwargs)


@wrong("inner")
def zero_times_infinity(xp, right, plan, cost):
    with np.errstate(invalid="ignore"):
        return (plan * cost).sum(axis=(1, 2))
