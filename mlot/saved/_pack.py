"""What is kept of a batch brought into the form in which it is stored, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _arguments
from mlot._resolve import type_name
from mlot.saved._error import error_of
from mlot.saved._keys import KEY_BYTES, packed
from mlot.saved._manifest import Manifest
from mlot.saved._shard import MOST_POSITIONS, Example
from mlot.text import TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

#: What is given where each is kept.
SOURCES = {"traces": Traces, "likeliest": TopKLogprobs, "targets": TextTargets}
#: What of it must be as the manifest says.
_SETTINGS = {
    "traces": ("k", "vocab_size", "temperature", "extra_temperatures", "standardize"),
    "likeliest": ("vocab_size", "temperature"),
    "targets": ("k", "vocab_size", "temperature"),
}


def packed_examples(
    manifest: Manifest, keys: Sequence[str], source: Any, attention_mask: Any = None
) -> list[Example]:
    """Check a batch and pack it; see `TeacherWriter.add`."""
    packed_keys = [key.ljust(KEY_BYTES, b"\0") for key in packed("keys", keys).tolist()]
    if manifest.keep == "traces":
        _arguments.traces("traces", source)
    elif not isinstance(source, SOURCES[manifest.keep]):
        raise TypeError(
            f"traces: expected {SOURCES[manifest.keep].__name__}, since the manifest keeps "
            f"{manifest.keep!r}, got {type_name(source)}"
        )
    _require(manifest, source, len(packed_keys))
    xp, _ = _arguments.resolve({"traces": source}, None)
    if manifest.keep != "traces":
        source._check(xp, "traces")
    held = source.map(lambda array: xp.to_numpy(xp.stop_gradient(array)))
    mask = _valid(held)
    present = _attention(attention_mask, mask)
    rows, whole = _arrays(held)
    if "ids" in rows:  # beside no token stands what nobody reads
        rows["log_probs"] = np.where(rows["ids"] < 0, -np.inf, rows["log_probs"])
    if any(np.isnan(rows[name][mask]).any() for name in rows if name != "ids"):
        raise ValueError("traces: expected log-probabilities, got NaN: the teacher's logits are no numbers")
    return [
        _example(
            manifest,
            key,
            np.array(mask[n][present[n]]),
            {name: array[n] for name, array in whole.items()},
            {name: array[n][mask[n]] for name, array in rows.items()},
        )
        for n, key in enumerate(packed_keys)
    ]


def empty_example(manifest: Manifest, key: str, length: int) -> Example:
    """An example without a valid position, which needs no teacher: what selection makes of such."""
    whole = {"columns": np.arange(manifest.k), "column_mass": np.zeros(manifest.k)}
    rows = {name: np.zeros((0, *shape)) for name, (_, shape) in manifest.position_arrays.items()}
    return _example(manifest, bytes.fromhex(key), np.zeros(length, bool), whole, rows)


def _valid(source: Traces | TopKLogprobs | TextTargets) -> NDArray[np.bool_]:
    """Positions of which something is stored."""
    if isinstance(source, Traces):
        return np.asarray(source.mask)
    has = (source.ids >= 0).any(axis=2) if isinstance(source, TopKLogprobs) else source.served > 0
    return np.asarray(has)


def _arrays(
    source: Traces | TopKLogprobs | TextTargets,
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Arrays of positions, ``(B, T, ...)``, and of examples."""
    if isinstance(source, Traces):
        rows = {"log_probs": source.log_probs, "log_normalizers": source.log_normalizers}
        return rows, {"columns": source.columns, "column_mass": source.column_mass}
    if isinstance(source, TopKLogprobs):
        return {"log_probs": source.logprobs, "ids": source.ids}, {}
    names = ("log_probs", "ids", "rest", "served")
    return {name: getattr(source, name) for name in names}, {}


def _example(
    manifest: Manifest,
    key: bytes,
    mask: NDArray[np.bool_],
    whole: dict[str, NDArray[Any]],
    rows: dict[str, NDArray[Any]],
) -> Example:
    """One example, from the arrays ``(R, ...)`` of its valid positions."""
    if len(mask) > MOST_POSITIONS:
        raise ValueError(f"traces: expected at most {MOST_POSITIONS} positions an example, got {len(mask)}")
    log_probs, dtype = rows["log_probs"], manifest.dtype
    normalizers = rows.get("log_normalizers", np.zeros((len(log_probs), 0)))
    ratios = tuple(manifest.temperature / each for each in manifest.extra_temperatures)
    given = whole | rows
    if "ids" in given:
        given["ids"] = np.where(given["ids"] < 0, manifest.vocab_size, given["ids"])
    types = manifest.example_arrays | manifest.position_arrays
    with np.errstate(over="ignore"):  # what is too small for a type becomes minus infinity
        arrays = {name: given[name].astype(of) for name, (of, _) in types.items()}
    return Example(key, mask, arrays, error_of(log_probs, normalizers, ratios, dtype, rows.get("rest")))


def _require(manifest: Manifest, source: Any, count: int) -> None:
    if source.shape[0] != count:
        raise ValueError(f"keys: expected {source.shape[0]}, one for each example of traces, got {count}")
    given = {name: getattr(source, name) for name in _SETTINGS[manifest.keep]}
    if isinstance(source, TopKLogprobs):
        given = {"k": source.ids.shape[2], **given}
        if source.tail != "fitted":
            raise ValueError(
                f"traces: expected tail='fitted', which is how they are read, got {source.tail!r}"
            )
    if "extra_temperatures" in given:
        given["extra_temperatures"] = tuple(given["extra_temperatures"])
    for name, got in given.items():
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
