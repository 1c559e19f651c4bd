"""``python -m benchmarks transport``: from kept probabilities to the Sinkhorn distance, and back."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import mlot
from benchmarks import libraries, plain
from benchmarks.contest import compete
from benchmarks.contestant import Contestant, Findings
from benchmarks.inputs import traces

_QUANTITY = "Sinkhorn distance after N rounds"
_BASELINE = "plain, rescaled plan"

_NOTES = (
    "Everyone starts from the same log-probabilities; the gradient is with respect to the student's.",
    "Costs that mlot does not compute come from torch.cdist.",
)


def run(options: argparse.Namespace) -> Findings:
    """Measure every solver on the same probabilities."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    student, teacher = traces(
        options.batch, options.length, options.k, seed=options.seed, dtype=dtype, device=device
    )
    contestants = solvers(student.requires_grad_(), teacher, options.epsilon, options.rounds)
    return Findings(compete(contestants, options.repeats, device, dtype), notes=_NOTES)


def solvers(student: Tensor, teacher: Tensor, epsilon: float, rounds: int) -> list[Contestant]:
    """Contestants for log-probabilities ``(B, T, k)``; their value is ``(B,)``."""

    def contestant(
        name: str,
        forward: Callable[[], Tensor] | None,
        *,
        ours: bool = False,
        remark: str = "",
        same: bool = True,
    ) -> Contestant:
        return Contestant(name, _QUANTITY, forward, (student,), _BASELINE, (teacher,), same, remark, ours)

    def of_plan(solver: plain.Solver) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            cost = _cost(student, teacher)
            return student.shape[1] * (solver(cost, epsilon, rounds) * cost).sum((1, 2))

        return forward

    def of_values(name: str, values: libraries.Values, *, remark: str = "", same: bool = True) -> Contestant:
        if isinstance(values, str):
            return contestant(name, None, remark=values)
        solve = values
        return contestant(
            name,
            lambda: student.shape[1] * solve(_cost(student, teacher), epsilon, rounds),
            remark=remark,
            same=same,
        )

    return [
        contestant("mlot.sinkhorn_distance", lambda: _distance(student, teacher, epsilon, rounds), ours=True),
        contestant(
            "mlot.sequence_cost, mlot.sinkhorn",
            lambda: _cost_then_plan(student, teacher, epsilon, rounds),
            ours=True,
        ),
        contestant(_BASELINE, of_plan(plain.rescaled_plan)),
        contestant("plain, scaled kernel", of_plan(plain.scaled_kernel)),
        contestant("plain, log domain", of_plan(plain.log_potentials)),
        of_values("POT ot.sinkhorn, sequence by sequence", libraries.pot_sinkhorn()),
        of_values("POT ot.batch, sinkhorn", libraries.pot_batch("sinkhorn", "autodiff")),
        of_values("POT ot.batch, log_sinkhorn", libraries.pot_batch("log_sinkhorn", "autodiff")),
        of_values(
            "POT ot.batch, its default gradient",
            libraries.pot_batch("log_sinkhorn", "envelope"),
            remark="same value; the plan is a constant for its gradient",
            same=False,
        ),
        _geomloss(student, teacher, epsilon),
    ]


def _cost(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.cdist(teacher.exp(), student.exp(), p=1)


def _as_traces(log_probs: Tensor) -> mlot.Traces:
    batch, length, k = log_probs.shape
    return mlot.Traces(
        columns=torch.arange(k, device=log_probs.device).expand(batch, -1),
        log_probs=log_probs,
        log_normalizers=log_probs.new_zeros((batch, length, 0)),
        column_mass=log_probs.detach().exp().sum(1),
        mask=torch.ones((batch, length), dtype=torch.bool, device=log_probs.device),
        vocab_size=k + 1,
    )


def _distance(student: Tensor, teacher: Tensor, epsilon: float, rounds: int) -> Tensor:
    distance: Tensor = mlot.sinkhorn_distance(
        _as_traces(student),
        _as_traces(teacher),
        temperature=None,
        epsilon=epsilon,
        n_iter=rounds,
        reduction="none",
    )
    return distance


def _cost_then_plan(student: Tensor, teacher: Tensor, epsilon: float, rounds: int) -> Tensor:
    cost = mlot.sequence_cost(_as_traces(student), _as_traces(teacher), temperature=None)
    value: Tensor = student.shape[1] * mlot.sinkhorn(cost, epsilon=epsilon, n_iter=rounds).value
    return value


def _geomloss(student: Tensor, teacher: Tensor, epsilon: float) -> Contestant:
    found = libraries.geomloss_sinkhorn(epsilon)
    name, remark = (
        "geomloss SamplesLoss",
        "entropic dual value after annealed rounds of its own number",
    )
    if isinstance(found, str):
        return Contestant(name, _QUANTITY, None, (student,), _BASELINE, (teacher,), remark=found)
    solve = found
    return Contestant(
        name,
        _QUANTITY,
        lambda: student.shape[1] * solve(student.exp(), teacher.exp()),
        (student,),
        _BASELINE,
        (teacher,),
        claims=False,
        remark=remark,
    )
