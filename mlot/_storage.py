"""Traces on disk: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlot import _checks

FORMAT = "mlot.traces.2"
TRACE_FIELDS = ("columns", "log_probs", "log_normalizers", "column_mass", "mask")
#: Most bytes of a header, as safetensors itself has it.
MOST_HEADER = 100_000_000
#: How the name of a file ends that is still being written.
PARTIAL = ".partial"
#: Types that log-probabilities can be stored in.
DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


def write_fields(
    arrays: dict[str, NDArray[Any]], header: dict[str, Any], path: str | os.PathLike[str], dtype: str | None
) -> None:
    """Write the fields of traces; see `mlot.Traces.save`."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {tuple(DTYPES)} or None, got {dtype!r}")
    serialize = safetensors_numpy("path").save
    if dtype is not None:
        stored = {name: arrays[name].astype(DTYPES[dtype]) for name in ("log_probs", "log_normalizers")}
        arrays = arrays | stored
    header = {"format": FORMAT, **header}
    header["digest"] = _digest(header, arrays)
    metadata = {"mlot": json.dumps(header)}
    write_atomically(Path(path), serialize(arrays, metadata=metadata))


def read_fields(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and fields of traces, checked against each other; see `mlot.Traces.load`."""
    safetensors_numpy("path")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file of traces, found none at {str(path)!r}")
    try:
        return _parse(path)
    except (KeyError, IndexError, TypeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise ValueError(f"path: {str(path)!r} is damaged or no file of traces: {error!r}") from error


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a file, checked against each other before memory is taken for them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        layout = read_layout(file, size)
    header, arrays = layout.metadata, layout.mapped(path, size)
    if header["format"] != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, got {header['format']!r}")
    missing = [name for name in TRACE_FIELDS if name not in arrays]
    if missing:
        raise ValueError(f"fields: expected {', '.join(TRACE_FIELDS)}, got no {', '.join(missing)}")
    batch, length, k = arrays["log_probs"].shape
    shapes = {
        "columns": (len(arrays["mask"]), k),
        "log_probs": (*arrays["mask"].shape, arrays["columns"].shape[-1]),
        "log_normalizers": (batch, length, len(header["extra_temperatures"])),
        "column_mass": (batch, k),
        "mask": (batch, length),
    }
    letters = {"columns": "iu", "mask": "b"}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if array.dtype.kind not in letters.get(name, "f"):
            raise ValueError(f"{name}: unexpected type {array.dtype}")
    _checks.count("vocab_size", header["vocab_size"])
    _checks.temperatures(header["temperature"], header["extra_temperatures"])
    _checks.flag("standardize", header["standardize"])
    columns, vocabulary = arrays["columns"], int(header["vocab_size"])
    if columns.size and not 0 <= columns.min() <= columns.max() < vocabulary:
        raise ValueError(f"columns: expected 0 to {vocabulary - 1}, got {columns.min()} to {columns.max()}")
    if header.pop("digest") != _digest(header, arrays):
        raise ValueError("digest: expected that of what was written, got another")
    return header, {name: arrays[name].copy() for name in TRACE_FIELDS}


def _digest(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Digest of what a file says."""
    digest = blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name in TRACE_FIELDS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a safetensors file lie.

    Attributes:
        metadata: what was stored under the name of this library.
        arrays: type, shape, and first byte in the file of each array.
    """

    metadata: dict[str, Any]
    arrays: dict[str, tuple[str, tuple[int, ...], int]]

    def mapped(self, path: Path, size: int) -> dict[str, NDArray[Any]]:
        """Arrays of the file, mapped into memory: none is taken for what nobody looks at.

        Raises:
            ValueError: the file has not ``size`` bytes any more.
        """
        raw = np.asarray(np.memmap(path, np.uint8, "r"))
        if len(raw) != size:
            raise ValueError(f"expected {size} bytes, as when it was opened, got {len(raw)}")
        arrays = {}
        for name, (letters, shape, start) in self.arrays.items():
            dtype = np.dtype(_TYPES[letters])
            arrays[name] = raw[start : start + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
        return arrays


#: Types of arrays, by the letters that safetensors has for them.
_TYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "BOOL": "?",
}


def parsed(text: bytes | str) -> Any:
    """JSON; what is nested too deeply is a `ValueError`, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON, got what is nested too deeply") from error


def read_layout(file: BinaryIO, size: int) -> Layout:
    """Read the header of a safetensors file of ``size`` bytes, which must be what the header promises.

    Raises:
        KeyError, TypeError, ValueError: it is none of ours, or damaged.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise ValueError(f"header: expected at most {MOST_HEADER} bytes, got {length}")
    if size < 8 + length:
        raise ValueError(f"size: expected at least {8 + length} bytes, got {size}")
    header = parsed(file.read(length))
    if not isinstance(header, dict):
        raise TypeError(f"header: expected a dict, got {type(header).__name__}")
    metadata = parsed(header.pop("__metadata__")["mlot"])
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata: expected a dict, got {type(metadata).__name__}")
    arrays, end = {}, 8 + length
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (start, stop) = tuple(map(int, entry["shape"])), entry["data_offsets"]
        bytes_of_all = np.dtype(_TYPES[entry["dtype"]]).itemsize * math.prod(shape)
        if min(shape, default=0) < 0 or 8 + length + start != end or stop - start != bytes_of_all:
            raise ValueError(f"{name}: its place in the file does not fit its shape")
        arrays[name] = (str(entry["dtype"]), shape, end)
        end = 8 + length + stop
    if size != end:
        raise ValueError(f"size: expected {end} bytes, got {size}")
    return Layout(metadata, arrays)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step, durable when this returns."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {str(path)!r}")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # such as a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def safetensors_numpy(name: str) -> Any:
    """Import ``safetensors.numpy``; ``name`` is the argument that needs it, for the message."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f'{name}: files of traces need safetensors, which is not installed; pip install "mlot[io]"'
        ) from error
    return safetensors.numpy
