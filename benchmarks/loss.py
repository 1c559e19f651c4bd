"""``python -m benchmarks loss``: whole losses, forward and backward to the student."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import mlot
from benchmarks import libraries, plain
from benchmarks.bandwidth import select_bandwidth
from benchmarks.contest import compete
from benchmarks.contestant import Contestant, Findings
from benchmarks.inputs import Predictions, predictions
from mlot._typing import Matching
from mlot.compat import released_loss
from mlot.matching import default_pool

_RANK, _OPTIMAL = "MultiLevelOT, rank matching", "MultiLevelOT, optimal matching"
_HIDDEN = "MultiLevelOT, rank, from hidden states"
_RELEASED, _PLAIN_RELEASED = "The paper's released code", "its own way: vocabularies reordered"
_ULD, _ULD_SHORT = "ULD", "ULD without the last position"
_PLAIN_RANK, _PLAIN_OPTIMAL, _PLAIN_HIDDEN = "plain, rank", "plain, optimal", "plain, logits formed"
_PLAIN_ULD, _PLAIN_ULD_SHORT = "plain, ULD", "plain, ULD, shortened"

_NOTES = (
    "Plain PyTorch is benchmarks/plain.py.",
    "Optimal matching is among the same candidates in both: the student's max(8 k, 256) heaviest columns.",
    "From hidden states, the gradients are those of the hidden states and of the output head.",
    "The released code computes another quantity than the paper's.",
    "TRL pairs positions by index, or, aligned, by byte offsets (its default), here a byte for each token.",
    "TRL's bayesian variant leaves out the last position.",
)


def run(options: argparse.Namespace) -> Findings:
    """Measure every loss on the same predictions."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    sizes = (options.batch, options.length)
    student = predictions(
        *sizes, options.student_vocabulary, options.hidden, seed=options.seed, dtype=dtype, device=device
    )
    teacher = predictions(
        *sizes, options.teacher_vocabulary, options.hidden, seed=options.seed + 1, dtype=dtype, device=device
    )
    logits = student.logits.requires_grad_()
    contestants = [
        *from_logits(logits, teacher.logits, options.k),
        *_from_hidden(student, teacher.logits, options.k),
        *_uld(logits, teacher.logits),
        *_released(logits, teacher.logits),
    ]
    rows = compete(contestants, options.repeats, device, dtype)
    return Findings(rows, select_bandwidth(logits, options.k, options.repeats), _NOTES)


def from_logits(student: Tensor, teacher: Tensor, k: int) -> list[Contestant]:
    """mlot and plain PyTorch, with both matchings."""
    k = min(k, student.shape[2], teacher.shape[2])
    pool = min(default_pool(k), student.shape[2])

    def ours(matching: Matching) -> Callable[[], Tensor]:
        config = mlot.MultiLevelOTConfig(k=k, matching=matching)
        return lambda: mlot.multi_level_ot(student, teacher, config=config).loss

    def contestant(
        name: str, quantity: str, forward: Callable[[], Tensor], baseline: str, *, ours: bool
    ) -> Contestant:
        return Contestant(name, quantity, forward, (student,), baseline, (teacher,), ours=ours)

    return [
        contestant("mlot, rank", _RANK, ours("rank"), _PLAIN_RANK, ours=True),
        contestant(
            _PLAIN_RANK, _RANK, lambda: plain.multi_level_ot(student, teacher, k=k), _PLAIN_RANK, ours=False
        ),
        contestant("mlot, optimal", _OPTIMAL, ours("optimal"), _PLAIN_OPTIMAL, ours=True),
        contestant(
            _PLAIN_OPTIMAL,
            _OPTIMAL,
            lambda: plain.multi_level_ot(student, teacher, k=k, pool=pool),
            _PLAIN_OPTIMAL,
            ours=False,
        ),
    ]


def _from_hidden(student: Predictions, teacher: Tensor, k: int) -> list[Contestant]:
    k = min(k, student.logits.shape[2], teacher.shape[2])
    config = mlot.MultiLevelOTConfig(k=k, matching="rank")
    hidden, weight = student.hidden.requires_grad_(), student.weight.requires_grad_()
    exact = _is_exact(hidden)  # a LinearHead computes logits in float32 at least

    def contestant(name: str, forward: Callable[[], Tensor], *, ours: bool, formed: bool) -> Contestant:
        claims = exact or not formed
        remark = "" if claims else "logits rounded to the inputs' precision"
        wanted, constants = (hidden, weight), (teacher,)
        return Contestant(name, _HIDDEN, forward, wanted, _PLAIN_HIDDEN, constants, claims, remark, ours)

    return [
        contestant(
            "mlot, LinearHead",
            lambda: mlot.multi_level_ot(mlot.LinearHead(hidden, weight), teacher, config=config).loss,
            ours=True,
            formed=False,
        ),
        contestant(
            "mlot, logits formed",
            lambda: mlot.multi_level_ot(hidden @ weight.mT, teacher, config=config).loss,
            ours=True,
            formed=True,
        ),
        contestant(
            _PLAIN_HIDDEN,
            lambda: plain.multi_level_ot(hidden @ weight.mT, teacher, k=k),
            ours=False,
            formed=True,
        ),
    ]


def _is_exact(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64)


def _uld(student: Tensor, teacher: Tensor) -> list[Contestant]:
    inner = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    inner[:, -1] = False

    def contestant(name: str, quantity: str, forward: Callable[[], Tensor], *, ours: bool) -> Contestant:
        baseline = _PLAIN_ULD if quantity == _ULD else _PLAIN_ULD_SHORT
        return Contestant(name, quantity, forward, (student,), baseline, (teacher,), ours=ours)

    def theirs(name: str, quantity: str, strategy: str, *, aligned: bool = False) -> Contestant:
        found = libraries.trl_uld(strategy, aligned=aligned)
        baseline = _PLAIN_ULD if quantity == _ULD else _PLAIN_ULD_SHORT
        if isinstance(found, str):
            return Contestant(name, quantity, None, (student,), baseline, (teacher,), remark=found)
        exact = _is_exact(student)
        remark = "" if exact else "computed in the logits' own precision"
        forward = found
        return Contestant(
            name, quantity, lambda: forward(student, teacher), (student,), baseline, (teacher,), exact, remark
        )

    return [
        contestant("mlot.uld", _ULD, lambda: mlot.uld(student, teacher), ours=True),
        contestant(_PLAIN_ULD, _ULD, lambda: plain.uld(student, teacher), ours=False),
        theirs("TRL ULDLoss, observed", _ULD, "observed"),
        theirs("TRL ULDLoss, observed, aligned", _ULD, "observed", aligned=True),
        contestant(
            "mlot.uld, masked",
            _ULD_SHORT,
            lambda: mlot.uld(student, teacher, student_mask=inner, teacher_mask=inner),
            ours=True,
        ),
        contestant(
            _PLAIN_ULD_SHORT, _ULD_SHORT, lambda: plain.uld(student[:, :-1], teacher[:, :-1]), ours=False
        ),
        theirs("TRL ULDLoss, bayesian", _ULD_SHORT, "bayesian"),
    ]


def _released(student: Tensor, teacher: Tensor) -> list[Contestant]:
    # Labels are unshifted: every position but the first is an answer, and is predicted by the one before it.
    labels = torch.ones(student.shape[:2], dtype=torch.long, device=student.device)
    labels[:, 0] = -100

    def contestant(name: str, forward: Callable[[], Tensor], *, ours: bool) -> Contestant:
        return Contestant(name, _RELEASED, forward, (student,), _PLAIN_RELEASED, (teacher,), ours=ours)

    return [
        contestant(
            "mlot.compat.released_loss",
            lambda: released_loss(student, teacher, labels, labels),
            ours=True,
        ),
        contestant(_PLAIN_RELEASED, lambda: plain.released(student, teacher), ours=False),
    ]
