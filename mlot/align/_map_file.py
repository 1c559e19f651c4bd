"""Arrays in one file, with a digest of all of them: what is damaged is not read."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._storage import write_atomically


def write_arrays(
    path: Path, format: str, fingerprints: Sequence[str], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays and what they belong to, whole or not at all."""
    header = {"format": format, "fingerprints": list(fingerprints), "digest": _digest(arrays)}
    content = io.BytesIO()
    everything: dict[str, Any] = {"header": np.array(json.dumps(header)), **arrays}
    np.savez_compressed(content, **everything)
    write_atomically(path, content.getvalue())


def read_arrays(path: Path, format: str, names: Sequence[str]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Read fingerprints and arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, found none at {str(path)!r}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            header = json.loads(str(content["header"]))
            arrays = {name: content[name] for name in names}
        if header["format"] != format:
            raise ValueError(f"format: expected {format!r}, got {header['format']!r}")
        if header["digest"] != _digest(arrays):
            raise ValueError("digest: the arrays are not those that were written")
        fingerprints = [str(each) for each in header["fingerprints"]]
    except (KeyError, TypeError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"path: {str(path)!r} is damaged or no map: {error!r}") from error
    return fingerprints, arrays


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
