"""Timing several computations in turns, so that whatever disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence

import torch


def interleaved(
    actions: Sequence[Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds that each action took in each of ``repeats`` rounds.

    Every round runs all the actions, each time from another one on, so that none always comes after the same.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    for round_number in range(repeats):
        for step in range(len(actions)):
            n = (round_number + step) % len(actions)
            seconds[n].append(once(actions[n], device, clock))
    return seconds


def once(
    action: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that an action takes, the device's work included; what it returns is freed after that."""
    gc.collect()
    gc.disable()
    try:
        synchronize(device)
        start = clock()
        result = action()
        synchronize(device)
        elapsed = clock() - start
    finally:
        gc.enable()
    del result
    return elapsed


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
