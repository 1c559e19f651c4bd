"""Writing a saved teacher: shard by shard, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mlot import _checks
from mlot._storage import PARTIAL, safetensors_numpy, write_atomically
from mlot._typing import Array
from mlot.saved._error import merged
from mlot.saved._keys import is_key
from mlot.saved._manifest import MANIFEST, Manifest, read_manifest
from mlot.saved._pack import packed_examples
from mlot.saved._reader import SavedTeacher
from mlot.saved._shard import SUFFIX, Example, file_name, write_shard
from mlot.text import TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

LOCK = ".lock"


class FolderLockedError(RuntimeError):
    """Another writer has the folder open. A process that ended, however it did, has no folder open."""


class TeacherWriter:
    """Adds examples to a saved teacher; new, or one that was begun earlier.

    Examples gather in memory until there are enough for a file, which is then written under another name,
    made durable, and renamed: whatever ends the process, files that have their name are whole, and what is
    lost is the examples of one file. To resume, open the folder again with the same manifest and add what is
    `missing`; added in the same order, the files come out byte for byte as without the interruption.

    Use it as a context manager, or call `close`. When the block ends by an exception, complete files stay,
    and the examples gathered for the next are dropped, as by an interruption.

    Args:
        folder: new, empty, or of a saved teacher with this manifest.
        manifest: what is saved.
        examples_per_shard: examples in a file, of which the last may have fewer.

    Raises:
        ImportError: safetensors or filelock is not installed.
        TypeError, ValueError: an argument is of the wrong kind, the folder has other files, or the teacher in
            it is another one (the message says what differs), or is damaged. Nothing was touched.
        FolderLockedError: another writer, in any process, has the folder open.

    >>> import numpy as np, mlot, tempfile
    >>> from mlot.saved import Manifest, SavedTeacher, TeacherWriter, example_key
    >>> ids = np.array([[5, 6, 7, 8]])  # one example, and a teacher's logits for it
    >>> traces = mlot.select(np.random.default_rng(0).normal(size=(1, 4, 100)), k=50)
    >>> folder = tempfile.TemporaryDirectory()
    >>> with TeacherWriter(folder.name, Manifest("teacher", "0f", "a1", vocab_size=100, k=50)) as writer:
    ...     writer.add([example_key(ids[0])], traces)
    >>> SavedTeacher(folder.name).batch([example_key(ids[0])])
    Traces(B=1, T=4, k=50, V=100, temperature=1.0, extra_temperatures=(2.0,), standardize=False)
    >>> folder.cleanup()
    """

    def __init__(
        self, folder: str | os.PathLike[str], manifest: Manifest, *, examples_per_shard: int = 1024
    ) -> None:
        if not isinstance(manifest, Manifest):
            raise TypeError(f"manifest: expected a Manifest, got {type(manifest).__name__}")
        _checks.count("examples_per_shard", examples_per_shard)
        self.folder, self.manifest = _checks.path("folder", folder).absolute(), manifest
        safetensors_numpy("folder")
        _filelock()
        self._capacity = examples_per_shard
        self._gathered: list[Example] = []
        self._pending: set[bytes] = set()
        self._written: set[bytes] = set()
        self.closed = True
        _check_folder(self.folder, manifest)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        try:
            _check_folder(self.folder, manifest)  # again: now nobody else can change it
            for leftover in self.folder.glob(f".*{PARTIAL}"):
                leftover.unlink()
            if not (self.folder / MANIFEST).exists():
                write_atomically(self.folder / MANIFEST, manifest.to_json().encode())
            self._saved = SavedTeacher(self.folder)
        except BaseException:
            self._lock.release()
            raise
        self.closed = False

    def __enter__(self) -> TeacherWriter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is not None:
            self._drop()
        self.close()

    def __len__(self) -> int:
        """Examples saved so far, those gathered for the next file included."""
        return len(self._saved) + len(self._written) + len(self._gathered)

    def __contains__(self, key: object) -> bool:
        return is_key(key) and not self.missing([str(key)])

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of some keys that were not added, now or earlier, each once, in their order."""
        wanted = map(bytes.fromhex, self._saved.missing(keys))
        return [key.hex() for key in wanted if key not in self._pending and key not in self._written]

    def add(
        self,
        keys: Sequence[str],
        traces: Traces | TopKLogprobs | TextTargets,
        attention_mask: Array | Sequence[Sequence[bool]] | None = None,
    ) -> None:
        """Add a batch of examples; those whose key is there already are left out.

        Args:
            keys: ``B`` keys, as `example_key` makes them; of targets, from the tokens of both models.
            traces: of the examples, ``(B, T, k)``, as the manifest describes them: `mlot.Traces`,
                `mlot.TopKLogprobs` for ``keep="likeliest"``, or `mlot.TextTargets` for ``keep="targets"``.
            attention_mask: positions that hold tokens of the example rather than padding, ``(B, T)``
                booleans or integers, of targets the student's; ``None`` means all. Padding is not stored, on
                whichever side it is.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or shape, the traces are not as the
                manifest says, or hold no numbers. Nothing was added.
            OSError: a file could not be written; its examples remain gathered.
        """
        if self.closed:
            raise ValueError("writer: expected one that is open, this one was closed")
        self._append(packed_examples(self.manifest, keys, traces, attention_mask))

    def _append(self, examples: Sequence[Example]) -> None:
        """Gather examples that are not there yet, and write files that are full."""
        for each in examples:
            if not self._has(each.key):
                self._gathered.append(each)
                self._pending.add(each.key)
        while len(self._gathered) >= self._capacity:
            self._write(self._capacity)

    def close(self) -> None:
        """Write what is gathered, and let others write; does nothing the second time."""
        if self.closed:
            return
        try:
            if self._gathered:
                self._write(len(self._gathered))
        finally:
            self.closed = True
            self._lock.release()

    def _has(self, key: bytes) -> bool:
        return key in self._pending or key in self._written or key.hex() in self._saved

    def _write(self, count: int) -> None:
        """Write the first examples gathered under the lowest number that is free."""
        examples = self._gathered[:count]
        taken = {path.name for path in self.folder.glob(f"*{SUFFIX}")}
        number = next(n for n in range(len(taken) + 1) if file_name(n) not in taken)
        error = merged((each.error for each in examples), self.manifest.dtype, self.manifest.k)
        write_shard(self.folder / file_name(number), self.manifest, examples, error)
        del self._gathered[:count]
        keys = {each.key for each in examples}
        self._written |= keys
        self._pending -= keys

    def _drop(self) -> None:
        self._gathered.clear()
        self._pending.clear()


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder in which this teacher cannot be saved."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder: expected a folder, but {str(folder)!r} is a file")
    if (folder / MANIFEST).exists():
        read_manifest(folder).require(manifest, folder)
        return
    foreign = sorted(
        path.name for path in folder.iterdir() if path.name != LOCK and not path.name.endswith(PARTIAL)
    )
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            "folder: expected a folder that is new, empty or of a saved teacher, "
            f"but {str(folder)!r} holds {', '.join(foreign[:3])}{more}"
        )


def _filelock() -> Any:
    try:
        import filelock
    except ImportError as error:
        raise ImportError(
            'folder: writing needs filelock, which is not installed; pip install "mlot[io]"'
        ) from error
    return filelock


def _locked(folder: Path) -> Any:
    """Take the lock of a folder, which ends with the process that holds it."""
    locks = _filelock()
    lock = locks.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except locks.Timeout as error:
        raise FolderLockedError(f"folder: another writer has {str(folder)!r} open") from error
    return lock
