"""Contestants from other libraries. None is needed: one that is not installed says so in its row."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

#: A loss of student's and teacher's logits, or why there is none.
Forward = Callable[[Tensor, Tensor], Tensor] | str


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries' warnings, and what they write on the way, out of the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(name: str) -> ModuleType | str:
    """A module, or why it cannot be had."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        return "not installed"
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    with quiet():
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:
            return f"import failed: {type(error).__name__}"


def trl_uld(strategy: str, *, aligned: bool) -> Forward:
    """TRL's ``ULDLoss`` of whole sequences of answers, or why there is none.

    Args:
        strategy: ``"observed"`` compares all positions, ``"bayesian"`` takes the logits one position earlier,
            which leaves out the last.
        aligned: pair positions through byte offsets, which is TRL's default, here of one byte for each token;
            otherwise by index.
    """
    module = load("trl.experimental.gold.gold_trainer")
    if isinstance(module, str):
        return module
    defaults = {field.name: field.default for field in dataclasses.fields(module.GOLDConfig)}
    if strategy != "observed" and "uld_token_merge_strategy" not in defaults:
        return "not in this version of TRL"
    takes_offsets = "student_byte_offsets" in inspect.signature(module.ULDLoss.__call__).parameters
    if aligned and not takes_offsets:
        return "not in this version of TRL"
    changes: dict[str, Any] = {
        "uld_token_merge_strategy": strategy,
        "use_extended_uld": aligned,
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
    }
    criterion = module.ULDLoss(SimpleNamespace(**(defaults | changes)))

    def forward(student: Tensor, teacher: Tensor) -> Tensor:
        batch, length, _ = student.shape
        ids = torch.arange(length, device=student.device).expand(batch, -1)  # below either vocabulary's size
        extra = {}
        if aligned:
            offsets = torch.stack([ids, ids + 1], -1)
            extra = {"student_byte_offsets": offsets, "teacher_byte_offsets": offsets}
        loss: Tensor = criterion(student, teacher, ids, ids, ids, ids, **extra)
        return loss

    return forward


def liger_divergence() -> Callable[..., Tensor] | str:
    """Liger's fused KL divergence of two models with one vocabulary, or why there is none.

    It takes hidden states ``(n, d)`` and head of the student, those of the teacher, and labels.
    """
    module = load("liger_kernel.transformers")
    if isinstance(module, str):
        return module
    if not torch.cuda.is_available():
        return "needs a GPU"
    criterion: Callable[..., Tensor] = module.LigerFusedLinearJSD(jsd_beta=0.0)
    return criterion


#: Costs ``(B, T_t, T_s)``, the regularisation and the rounds, to values ``(B,)``.
Values = Callable[[Tensor, float, int], Tensor] | str


def pot_sinkhorn() -> Values:
    """POT's ``ot.sinkhorn``, one sequence after the other.

    It scales columns before rows, so it is given the transposed problem; a threshold of 0 makes it do all its
    rounds.
    """
    ot = load("ot")
    if isinstance(ot, str):
        return ot

    def values(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
        a = cost.new_full((cost.shape[1],), 1 / cost.shape[1])
        b = cost.new_full((cost.shape[2],), 1 / cost.shape[2])
        with quiet():
            plans = [
                ot.sinkhorn(b, a, matrix.T, epsilon, numItermax=rounds, stopThr=0.0, warn=False).T
                for matrix in cost
            ]
        return (torch.stack(plans) * cost).sum((1, 2))

    return values


def pot_batch(method: str, gradient: str) -> Values:
    """POT's ``ot.batch.solve_batch``, all its rounds, with a method and a kind of gradient."""
    module = load("ot.batch")
    if isinstance(module, str):
        return "not in this version of POT" if module != "not installed" else module

    def values(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
        solved = module.solve_batch(cost, epsilon, max_iter=rounds, tol=0.0, method=method, grad=gradient)
        linear: Tensor = solved.value_linear
        return linear

    return values


def geomloss_sinkhorn(epsilon: float) -> Forward:
    """geomloss's ``SamplesLoss`` with the same L1 cost and regularisation, between probabilities."""
    module = load("geomloss")
    if isinstance(module, str):
        return module
    criterion = module.SamplesLoss(
        "sinkhorn", p=1, blur=epsilon, diameter=2.0, cost=_l1, debias=False, backend="tensorized"
    )

    def values(student: Tensor, teacher: Tensor) -> Tensor:
        with quiet():
            found: Tensor = criterion(teacher, student)
        return found

    return values


def _l1(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, p=1)
