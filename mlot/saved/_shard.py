"""One file of a saved teacher: the traces of some examples, the rows of all of them one after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._storage import Layout, read_layout, safetensors_numpy, write_atomically
from mlot.saved._error import StorageError
from mlot.saved._keys import KEY_BYTES
from mlot.saved._manifest import Manifest

FORMAT = "mlot.saved.shard.1"
SUFFIX = ".safetensors"

#: Arrays of a file, in the order in which its checksum takes them. Masks are packed, eight positions a byte,
#: each example's from a byte of its own; ``counts`` are the valid positions, which alone have rows.
ARRAYS = ("keys", "lengths", "counts", "columns", "column_mass", "masks", "log_probs", "log_normalizers")
_NAMES = {"float16": "F16", "float32": "F32", "float64": "F64"}
_TYPES = {"U8": "<u1", "I32": "<i4", "F16": "<f2", "F32": "<f4", "F64": "<f8"}

#: What reading a damaged or foreign file can raise before it is known what it is.
DAMAGE = (KeyError, IndexError, TypeError, UnicodeDecodeError, ValueError, OverflowError)


def file_name(number: int) -> str:
    """Name of the file of that number."""
    return f"{number:05d}{SUFFIX}"


@dataclass(frozen=True)
class Example:
    """Traces of one example as they are stored.

    Attributes:
        key: 16 bytes.
        columns: ``(k,)``.
        column_mass: ``(k,)``.
        mask: ``(T,)``.
        log_probs: of the valid positions, ``(R, k)``.
        log_normalizers: ``(R, n)``.
        error: what storing changed.
    """

    key: bytes
    columns: NDArray[np.int32]
    column_mass: NDArray[Any]
    mask: NDArray[np.bool_]
    log_probs: NDArray[Any]
    log_normalizers: NDArray[Any]
    error: StorageError


def write_shard(path: Path, manifest: Manifest, examples: list[Example], error: StorageError) -> None:
    """Write a file whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(b"".join(each.key for each in examples), np.uint8).reshape(-1, KEY_BYTES),
        "lengths": np.array([len(each.mask) for each in examples], np.int32),
        "counts": np.array([len(each.log_probs) for each in examples], np.int32),
        "columns": np.stack([each.columns for each in examples]),
        "column_mass": np.stack([each.column_mass for each in examples]),
        "masks": np.concatenate([np.packbits(each.mask) for each in examples]),
        "log_probs": np.concatenate([each.log_probs for each in examples]),
        "log_normalizers": np.concatenate([each.log_normalizers for each in examples]),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {"format": FORMAT, "manifest": manifest.digest, "error": error.as_dict()}
    header["checksum"] = checksum(header, arrays)
    # One entry of metadata: safetensors writes several in any order, and equal shards shall be equal files.
    content = safetensors_numpy("folder").save(arrays, metadata={"mlot": json.dumps(header)})
    write_atomically(path, content)


def checksum(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Digest of all arrays of a file, and of the rest of its header."""
    digest = blake2b(digest_size=16)
    rest = {name: value for name, value in header.items() if name != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    for name in ARRAYS:
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()


class Shard:
    """A file as its header describes it; nothing else is read before it is asked for.

    Args:
        path: the file.
        manifest: of the folder.

    Raises:
        ValueError: it is damaged, cut, or not of this saved teacher.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        if not path.is_file():  # opening a pipe would wait for somebody to write
            raise damaged(path, "it is no file")
        self.size = path.stat().st_size
        try:
            with path.open("rb") as file:
                self._layout: Layout = read_layout(file, self.size)
            self._check(manifest)
            self.error = StorageError(**self._layout.metadata["error"])
        except DAMAGE as error:
            raise damaged(path, error) from error
        self.examples: int = self._layout.arrays["lengths"][1][0]
        self.positions: int = self._layout.arrays["log_probs"][1][0]

    def _check(self, manifest: Manifest) -> None:
        header, arrays = self._layout.metadata, self._layout.arrays
        if header["format"] != FORMAT:
            raise ValueError(f"format: expected {FORMAT!r}, got {header['format']!r}")
        if header["manifest"] != manifest.digest:
            raise ValueError("it belongs to another saved teacher")
        if set(arrays) != set(ARRAYS):
            raise ValueError(f"arrays: expected {', '.join(ARRAYS)}, got {', '.join(arrays)}")
        n, rows = arrays["lengths"][1][0], arrays["log_probs"][1][0]
        wide = "F64" if manifest.dtype == "float64" else "F32"
        expected = {
            "keys": ("U8", (n, KEY_BYTES)),
            "lengths": ("I32", (n,)),
            "counts": ("I32", (n,)),
            "columns": ("I32", (n, manifest.k)),
            "column_mass": (wide, (n, manifest.k)),
            "masks": ("U8", arrays["masks"][1][:1]),
            "log_probs": (_NAMES[manifest.dtype], (rows, manifest.k)),
            "log_normalizers": (wide, (rows, len(manifest.extra_temperatures))),
        }
        for name, wanted in expected.items():
            if arrays[name][:2] != wanted:
                raise ValueError(f"{name}: expected {wanted}, got {arrays[name][:2]}")

    def open(self) -> dict[str, NDArray[Any]]:
        """Map the arrays into memory."""
        raw = np.asarray(np.memmap(self.path, np.uint8, "r"))
        if len(raw) != self.size:
            raise damaged(self.path, f"expected {self.size} bytes, as when it was opened, got {len(raw)}")
        arrays = {}
        for name, (type_name, shape, start) in self._layout.arrays.items():
            dtype = np.dtype(_TYPES[type_name])
            arrays[name] = (
                raw[start : start + dtype.itemsize * int(np.prod(shape))].view(dtype).reshape(shape)
            )
        return arrays

    def verify(self, manifest: Manifest) -> None:
        """Read all of the file and check it.

        Raises:
            ValueError: something in it is not as it was written.
        """
        arrays = self.open()
        header = self._layout.metadata
        if checksum(header, arrays) != header.get("checksum"):
            raise damaged(self.path, "its checksum is not that of its content")
        rows = Rows(self.path, arrays)
        for n in range(self.examples):
            rows.mask(n)
        columns = arrays["columns"]
        if columns.size and not 0 <= columns.min() <= columns.max() < manifest.vocab_size:
            raise damaged(
                self.path,
                f"columns: expected 0 to {manifest.vocab_size - 1}, got {columns.min()} to {columns.max()}",
            )


class Rows:
    """Where the rows of each example lie in a file that is mapped into memory."""

    def __init__(self, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self._path, self.arrays = path, arrays
        self.lengths = arrays["lengths"].astype(np.int64)
        counts = arrays["counts"].astype(np.int64)
        packed = (self.lengths + 7) // 8
        self._rows = np.concatenate([[0], counts.cumsum()])
        self._masks = np.concatenate([[0], packed.cumsum()])
        possible = ((counts >= 0) & (counts <= self.lengths)).all()
        if (
            not possible
            or self._rows[-1] != len(arrays["log_probs"])
            or self._masks[-1] != len(arrays["masks"])
        ):
            raise damaged(path, "the sizes of its examples do not add up to what it holds")

    def mask(self, n: int) -> NDArray[np.bool_]:
        """Mask ``(T,)`` of an example."""
        bits = self.arrays["masks"][self._masks[n] : self._masks[n + 1]]
        mask = np.unpackbits(bits, count=int(self.lengths[n])).view(bool)
        if mask.sum() != self._rows[n + 1] - self._rows[n]:
            raise damaged(self._path, f"example {n} has rows for another number of positions than its mask")
        return mask

    def rows(self, n: int) -> slice:
        """Rows of an example."""
        return slice(int(self._rows[n]), int(self._rows[n + 1]))


def damaged(path: Path, reason: object) -> ValueError:
    """The error for a file that cannot be used."""
    detail = repr(reason) if isinstance(reason, KeyError) else str(reason)
    return ValueError(
        f"folder: {str(path)!r} is damaged or no part of this saved teacher: {detail}; "
        "without that file the rest can be used, and saving again makes up for it"
    )
