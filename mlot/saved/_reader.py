"""Reading a saved teacher."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _checks
from mlot._storage import DTYPES
from mlot._typing import Array
from mlot.saved._error import StorageError, merged
from mlot.saved._keys import KEY_BYTES, is_key, packed, unpacked
from mlot.saved._manifest import Manifest, read_manifest
from mlot.saved._shard import SUFFIX, Rows, Shard, damaged
from mlot.text import TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces


class SavedTeacher:
    r"""What is kept of a teacher on a whole data set, read from disk as it is asked for, by NumPy alone.

    What a loss computes from traces equals, to the last bit, what it computes from `mlot.select` of the
    teacher's logits with ``log_probs`` cast to the stored type (and ``log_normalizers`` to float32, unless
    all is stored in float64). On disk they take, for an example of
    :math:`T` positions of which :math:`R` are valid, :math:`n` further temperatures and log-probabilities of
    :math:`b` bytes,

    .. math:: R\,(b k + 4 n) + 8 k + 24 + \lceil T / 8 \rceil

    bytes (with ``dtype="float64"`` normalisers and masses take 8 each in place of 4; see
    `Manifest.bytes_per_position` and `Manifest.bytes_per_example`), and less than 2 kB for each file. With
    the paper's 50 columns and one further temperature in float16 that is 104 bytes a position and 424 an
    example: at most 220 a token for examples of four tokens or more, 108 for examples of 128.

    The likeliest tokens, and targets, equal the model's but for the storage type of their log-probabilities,
    too. With ids of :math:`c` bytes (1 for less than 256 tokens, 2 for less than 65,536, else 4) they take

    .. math:: R\,(b + c)\,k + 24 + \lceil T / 8 \rceil

    bytes, and targets :math:`8 R` more, for their rests and served masses. With 256 tokens in float16 that is
    1,024 (1,032) bytes a position, and 1,536 (1,544) for larger vocabularies.

    A writer may be adding to the folder: what was complete on opening is what is read. Objects may be pickled
    and used in the workers of a ``DataLoader``; each process maps the files it needs.

    Args:
        folder: as `TeacherWriter` or `save_teacher` left it, or leaves it at this moment.
        expect: what the teacher must be: a `Manifest`, or some of its fields by name.

    Raises:
        FileNotFoundError: there is no saved teacher.
        TypeError, ValueError: it is not what is expected (the message says what differs), or a file is
            damaged, cut, or not of this saved teacher (the message names it). Sizes and headers are
            checked here, all content by `verify`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], expect: Manifest | Mapping[str, Any] | None = None
    ) -> None:
        self.folder = _checks.path("folder", folder).absolute()
        self.manifest = read_manifest(self.folder)
        if expect is not None:
            self.manifest.require(expect, self.folder)
        paths = sorted(path for path in self.folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
        self._shards = [Shard(path, self.manifest) for path in paths]
        self._reset()

    def _reset(self) -> None:
        """Set up what is read on demand."""
        self._starts = np.cumsum([0, *(shard.examples for shard in self._shards)])
        self._open: dict[int, Rows] = {}
        self._keys: NDArray[np.bytes_] | None = None
        self._order: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest, "_shards": self._shards}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    # -- what there is -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys, in the order of the indices."""
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return is_key(key) and not self.missing([str(key)])

    def __repr__(self) -> str:
        return (
            f"SavedTeacher({str(self.folder)!r}: {len(self)} examples, {self.positions} positions, "
            f"k={self.manifest.k}, {self.manifest.dtype}, {self.manifest.model})"
        )

    @property
    def keys(self) -> list[str]:
        """Key of each example, in the order of the indices."""
        return unpacked(np.frombuffer(self._packed_keys().tobytes(), np.uint8))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each example, valid or not, ``(N,)``."""
        parts = [self._rows(n).lengths for n in range(len(self._shards))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    @property
    def positions(self) -> int:
        """Number of valid positions in all."""
        return sum(shard.positions for shard in self._shards)

    @property
    def nbytes(self) -> int:
        """Size of the files, the manifest left out."""
        return sum(shard.size for shard in self._shards)

    @property
    def bytes_per_token(self) -> float:
        """Size of the files over the number of valid positions; not a number if there are none."""
        return self.nbytes / self.positions if self.positions else float("nan")

    @property
    def storage_error(self) -> StorageError:
        """What the storage type may change in the loss, as it was measured on all examples."""
        return merged((shard.error for shard in self._shards), self.manifest.dtype, self.manifest.k)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of some keys that are not saved, each once, in their order.

        Raises:
            TypeError, ValueError: something is no key.
        """
        keys = list(dict.fromkeys(keys)) if not isinstance(keys, str) else keys
        rows = self._find(packed("keys", keys))
        return [key for key, row in zip(keys, rows, strict=True) if row < 0]

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises:
            ValueError: one is damaged; the message names it.
        """
        for shard in self._shards:
            shard.verify(self.manifest)
        if len(np.unique(self._packed_keys())) < len(self):
            raise ValueError(
                f"folder: expected each example once in {str(self.folder)!r}, some are there twice"
            )

    # -- reading -----------------------------------------------------------------------------------------

    def batch(
        self,
        examples: Sequence[str] | Sequence[int] | Array,
        *,
        length: int | None = None,
        backend: str = "numpy",
        device: Any = None,
    ) -> Traces | TopKLogprobs | TextTargets:
        """Read what is kept of some examples, padded on the right.

        Args:
            examples: keys (see `example_key`) or indices, in any order; repetitions are fine.
            length: positions to pad to; ``None`` means those of the longest.
            backend: name of the backend whose arrays are wanted, such as ``"numpy"`` or ``"torch"``.
            device: device for the arrays, where the backend has such.

        Returns:
            `mlot.Traces` ``(B, T, k)``, log-probabilities in the stored type; or, as ``manifest.keep`` says,
            `mlot.TopKLogprobs` or `mlot.TextTargets` of ``k`` tokens a position, in the stored type or
            float32, whichever is wider.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind or range, an example is not saved, or a
                file is damaged.
        """
        from mlot.backends import get_backend

        xp = get_backend(backend)
        _checks.count("length", length, allow_none=True, least=0)
        positions = self._rows_of(examples)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        located = [
            (self._rows(int(s)), int(n - self._starts[s])) for s, n in zip(shards, positions, strict=True)
        ]
        longest = max((int(rows.lengths[n]) for rows, n in located), default=0)
        if length is not None and length < longest:
            raise ValueError(f"length: expected at least {longest}, as the longest example, got {length}")
        read = self._traces if self.manifest.keep == "traces" else self._listed
        padded: Any = read(located, longest if length is None else length)
        made: Traces | TopKLogprobs | TextTargets = padded.map(lambda array: xp.from_numpy(array, device))
        return made

    def _traces(self, located: list[tuple[Rows, int]], length: int) -> Traces:
        k, count = self.manifest.k, len(located)
        wide = np.float64 if self.manifest.dtype == "float64" else np.float32
        columns = np.empty((count, k), np.int64)
        log_probs = np.full((count, length, k), -np.inf, DTYPES[self.manifest.dtype])
        normalizers = np.zeros((count, length, len(self.manifest.extra_temperatures)), wide)
        mass = np.empty((count, k), wide)
        mask = np.zeros((count, length), bool)
        for b, (rows, n) in enumerate(located):
            valid, where = rows.mask(n), rows.rows(n)
            mask[b, : len(valid)] = valid
            columns[b] = rows.arrays["columns"][n]
            mass[b] = rows.arrays["column_mass"][n]
            log_probs[b, mask[b]] = rows.arrays["log_probs"][where]
            normalizers[b, mask[b]] = rows.arrays["log_normalizers"][where]
        return Traces(
            columns,
            log_probs,
            normalizers,
            mass,
            mask,
            self.manifest.vocab_size,
            self.manifest.temperature,
            self.manifest.extra_temperatures,
            self.manifest.standardize,
        )

    def _listed(self, located: list[tuple[Rows, int]], length: int) -> TopKLogprobs | TextTargets:
        k, vocab_size, temperature = self.manifest.k, self.manifest.vocab_size, self.manifest.temperature
        wide = np.float64 if self.manifest.dtype == "float64" else np.float32
        shape = (len(located), length)
        ids = np.full((*shape, k), -1)
        log_probs = np.full((*shape, k), -np.inf, wide)
        sums = {name: np.zeros(shape, wide) for name in ("rest", "served")}
        for b, (rows, n) in enumerate(located):
            valid, where = np.flatnonzero(rows.mask(n)), rows.rows(n)
            ids[b, valid] = rows.ids(where, vocab_size)
            log_probs[b, valid] = rows.arrays["log_probs"][where]
            if self.manifest.keep == "targets":
                for name, array in sums.items():
                    array[b, valid] = rows.arrays[name][where]
        if self.manifest.keep == "targets":
            return TextTargets(ids, log_probs, **sums, vocab_size=vocab_size, temperature=temperature)
        return TopKLogprobs.trusted(ids, log_probs, vocab_size=vocab_size, temperature=temperature)

    # -- finding -----------------------------------------------------------------------------------------

    def _rows(self, number: int) -> Rows:
        """A file, mapped into memory by the process that asks first."""
        if number not in self._open:
            shard = self._shards[number]
            self._open[number] = Rows(shard.path, shard.open())
        return self._open[number]

    def _packed_keys(self) -> NDArray[np.bytes_]:
        if self._keys is None:
            parts = [self._rows(n).arrays["keys"].tobytes() for n in range(len(self._shards))]
            self._keys = np.array(np.frombuffer(b"".join(parts), f"S{KEY_BYTES}"))
        return self._keys

    def _find(self, wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Index of each key, -1 where there is none."""
        keys = self._packed_keys()
        if len(keys) == 0:
            return np.full(len(wanted), -1)
        if self._order is None:
            self._order = np.argsort(keys, kind="stable")
        position = np.searchsorted(keys, wanted, sorter=self._order)
        candidates = self._order[np.minimum(position, len(keys) - 1)]
        return np.where(keys[candidates] == wanted, candidates, -1)

    def _rows_of(self, examples: Any) -> NDArray[np.int64]:
        """Index of each example asked for."""
        if isinstance(examples, str) or not (
            hasattr(examples, "__len__") and hasattr(examples, "__getitem__")
        ):
            raise TypeError(
                f"examples: expected a sequence of keys or indices, got {type(examples).__name__}"
            )
        if len(examples) and isinstance(examples[0], str):
            keys = list(examples)
            rows = self._find(packed("examples", keys))
            if (rows < 0).any():
                lacking = [key for key, row in zip(keys, rows, strict=True) if row < 0]
                raise ValueError(
                    f"examples: expected saved ones, but {len(lacking)} of {len(keys)} keys are not in "
                    f"{str(self.folder)!r}, the first is {lacking[0]!r}"
                )
            return rows
        indices = np.asarray(examples)
        if indices.ndim != 1:
            raise ValueError(f"examples: expected a sequence of keys or indices, got shape {indices.shape}")
        if indices.size == 0:
            return np.zeros(0, np.int64)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"examples: expected keys or integers, got {indices.dtype}")
        if not 0 <= indices.min() <= indices.max() < len(self):
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise ValueError(f"examples: expected indices >= 0 and < {len(self)}, got {wrong}")
        return indices.astype(np.int64)


def verify_folder(folder: str | os.PathLike[str]) -> dict[str, str | None]:
    """Check every file of a saved teacher, also when some are damaged.

    Args:
        folder: of the saved teacher.

    Returns:
        What is wrong with each file of traces, by its name; ``None`` where nothing is. A key in two files is
        wrong in the later one.

    Raises:
        FileNotFoundError, ValueError: there is no manifest, or it is damaged.
    """
    folder = _checks.path("folder", folder)
    manifest = read_manifest(folder)
    problems: dict[str, str | None] = {}
    seen: set[bytes] = set()
    for path in sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")):
        try:
            shard = Shard(path, manifest)
            shard.verify(manifest)
            keys = [row.tobytes() for row in shard.open()["keys"]]
            if len(set(keys)) < len(keys) or not seen.isdisjoint(keys):
                raise damaged(path, "it holds an example a second time")
            seen.update(keys)
            problems[path.name] = None
        except ValueError as error:
            problems[path.name] = str(error)
    return problems
