"""``python -m benchmarks criterion``: what users run, cross-entropy and distillation, forward and backward.

Every contestant has a process of its own. The yardstick is what any such criterion has to do at least: one
exponential of the student's logits, one of the teacher's, and one of the student's again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mlot
import mlot.nn
from benchmarks import libraries, plain, texts
from benchmarks.contest import compare
from benchmarks.contestant import Contestant, Findings, Row
from benchmarks.inputs import Predictions, predictions
from benchmarks.processes import compete_in_processes

_YARDSTICK = "yardstick: three exponentials"
_PLAIN = "plain PyTorch, rank"
_SLACK = 1.25  # by how much a ratio may be above that of a committed result

_NOTES = (
    "Every contestant has a process of its own; they run in turns, pinned to the same cores.",
    "Base is the yardstick; for ULD it is TRL's loss, from hidden states mlot's with logits formed.",
    "Values and norms of gradients are compared, across processes.",
    "Plain PyTorch is F.cross_entropy and benchmarks/plain.py; compiled: by torch.compile, beforehand.",
    "The text's plan is between two byte-level BPEs of the standard library's sources, targets included.",
)


def run(options: argparse.Namespace) -> Findings:
    """Measure the criterion; with ``--against``, fail where a ratio to the yardstick has become worse."""
    rows = [Row.of(contestant) for contestant in contestants(options)]
    compete_in_processes(contestants, options, rows)
    compare({row.name: row for row in rows})
    notes = _NOTES
    if options.against is not None:
        worse = slower(rows, json.loads(Path(options.against).read_text(encoding="utf-8")))
        notes += (
            f"Against {Path(options.against).name}: " + ("; ".join(worse) or "nothing is slower") + ".",
        )
        for row in rows:
            if any(line.startswith(row.name) for line in worse):
                row.status = "slower than the committed result"
    return Findings(rows, None, notes)


def slower(rows: list[Row], committed: dict[str, Any]) -> list[str]:
    """Contestants of ours whose ratio is above a committed one by more than noise explains."""
    before = {row["name"]: row for row in committed["rows"]}
    lines = []
    for row in rows:
        old = before.get(row.name)
        if not row.ours or row.time_ratio is None or old is None or not old["time_ratio"]:
            continue
        low = row.time_ratio if row.time_ratio_spread is None else row.time_ratio_spread[0]
        if low > _SLACK * old["time_ratio"]:
            lines.append(f"{row.name}: {row.time_ratio:.2f} times its base, {old['time_ratio']:.2f} before")
    return lines


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Everyone, on the same random predictions."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shape = {"seed": options.seed, "dtype": dtype, "device": device}
    sizes = (options.batch, options.length)
    student = predictions(*sizes, options.student_vocabulary, options.hidden, **shape)
    teacher = predictions(
        *sizes, options.teacher_vocabulary, options.hidden, **(shape | {"seed": options.seed + 1})
    ).logits
    logits = student.logits.requires_grad_()
    generator = torch.Generator().manual_seed(options.seed)
    labels = torch.randint(options.student_vocabulary, sizes, generator=generator).to(device)
    taught = torch.randint(options.teacher_vocabulary, sizes, generator=generator).to(device)

    def yardstick() -> Callable[[], Tensor]:
        room = torch.empty_like(logits, requires_grad=False), torch.empty_like(teacher)

        def passes() -> Tensor:
            with torch.no_grad():
                for source, place in ((logits, 0), (teacher, 1), (logits, 0)):
                    torch.exp(source, out=room[place])
            return room[0].new_zeros(())

        return passes

    def criterion(matching: str, source: Any = None, **settings: Any) -> Any:
        config = mlot.MultiLevelOTConfig(k=options.k, matching=matching)  # type: ignore[arg-type]
        module = mlot.nn.MultiLevelOTLoss(config, 0.15, **settings)
        return lambda: module(logits if source is None else source(), teacher, labels, taught)

    def by_hand() -> Tensor:
        targets = labels[:, 1:].flatten()
        cross_entropy = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets)
        return cross_entropy + 0.15 * plain.multi_level_ot(logits[:, :-1], teacher[:, :-1], k=options.k)

    def entry(name: str, quantity: str, forward: Any, base: str = _YARDSTICK, **rest: Any) -> Contestant:
        wanted = rest.pop("wanted", (logits,))
        return Contestant(name, quantity, forward, wanted, base, (teacher,), **rest)

    hidden, weight = student.hidden.requires_grad_(), student.weight.requires_grad_()
    whole, uld, head = "the whole criterion, rank matching", "ULD", "from hidden states, rank matching"
    text = _text_entries(entry, options, logits) if options.text else []
    theirs = libraries.trl_uld("observed", aligned=False)
    liger = libraries.liger_divergence()
    return [
        entry(_YARDSTICK, _YARDSTICK, _later(yardstick), wanted=(), claims=False, remark="no loss"),
        entry("cross-entropy alone, plain", "cross-entropy", lambda: F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), claims=False, remark="no distillation"),
        entry("mlot, rank", whole, criterion("rank"), ours=True),
        entry(_PLAIN, whole, by_hand),
        entry("plain PyTorch, rank, compiled", whole, _later(lambda: torch.compile(by_hand))),
        entry("mlot, optimal", "optimal matching", criterion("optimal"), ours=True),
        *text,
        entry("mlot, LinearHead", head, criterion("rank", lambda: mlot.LinearHead(hidden, weight)),
              "mlot, logits formed", wanted=(hidden, weight), ours=True),
        entry("mlot, logits formed", head, criterion("rank", lambda: hidden @ weight.mT),
              "mlot, logits formed", wanted=(hidden, weight), ours=True),
        entry("Liger, KL", head, None if isinstance(liger, str) else _later(
            lambda: _liger(options, liger, student, labels)), "mlot, logits formed", wanted=(hidden, weight),
              claims=False, remark=liger if isinstance(liger, str) else "one vocabulary, no cross-entropy"),
        entry("mlot.uld", uld, lambda: mlot.uld(logits, teacher), "TRL ULDLoss", ours=True),
        entry("TRL ULDLoss", uld, None if isinstance(theirs, str) else lambda: theirs(logits, teacher),
              "TRL ULDLoss", remark=theirs if isinstance(theirs, str) else ""),
    ]  # fmt: skip


def _liger(options: argparse.Namespace, criterion: Any, student: Predictions, labels: Tensor) -> Any:
    """Liger's loss with a teacher that has the student's vocabulary."""
    sizes = (options.batch, options.length, options.student_vocabulary, options.hidden)
    hidden, weight = student.hidden, student.weight
    teacher = predictions(*sizes, seed=options.seed + 2, dtype=hidden.dtype, device=hidden.device)
    flat, taught = hidden.flatten(0, 1), teacher.hidden.flatten(0, 1)
    return lambda: criterion(flat, weight, taught, teacher.weight, labels.flatten())


def _text_entries(entry: Any, options: argparse.Namespace, logits: Tensor) -> list[Contestant]:
    """The criterion with the plan from the text; and its targets alone beside a teacher's forward pass."""
    nothing = {"wanted": (), "claims": False}
    made, teacher = "targets of the text's plan", "forward pass of 135M weights"
    return [
        entry("mlot, text", "the text's plan",
              _later(lambda: texts.criterion_by_text(options, logits)), ours=True),
        entry(made, made, _later(lambda: texts.targets(options, logits)), teacher, ours=True,
              remark="no loss", **nothing),
        entry(teacher, made, _later(lambda: texts.teacher_of_135_million(options)), teacher,
              remark="of a model of SmolLM2-135M's shape", **nothing),
    ]  # fmt: skip


def _later(make: Callable[[], Callable[[], Tensor]]) -> Callable[[], Tensor]:
    """Make something when it is first run, which only one process does."""
    made = cache(make)
    return lambda: made()()
