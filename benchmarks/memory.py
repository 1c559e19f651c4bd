"""Memory that a computation takes: at its peak, and between forward and backward."""

from __future__ import annotations

import gc
import json
import tempfile
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Most bytes that were allocated at once during an action, beyond those allocated before.

    On the host these are the allocations and releases of torch's allocator, each one as the profiler reports
    it, scratch space inside operations included. Memory that does not come from torch's allocator (NumPy's,
    that of a solver in C) is not seen. On CUDA it is what torch's caching allocator counts.
    """
    gc.collect()
    if device.type == "cuda":
        return _device_peak(action, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = action()
        del result  # inside, so that the profiler sees its release
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return highest(events)


def highest(events: Iterable[dict[str, Any]]) -> int:
    """Peak of the running total of a trace's memory events on the host."""
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["args"]["Ev Idx"])
    live: dict[int, int] = {}
    total = peak = 0
    for event in changes:
        if event["args"]["Device Type"] != 0:
            continue
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            live[address] = size
            total += size
            peak = max(peak, total)
        else:  # what was allocated before the action is no part of the total
            total -= live.pop(address, 0)
    return peak


def _device_peak(action: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = action()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes behind tensors, each storage counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


class _Saved:
    """What autograd keeps in place of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


def saved_bytes(forward: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """Bytes that autograd holds once forward is done, each storage counted once, the inputs' not at all."""
    saved: weakref.WeakSet[_Saved] = weakref.WeakSet()  # what the graph has dropped by then does not count

    def pack(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        saved.add(kept)
        return kept

    with saved_tensors_hooks(pack, lambda kept: kept.tensor):
        value = forward()
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    held = [kept.tensor for kept in saved]
    total = storage_bytes(tensor for tensor in held if tensor.untyped_storage().data_ptr() not in given)
    del value
    return total
