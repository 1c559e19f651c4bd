"""How much of the device's memory bandwidth selection reaches."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mlot
from benchmarks.timing import once

_COPY_BYTES = 1 << 30


def select_bandwidth(logits: Tensor, k: int, repeats: int) -> dict[str, Any] | str:
    """Bandwidth that `mlot.select` of logits reaches, beside a copy's; not measured on the host.

    Counted are the bytes that have to move: forward reads the logits twice, backward reads them once and
    writes their gradient.
    """
    if logits.device.type != "cuda":
        return "not measured"
    return measured(logits, k, repeats, _COPY_BYTES)


def measured(logits: Tensor, k: int, repeats: int, copy_bytes: int) -> dict[str, Any]:
    """The same on any device; all rates in bytes per second."""
    device = logits.device
    copying = _copy_rate(copy_bytes, repeats, device)

    def forward() -> Tensor:
        traces = mlot.select(logits, k=k)
        value: Tensor = traces.log_probs.sum() + traces.log_normalizers.sum()
        return value

    value = forward()
    moved = 2 * logits.numel() * logits.element_size()
    forward_rate = moved / _median(forward, repeats, device)
    backward_rate = moved / _median(
        lambda: torch.autograd.grad(value, logits, retain_graph=True), repeats, device
    )
    return {
        "copy": copying,
        "select forward": forward_rate,
        "select backward": backward_rate,
        "select forward, fraction of copy": forward_rate / copying,
        "select backward, fraction of copy": backward_rate / copying,
    }


def _copy_rate(size: int, repeats: int, device: torch.device) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _median(lambda: target.copy_(source), repeats, device)


def _median(action: Callable[[], object], repeats: int, device: torch.device) -> float:
    once(action, device)
    return statistics.median(once(action, device) for _ in range(repeats))
