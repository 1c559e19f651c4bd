"""Arrays in one file behind a digest of them: what is damaged is not read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._storage import write_atomically

_DIGEST = 16


def write_arrays(
    path: Path, format: str, fingerprints: Sequence[str], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays and what they belong to, whole or not at all."""
    everything: dict[str, Any] = {"fingerprints": np.array(json.dumps(list(fingerprints))), **arrays}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **everything)
    content = buffer.getvalue()
    write_atomically(path, format.encode() + _digest(content) + content)


def read_arrays(path: Path, format: str, names: Sequence[str]) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Read fingerprints and arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, found none at {str(path)!r}")
    everything, start = path.read_bytes(), len(format) + _DIGEST
    content = everything[start:]
    if everything[:start] != format.encode() + _digest(content):
        raise ValueError(f"path: expected a file of {format!r}, {str(path)!r} is damaged or another")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return json.loads(str(stored["fingerprints"])), {name: stored[name] for name in names}
    except Exception as error:  # of zipfile, zlib, json or NumPy; the digest is that of something else
        raise ValueError(f"path: {str(path)!r} is damaged or another file: {error!r}") from error


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=_DIGEST).digest()
