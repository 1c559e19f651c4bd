"""One file of a saved teacher: what is kept of some examples, the rows of all of them one after the other."""

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

#: Most positions of an example, far more than any model reads: a bit of the file stands for each, and memory
#: is taken for all that is kept of each.
MOST_POSITIONS = 2**24

#: Keys that are compared with each other before memory is taken for what is kept of their examples.
_KEYS_AT_ONCE = 4096

#: What reading a damaged or foreign file can raise before it is known what it is.
DAMAGE = (KeyError, IndexError, TypeError, UnicodeDecodeError, ValueError, OverflowError)


def file_name(number: int) -> str:
    """Name of the file of that number."""
    return f"{number:05d}{SUFFIX}"


@dataclass(frozen=True)
class Example:
    """What is kept of one example, as it is stored.

    Attributes:
        key: 16 bytes.
        mask: ``(T,)``.
        arrays: those of the manifest's ``example_arrays``, and of its ``position_arrays``, ``(R, ...)``, for
            the valid positions.
        error: what storing changed.
    """

    key: bytes
    mask: NDArray[np.bool_]
    arrays: dict[str, NDArray[Any]]
    error: StorageError


def array_names(manifest: Manifest) -> tuple[str, ...]:
    """Arrays of a file, in the order in which its checksum takes them.

    Masks are packed, eight positions a byte, each example's from a byte of its own; ``counts`` are the valid
    positions, which alone have rows.
    """
    return ("keys", "lengths", "counts", *manifest.example_arrays, "masks", *manifest.position_arrays)


def write_shard(path: Path, manifest: Manifest, examples: list[Example], error: StorageError) -> None:
    """Write a file whole or not at all."""
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.frombuffer(b"".join(each.key for each in examples), np.uint8).reshape(-1, KEY_BYTES),
        "lengths": np.array([len(each.mask) for each in examples], np.int32),
        "counts": np.array([each.mask.sum() for each in examples], np.int32),
        "masks": np.concatenate([np.packbits(each.mask) for each in examples]),
    }
    for name in manifest.example_arrays:
        arrays[name] = np.stack([each.arrays[name] for each in examples])
    for name in manifest.position_arrays:
        arrays[name] = np.concatenate([each.arrays[name] for each in examples])
    arrays = {name: np.ascontiguousarray(arrays[name]) for name in array_names(manifest)}
    header = {"format": FORMAT, "manifest": manifest.digest, "error": error.as_dict()}
    header["checksum"] = checksum(header, arrays)
    # One entry of metadata: safetensors writes several in any order, and equal shards shall be equal files.
    content = safetensors_numpy("folder").save(arrays, metadata={"mlot": json.dumps(header)})
    write_atomically(path, content)


def checksum(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Digest of the arrays of a file, in the order given, and of the rest of its header."""
    digest = blake2b(digest_size=16)
    rest = {name: value for name, value in header.items() if name != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
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
        names = array_names(manifest)
        if set(arrays) != set(names):
            raise ValueError(f"arrays: expected {', '.join(names)}, got {', '.join(arrays)}")
        n, rows = arrays["lengths"][1][0], arrays["log_probs"][1][0]
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            "keys": ("U8", (n, KEY_BYTES)),
            "lengths": ("I32", (n,)),
            "counts": ("I32", (n,)),
            "masks": ("U8", arrays["masks"][1][:1]),
        }
        for count, stored in ((n, manifest.example_arrays), (rows, manifest.position_arrays)):
            for name, (dtype, shape) in stored.items():
                expected[name] = (f"{dtype.kind.upper()}{8 * dtype.itemsize}", (count, *shape))
        for name, wanted in expected.items():
            if arrays[name][:2] != wanted:
                raise ValueError(f"{name}: expected {wanted}, got {arrays[name][:2]}")

    def open(self) -> dict[str, NDArray[Any]]:
        """Map the arrays into memory."""
        try:
            return self._layout.mapped(self.path, self.size)
        except ValueError as error:
            raise damaged(self.path, error) from error

    def verify(self, manifest: Manifest) -> None:
        """Read all of the file and check it.

        Raises:
            ValueError: something in it is not as it was written.
        """
        arrays = self.open()
        header = self._layout.metadata
        rows = Rows(self.path, arrays)
        for n in range(self.examples):
            rows.mask(n)
        ordered = {name: arrays[name] for name in array_names(manifest)}
        if checksum(header, ordered) != header.get("checksum"):
            raise damaged(self.path, "its checksum is not that of its content")
        name = "columns" if manifest.keep == "traces" else "ids"
        # Where fewer tokens are listed than there is room for, the number after the last id stands there.
        ids, largest = arrays[name], manifest.vocab_size - (name == "columns")
        if ids.size and not 0 <= ids.min() <= ids.max() <= largest:
            raise damaged(self.path, f"{name}: expected 0 to {largest}, got {ids.min()} to {ids.max()}")


class Rows:
    """Where the rows of each example lie in a file that is mapped into memory.

    A file may promise more than it holds: what was never written reads as zeros, and takes no room. So memory
    is taken for nothing of which there can be more in zeros than in what was written: keys differ, every row
    has a bit of a mask that is set, and examples have an end.
    """

    def __init__(self, path: Path, arrays: dict[str, NDArray[Any]]) -> None:
        self._path, self.arrays = path, arrays
        _require_distinct_keys(path, arrays["keys"])
        self.lengths = arrays["lengths"].astype(np.int64)
        counts = arrays["counts"].astype(np.int64)
        packed = (self.lengths + 7) // 8
        self._rows = np.concatenate([[0], counts.cumsum()])
        self._masks = np.concatenate([[0], packed.cumsum()])
        possible = ((counts >= 0) & (counts <= self.lengths) & (self.lengths <= MOST_POSITIONS)).all()
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

    def ids(self, where: slice, vocab_size: int) -> NDArray[np.int64]:
        """Tokens of some rows, -1 for none."""
        read = self.arrays["ids"][where].astype(np.int64)
        if read.size and read.max() > vocab_size:
            raise damaged(self._path, f"ids: expected 0 to {vocab_size}, got {read.max()}")
        return np.where(read == vocab_size, -1, read)


def _require_distinct_keys(path: Path, keys: NDArray[np.uint8]) -> None:
    """Refuse a file that holds an example twice, as far as neighbours tell."""
    for start in range(0, len(keys), _KEYS_AT_ONCE):
        some = np.ascontiguousarray(keys[start : start + _KEYS_AT_ONCE]).view(f"S{KEY_BYTES}")
        if len(np.unique(some)) < len(some):
            raise damaged(path, "it holds an example a second time")


def damaged(path: Path, reason: object) -> ValueError:
    """The error for a file that cannot be used."""
    detail = repr(reason) if isinstance(reason, KeyError) else str(reason)
    return ValueError(
        f"folder: {str(path)!r} is damaged or no part of this saved teacher: {detail}; "
        "without that file the rest can be used, and saving again makes up for it"
    )
