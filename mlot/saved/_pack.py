"""Traces of a batch brought into the form in which they are stored, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments
from mlot.saved._error import error_of, stored, stored_normalizers
from mlot.saved._keys import KEY_BYTES, packed
from mlot.saved._manifest import Manifest
from mlot.saved._shard import Example
from mlot.traces import Traces


def packed_examples(
    manifest: Manifest, keys: Sequence[str], traces: Traces, attention_mask: Any = None
) -> list[Example]:
    """Check a batch and pack it; see `TeacherWriter.add`."""
    packed_keys = [key.ljust(KEY_BYTES, b"\0") for key in packed("keys", keys).tolist()]
    _arguments.traces("traces", traces)
    _require(manifest, traces, len(packed_keys))
    xp, _ = _arguments.resolve({"traces": traces}, None)
    held = traces.map(xp.to_numpy)
    present = _attention(attention_mask, held.mask)
    if np.isnan(held.log_probs[held.mask]).any() or np.isnan(held.log_normalizers[held.mask]).any():
        raise ValueError("traces: expected log-probabilities, got NaN: the teacher's logits are no numbers")
    return [_example(manifest, key, held, n, present[n]) for n, key in enumerate(packed_keys)]


def empty_example(manifest: Manifest, key: str, mask: NDArray[np.bool_]) -> Example:
    """An example without a valid position, which needs no teacher: what selection makes of such."""
    k = manifest.k
    log_probs, normalizers = np.zeros((0, k)), np.zeros((0, len(manifest.extra_temperatures)))
    return Example(
        bytes.fromhex(key),
        np.arange(k, dtype=np.int32),
        stored_normalizers(np.zeros(k), manifest.dtype),
        mask,
        stored(log_probs, manifest.dtype),
        stored_normalizers(normalizers, manifest.dtype),
        error_of(log_probs, normalizers, (), manifest.dtype),
    )


def _example(manifest: Manifest, key: bytes, traces: Traces, n: int, present: NDArray[np.bool_]) -> Example:
    valid, dtype = traces.mask[n], manifest.dtype
    log_probs, normalizers = traces.log_probs[n][valid], traces.log_normalizers[n][valid]
    ratios = tuple(manifest.temperature / each for each in manifest.extra_temperatures)
    return Example(
        key,
        traces.columns[n].astype(np.int32),
        stored_normalizers(traces.column_mass[n], dtype),
        np.array(valid[present]),
        stored(log_probs, dtype),
        stored_normalizers(normalizers, dtype),
        error_of(log_probs, normalizers, ratios, dtype),
    )


def _require(manifest: Manifest, traces: Traces, count: int) -> None:
    if traces.shape[0] != count:
        raise ValueError(f"keys: expected {traces.shape[0]}, one for each example of traces, got {count}")
    for name, got in (
        ("k", traces.k),
        ("vocab_size", traces.vocab_size),
        ("temperature", traces.temperature),
        ("extra_temperatures", tuple(traces.extra_temperatures)),
        ("standardize", traces.standardize),
    ):
        wanted = getattr(manifest, name)
        if got != wanted:
            raise ValueError(f"traces: expected {name}={wanted}, as the manifest says, got {got}")


def _attention(mask: Any, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Positions that hold tokens, checked against the mask of the traces."""
    if mask is None:
        return np.ones_like(valid)
    given = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
    if given.shape != valid.shape:
        raise ValueError(f"attention_mask: expected shape {valid.shape}, as traces, got {given.shape}")
    if given.dtype.kind not in "biu":
        raise TypeError(f"attention_mask: expected booleans or integers, got {given.dtype}")
    present: NDArray[np.bool_] = given != 0
    if (valid & ~present).any():
        raise ValueError("attention_mask: expected valid positions to hold tokens, some are padding")
    return present
