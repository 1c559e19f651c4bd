"""Torch backends that are wrong on purpose, most of them in a gradient only."""

from __future__ import annotations

from dataclasses import replace

import torch

from mlot.backends.torch.backend import TorchBackend
from mlot.sources import LinearHead
from plugin.mutants import wrong


@wrong("device", TorchBackend)
def no_text(xp, right, array):
    return array.device


@wrong("convert", TorchBackend)
def detaches(xp, right, array, name):
    return array.detach() if isinstance(array, torch.Tensor) else right(array, name)


@wrong("stop_gradient", TorchBackend)
def does_not_stop(xp, right, array):
    return array


@wrong("count_pairs", TorchBackend)
def counts_in_integers(xp, right, pairs):
    return right(pairs).long()


@wrong("select", TorchBackend)
def differentiates_what_is_masked_out(xp, right, source, mask, *, temperature, standardize, **settings):
    """Right values, but garbage under the mask makes the gradient NaN."""
    traces = right(source, mask, temperature=temperature, standardize=standardize, **settings)
    if isinstance(source, LinearHead) or standardize:
        return traces
    index = traces.columns[:, None, :].expand(-1, source.shape[1], -1)
    log_probs = (source / temperature).log_softmax(-1).gather(2, index)
    return replace(traces, log_probs=log_probs.masked_fill(~mask[:, :, None], -torch.inf))


@wrong("select", TorchBackend)
def normalisers_are_constants(xp, right, source, mask, **settings):
    traces = right(source, mask, **settings)
    return replace(traces, log_normalizers=traces.log_normalizers.detach())


@wrong("take", TorchBackend)
def gradient_twice(xp, right, *args, **settings):
    traces = right(*args, **settings)
    return replace(traces, log_probs=traces.log_probs + _phantom(traces.log_probs))


@wrong("keep", TorchBackend)
def keeps_constants(xp, right, traces, index):
    return right(traces.map(torch.detach), index)


@wrong("token_cost", TorchBackend)
def teacher_is_a_constant(xp, right, student, teacher, *args, **settings):
    return right(student, teacher.map(torch.detach), *args, **settings)


@wrong("sequence_cost", TorchBackend)
def coupling_is_a_constant(xp, right, *args, coupling=None, **settings):
    return right(*args, coupling=None if coupling is None else coupling.detach(), **settings)


@wrong("sinkhorn", TorchBackend)
def envelope_gradient(xp, right, cost, *args, **settings):
    """The gradient of a plan held fixed, which a truncated iteration does not have."""
    found = right(cost, *args, **settings)
    return found._replace(value=(found.plan.detach() * cost).sum((1, 2)))


@wrong("sinkhorn", TorchBackend)
def weights_are_constants(xp, right, cost, a, b, **settings):
    return right(cost, a.detach(), b.detach(), **settings)


@wrong("had", TorchBackend)
def detached(xp, right, *args):
    return right(*args).detach()


@wrong("had", TorchBackend)
def twice_the_gradient(xp, right, *args):
    value = right(*args)
    return value + _phantom(value)


@wrong("had", TorchBackend)
def slope_at_ties(xp, right, student, teacher, pairs):
    """Right values and gradients, but for the subgradient where both sides are equal."""
    same = (
        student.log_probs.detach() == teacher.log_probs.detach() if student.shape == teacher.shape else False
    )
    return right(student, teacher, pairs) + (_phantom(student.log_probs.exp()) * same).sum((1, 2))


@wrong("sl", TorchBackend)
def only_the_student_moves(xp, right, student, teacher, pairs):
    return right(student, teacher.map(torch.detach), pairs)


@wrong("uld", TorchBackend)
def teacher_of_opposite_sign(xp, right, student, teacher, *args):
    value = right(student, teacher, *args)
    constant = teacher.map(torch.detach) if isinstance(teacher, LinearHead) else teacher.detach()
    fixed = right(student, constant, *args)
    return 2 * fixed - value + 2 * (value - fixed).detach()


@wrong("text_terms", TorchBackend)
def had_by_the_text_is_a_constant(xp, right, student, targets, *args, **kwargs):
    had, sl, listed, traces = right(student, targets, *args, **kwargs)
    return had.detach(), sl, listed, traces


@wrong("inner", TorchBackend)
def plan_is_a_constant(xp, right, plan, cost):
    return right(plan.detach(), cost)


def _phantom(value: torch.Tensor) -> torch.Tensor:
    """Zero with the gradient of a value."""
    finite = torch.where(torch.isfinite(value), value, 0)
    return finite - finite.detach()
