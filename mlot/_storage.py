"""Traces on disk: one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot.traces import Traces

FORMAT = "mlot.traces.1"
_FIELDS = ("columns", "log_probs", "log_normalizers", "column_mass", "mask")
_DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


def save_traces(traces: Traces, path: str | os.PathLike[str], dtype: str | None) -> None:
    """Write traces; see `Traces.save`."""
    from mlot._checks import resolve

    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype: expected one of {tuple(_DTYPES)} or None, got {dtype!r}")
    serialize = _safetensors("path").save
    xp, _ = resolve({"traces": traces}, None)
    arrays = {name: np.ascontiguousarray(xp.to_numpy(getattr(traces, name))) for name in _FIELDS}
    if dtype is not None:
        for name in ("log_probs", "log_normalizers"):
            arrays[name] = arrays[name].astype(_DTYPES[dtype])
    header = {
        "format": FORMAT,
        "backend": xp.name,
        "vocab_size": traces.vocab_size,
        "temperature": traces.temperature,
        "extra_temperatures": list(traces.extra_temperatures),
        "standardize": traces.standardize,
    }
    write_atomically(Path(path), serialize(arrays, metadata={"mlot": json.dumps(header)}))


def load_traces(path: str | os.PathLike[str], backend: str | None, device: Any) -> Traces:
    """Read traces; see `Traces.load`."""
    from mlot.backends import get_backend

    module = _safetensors("path")
    wanted = None if backend is None else get_backend(backend)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file of traces, found none at {str(path)!r}")
    content = path.read_bytes()
    try:
        header, arrays = _parse(content, module)
    except (KeyError, TypeError, UnicodeDecodeError, ValueError, module_error()) as error:
        raise ValueError(f"path: {str(path)!r} is damaged or no file of traces: {error!r}") from error
    xp = get_backend(header["backend"]) if wanted is None else wanted
    return Traces(
        **{name: xp.from_numpy(arrays[name], device) for name in _FIELDS},
        vocab_size=int(header["vocab_size"]),
        temperature=float(header["temperature"]),
        extra_temperatures=tuple(float(t) for t in header["extra_temperatures"]),
        standardize=bool(header["standardize"]),
    )


def _parse(content: bytes, module: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a file, checked against each other."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["mlot"])
    if header["format"] != FORMAT:
        raise ValueError(f"format: expected {FORMAT!r}, got {header['format']!r}")
    arrays = module.load(content)
    missing = [name for name in _FIELDS if name not in arrays]
    if missing:
        raise ValueError(f"fields: expected {', '.join(_FIELDS)}, got no {', '.join(missing)}")
    batch, length, k = arrays["log_probs"].shape
    shapes = {
        "columns": (len(arrays["mask"]), k),
        "log_probs": (*arrays["mask"].shape, arrays["columns"].shape[-1]),
        "log_normalizers": (batch, length, len(header["extra_temperatures"])),
        "column_mass": (batch, k),
        "mask": (batch, length),
    }
    kinds = {"columns": "iu", "mask": "b"}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        if array.dtype.kind not in kinds.get(name, "f"):
            raise ValueError(f"{name}: unexpected type {array.dtype}")
    columns, vocabulary = arrays["columns"], int(header["vocab_size"])
    if columns.size and not 0 <= columns.min() <= columns.max() < vocabulary:
        raise ValueError(f"columns: expected 0 to {vocabulary - 1}, got {columns.min()} to {columns.max()}")
    return header, arrays


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step, durable when this returns."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected a file in an existing folder, got {str(path)!r}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def module_error() -> type[Exception]:
    """Exception that safetensors raises for a damaged file."""
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def _safetensors(name: str) -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f'{name}: files of traces need safetensors, which is not installed; pip install "mlot[io]"'
        ) from error
    return safetensors.numpy
