"""One contest: first agreement, then time, then memory, each in runs of its own."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.agreement import Outcome, differences, norm, run_once, within
from benchmarks.contestant import Contestant, Row
from benchmarks.memory import peak_bytes, saved_bytes, storage_bytes
from benchmarks.timing import interleaved

_COMPARABLE = 1 << 12  # bytes; who takes less, takes nothing that others can be compared with


def compete(
    contestants: Sequence[Contestant], repeats: int, device: torch.device, dtype: torch.dtype
) -> list[Row]:
    """Measure contestants on the same inputs; one row each, in their order.

    Args:
        contestants: of the same quantity next to each other, its reference first.
        repeats: timed runs of each.
        device: where the inputs are.
        dtype: type of the inputs, which decides on the tolerance.
    """
    rows = [Row.of(contestant) for contestant in contestants]
    entries = list(zip(contestants, rows, strict=True))
    _check(entries, dtype)
    running = [(contestant, row) for contestant, row in entries if row.status == "measured"]
    with _frozen_garbage():
        timed = interleaved([_action(contestant) for contestant, _ in running], repeats, device)
        for (contestant, row), seconds in zip(running, timed, strict=True):
            row.seconds = seconds
            row.peak_bytes = peak_bytes(_action(contestant), device)
            assert contestant.forward is not None
            row.saved_bytes = saved_bytes(contestant.forward, (*contestant.wanted, *contestant.constants))
    compare({row.name: row for row in rows})
    return rows


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Spare the collections between runs the objects that are here already."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _action(contestant: Contestant) -> Callable[[], object]:
    return lambda: run_once(contestant)


def _check(entries: Sequence[tuple[Contestant, Row]], dtype: torch.dtype) -> None:
    """Run everyone twice; fill in how far each is from the reference of its quantity."""
    reference: Outcome | None = None
    quantity = None
    for contestant, row in entries:
        if contestant.quantity != quantity:
            quantity, reference = contestant.quantity, None
        if contestant.forward is None:
            row.status, row.remark = contestant.remark, ""
            continue
        try:
            run_once(contestant)  # libraries load what they need on a first run
            found = run_once(contestant)
        except Exception as error:
            # A failure is a finding. Only its kind goes into the results: messages may hold paths.
            traceback.print_exc()
            row.status = f"failed: {type(error).__name__}"
            continue
        row.value, row.gradient_norm = float(found.value.sum()), norm(found.gradients)
        row.gradient_bytes = storage_bytes(found.gradients)
        if reference is None:
            reference, row.is_reference = found, True
        apart = differences(found, reference)
        row.value_difference, row.gradient_difference = apart
        row.agrees = within(apart, dtype)


def compare(rows: dict[str, Row]) -> None:
    """Fill in ratios: of times, the median and the quartiles over the rounds."""
    for row in rows.values():
        baseline = rows[row.baseline]
        if row.seconds and baseline.seconds:
            ratios = np.divide(row.seconds, baseline.seconds)
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
            row.time_ratio, row.time_ratio_spread = middle, (low, high)
        if row.peak_bytes is not None and (baseline.peak_bytes or 0) >= _COMPARABLE:
            row.memory_ratio = row.peak_bytes / baseline.peak_bytes
