"""A contest between processes: each contestant has one of its own; they run in turns on the same cores."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.agreement import norm, run_once
from benchmarks.contestant import Contestant, Row
from benchmarks.memory import peak_bytes, saved_bytes, storage_bytes
from benchmarks.timing import once

#: Makes the contestants of some options; the same in every process.
Build = Callable[[argparse.Namespace], list[Contestant]]
#: Of values and norms, between contestants of one quantity: those of lower precision round their logits.
_TOLERANCES = {"float64": 1e-8, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}


def compete_in_processes(build: Build, options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Fill in the rows of contestants that ``build`` makes under the same names.

    Nobody has shared a process, an allocator or a thread pool with another; all but one wait.
    """
    context = multiprocessing.get_context("spawn")
    workers = []
    for row in rows:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(build, options, row.name, theirs), daemon=True)
        process.start()
        workers.append((row, ours, process))
    try:
        running = []
        for row, pipe, _ in workers:
            for name, value in _answer(pipe).items():
                setattr(row, name, value)
            if row.status == "measured":
                running.append((row, pipe))
        for round_number in range(options.repeats):
            for step in range(len(running)):
                row, pipe = running[(round_number + step) % len(running)]
                pipe.send("run")
                row.seconds.append(_answer(pipe)["seconds"])
        for row, pipe in running:
            pipe.send("memory")
            for name, value in _answer(pipe).items():
                setattr(row, name, value)
    finally:
        for _, pipe, process in workers:
            pipe.close()
            process.join(timeout=5)
            process.terminate()
    _agree(rows, _TOLERANCES[options.dtype])


def _answer(pipe: Connection) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = pipe.recv()
    except EOFError:
        return {"status": "failed: the process ended", "seconds": float("nan")}
    return answer


def _agree(rows: Sequence[Row], tolerance: float) -> None:
    """Compare value and norm of the gradient with those of the first row of a quantity."""
    references: dict[str, Row] = {}
    for row in rows:
        if row.value is None:
            continue
        reference = references.setdefault(row.quantity, row)
        row.is_reference = row is reference
        row.value_difference = _apart(row.value, reference.value)
        row.gradient_difference = _apart(row.gradient_norm, reference.gradient_norm)
        row.agrees = max(row.value_difference, row.gradient_difference) <= tolerance


def _apart(one: float | None, other: float | None) -> float:
    assert one is not None
    assert other is not None
    return abs(one - other) / max(abs(other), 1e-30)


def _work(build: Build, options: argparse.Namespace, name: str, pipe: Connection) -> None:
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    contestant = next(each for each in build(options) if each.name == name)
    if contestant.forward is None:
        pipe.send({"status": contestant.remark})
        return
    try:
        run_once(contestant)  # libraries load, and compilers compile, on a first run
        outcome = run_once(contestant)
    except Exception as error:
        pipe.send({"status": f"failed: {type(error).__name__}"})
        raise
    pipe.send(
        {
            "value": float(outcome.value.sum()),
            "gradient_norm": norm(outcome.gradients),
            "gradient_bytes": storage_bytes(outcome.gradients),
        }
    )
    del outcome
    if device.type == "cuda":
        torch.cuda.empty_cache()
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "run":
            if device.type == "cuda":
                run_once(contestant)  # has the device awake, and its memory at hand
            seconds = once(lambda: run_once(contestant), device)
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the others need it
            pipe.send({"seconds": seconds})
        else:
            inputs = (*contestant.wanted, *contestant.constants)
            pipe.send(
                {
                    "peak_bytes": peak_bytes(lambda: run_once(contestant), device),
                    "saved_bytes": saved_bytes(contestant.forward, inputs),
                }
            )
