"""VocabularyMap: which student token the bytes of each teacher token begin with."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot import _checks
from mlot._fingerprint import fingerprint
from mlot._typing import Reading
from mlot.align._map_file import read_arrays, write_arrays
from mlot.align._reader import Reader
from mlot.align._readings import Readings, readings
from mlot.align._roles import corresponding
from mlot.align._spelling import Spelling
from mlot.align._strings import Strings, prefix_ranges
from mlot.align._tokens import Booleans, Integers
from mlot.text import TextPlan

_FORMAT = "mlot.vocabulary_map.2"
_SIDES = ("student", "teacher")
_ARRAYS = ("order", "offsets", "longest", "canonical", "segmentation", "roles", "ends")
#: Maps made in this process, by what `_keys` says of their tokenizers; the latest ones are kept.
_MADE: dict[tuple[str, str], VocabularyMap] = {}
_REMEMBERED = 8


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    r"""The map between two vocabularies, by the bytes that their tokens spell.

    Teacher tokens that spell text are sorted by their bytes, so that those that begin with given bytes are a
    contiguous range. An entry ``offsets[n] + d`` stands for the rest :math:`\beta(v)[d:]` of the ``n``-th of
    them after its first ``d`` bytes, :math:`0 \le d < |\beta(v)|`.

    Where several student tokens spell the same bytes, the one with the lowest id stands for all of them;
    several teacher tokens of the same bytes are given to as many of these in order, so that a vocabulary is
    mapped to itself by the identity.

    Attributes:
        order: teacher ids that spell text, sorted by their bytes, ``(N,)``; of several with the same bytes
            the one that the tokenizer makes of them is first.
        offsets: first entry of each of them, and the number of entries, ``(N + 1,)``.
        longest: for each entry the longest student token that the rest begins with; -1: there is none.
        canonical: for each entry the token that follows there in the student's own tokenization of the whole
            teacher token; -1: it has no border there, or cannot be had.
        segmentation: bit ``b``, :math:`1 \le b \le 62`, is set where the student's own tokenization of a
            teacher token has a border after its first ``b`` bytes, ``(N,)``.
        roles: ``[teacher id, student id]`` of special tokens that correspond, ``(S, 2)``.
        student_bytes: bytes of each student id.
        teacher_bytes: bytes of each teacher id.
        fingerprints: what tells the student's and the teacher's tokenizer, where they are known.
        ends: ``[teacher id, student id]`` that hold in place of ``roles`` in texts that end with both: where
            one token of the teacher ends turns and texts, and the student has two, ``(E, 2)``.
    """

    order: Integers
    offsets: Integers
    longest: NDArray[np.int32]
    canonical: NDArray[np.int32]
    segmentation: Integers
    roles: Integers
    student_bytes: Strings
    teacher_bytes: Strings
    fingerprints: tuple[str, str] | None = None
    ends: Integers = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @staticmethod
    def from_tokenizers(
        student_tokenizer: Any, teacher_tokenizer: Any, *, folder: str | os.PathLike[str] | None = None
    ) -> VocabularyMap:
        """Map the vocabularies of two tokenizers.

        Tokens spell their bytes as the tokenizer declares it: byte-level alphabets, marks for spaces, byte
        fallback, continuation marks. Special tokens spell nothing; those that end a turn or a text, and
        others of one role, correspond. Made once in a process for two tokenizers; with a folder, once for
        all.

        Args:
            student_tokenizer: of the transformers or tokenizers library, or any object that has ``get_vocab``
                and ``encode`` besides ``convert_ids_to_tokens``.
            teacher_tokenizer: the same for the teacher.
            folder: where maps are kept; ``None``: in memory alone. A damaged file is made again.

        Returns:
            `VocabularyMap`.

        Raises:
            FileNotFoundError: there is no such folder.
            TypeError: an argument is of the wrong kind.
        """
        readers = [Reader.of(each) for each in (student_tokenizer, teacher_tokenizer)]
        home = None if folder is None else _checks.path("folder", folder)
        if home is not None and not home.is_dir():
            raise FileNotFoundError(f"folder: expected an existing folder, got {str(home)!r}")
        keys = _key(readers[0]), _key(readers[1])
        roles, ends = (np.array(rows, np.int64).reshape(-1, 2) for rows in corresponding(*readers))
        file = None if home is None else home / f"{keys[0]}-{keys[1]}.mlot-map"
        kept = None if file is None else VocabularyMap._kept(file, keys)
        made = _MADE.get(keys) or kept
        if made is None:
            student, teacher = map(Spelling, readers)
            read = readings(
                student.strings,
                teacher.strings,
                student.tokenize,
                student.preference,
                teacher.preference,
                student.spaced,
            )
            made = VocabularyMap._of(read, roles, student.strings, teacher.strings, keys)
        if not (np.array_equal(made.roles, roles) and np.array_equal(made.ends, ends)):
            made = replace(made, roles=roles, ends=ends)
        _remember(keys, made)
        if file is not None and kept is None:
            made.save(file)
        return made

    @staticmethod
    def from_bytes(
        student_bytes: Sequence[bytes | None],
        teacher_bytes: Sequence[bytes | None],
        *,
        tokenize: Callable[[bytes], Sequence[int]] | None = None,
        roles: Any = (),
        ends: Any = (),
    ) -> VocabularyMap:
        """Map two vocabularies given by the bytes of their tokens.

        Args:
            student_bytes: bytes that each student id spells; ``None`` or empty: no text.
            teacher_bytes: the same for the teacher.
            tokenize: the student's own tokenization, from bytes to ids; ``None``: it is not known.
            roles: ``[teacher id, student id]`` of special tokens that correspond.
            ends: the same of those of one role that correspond to another token where both end a text.

        Returns:
            `VocabularyMap`.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: a role names an id that there is not, or an end one without a role.

        >>> student = [b"t", b"th", b"e", b" "]
        >>> vocabulary = VocabularyMap.from_bytes(student, [None, b"the", b" t"])
        >>> vocabulary.order, vocabulary.offsets
        (array([2, 1]), array([0, 2, 5]))
        >>> vocabulary.longest  # of " t", "t"; "the", "he", "e"
        array([ 3,  0,  1, -1,  2], dtype=int32)
        """
        student, teacher = (
            Strings.of(_strings(name, value))
            for name, value in (("student_bytes", student_bytes), ("teacher_bytes", teacher_bytes))
        )
        rows, others = (
            _role_rows(name, value, len(student), len(teacher))
            for name, value in (("roles", roles), ("ends", ends))
        )
        if len(np.unique(rows[:, 0])) < len(rows):
            raise ValueError(f"roles: expected each teacher id once, got {rows[:, 0].tolist()}")
        if not np.isin(others[:, 0], rows[:, 0]).all():
            raise ValueError(f"ends: expected teacher ids of roles, got {others[:, 0].tolist()}")
        each = None if tokenize is None else lambda strings: [tokenize(string) for string in strings]
        return replace(
            VocabularyMap._of(readings(student, teacher, each), rows, student, teacher), ends=others
        )

    @staticmethod
    def _of(
        read: Readings,
        roles: Integers,
        student: Strings,
        teacher: Strings,
        fingerprints: tuple[str, str] | None = None,
    ) -> VocabularyMap:
        return VocabularyMap(
            read.order,
            read.offsets,
            read.longest,
            read.canonical,
            read.segmentation,
            roles,
            student,
            teacher,
            fingerprints,
        )

    def plan(self, reading: Reading = "canonical") -> TextPlan:
        """The plan between both vocabularies, as the loss reads it.

        Args:
            reading: ``"canonical"``: a teacher token is followed by what the student's own tokenization of it
                has, and by the longest token where there is none; ``"longest"``: always by the longest.
        """
        return TextPlan(
            self.order,
            self.offsets,
            self.longest,
            self.canonical,
            self.segmentation,
            np.where(self.whole, self.longest[self.offsets[:-1]], -1),
            self.roles,
            self.student_vocab_size,
            self.teacher_vocab_size,
            reading,
            self.ends,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map to a file, whole or not at all.

        Raises:
            FileNotFoundError: the folder is not there.
            TypeError: ``path`` is no path.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name in ("student_bytes", "teacher_bytes"):
            strings: Strings = getattr(self, name)
            arrays |= {f"{name}_data": strings.data, f"{name}_lengths": strings.lengths}
        write_arrays(_checks.path("path", path), _FORMAT, list(self.fingerprints or ()), arrays)

    @staticmethod
    def load(
        path: str | os.PathLike[str], *, student_tokenizer: Any = None, teacher_tokenizer: Any = None
    ) -> VocabularyMap:
        """Read a map from a file.

        Args:
            path: the file.
            student_tokenizer: what the map must be of; ``None``: this is not checked.
            teacher_tokenizer: the same for the teacher.

        Raises:
            FileNotFoundError: there is no such file.
            TypeError: an argument is of the wrong kind.
            ValueError: the file is damaged, no map, or that of other tokenizers.
        """
        wanted = [
            None if each is None else _key(Reader.of(each)) for each in (student_tokenizer, teacher_tokenizer)
        ]
        return VocabularyMap._read(_checks.path("path", path), wanted)

    @staticmethod
    def _kept(path: Path, keys: Sequence[str]) -> VocabularyMap | None:
        """A map that was saved; ``None`` where none is, or the file is damaged."""
        with suppress(FileNotFoundError, ValueError):
            return VocabularyMap._read(path, keys)
        return None

    @staticmethod
    def _read(path: Path, wanted: Sequence[str | None]) -> VocabularyMap:
        names = [f"{side}_bytes_{part}" for side in _SIDES for part in ("data", "lengths")]
        fingerprints, arrays = read_arrays(path, _FORMAT, [*_ARRAYS, *names])
        for side, key, own in zip(_SIDES, wanted, fingerprints or ("", ""), strict=True):
            if key is not None and key != own:
                raise ValueError(
                    f"{side}_tokenizer: expected that of the map at {str(path)!r}, {own}, got one with {key}"
                )
        strings = [
            Strings(data, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
            for data, lengths in ((arrays[names[0]], arrays[names[1]]), (arrays[names[2]], arrays[names[3]]))
        ]
        kept = {name: arrays[name] for name in _ARRAYS}
        return VocabularyMap(
            **kept,
            student_bytes=strings[0],
            teacher_bytes=strings[1],
            fingerprints=(fingerprints[0], fingerprints[1]) if fingerprints else None,
        )

    @property
    def student_vocab_size(self) -> int:
        """Number of student ids."""
        return len(self.student_bytes)

    @property
    def teacher_vocab_size(self) -> int:
        """Number of teacher ids."""
        return len(self.teacher_bytes)

    def __len__(self) -> int:
        """Number of teacher tokens that spell text."""
        return len(self.order)

    def __repr__(self) -> str:
        return (
            f"VocabularyMap({self.student_vocab_size} student ids, {self.teacher_vocab_size} teacher ids, "
            f"{len(self)} with text)"
        )

    def prefix_ranges(self, prefixes: Sequence[bytes]) -> tuple[Integers, Integers, Integers]:
        """Ranges of the sorted teacher tokens that begin with given bytes.

        Args:
            prefixes: byte strings, ``P`` of them.

        Returns:
            start, low, high, ``(P,)`` each: tokens ``[start, low)`` spell the prefix, ``[low, high)`` begin
            with it and go on.
        """
        rows = [self._range(prefix) for prefix in prefixes]
        start, low, high = np.array(rows, np.int64).reshape(-1, 3).T
        return start, low, high

    def _range(self, prefix: bytes) -> tuple[int, int, int]:
        start, low = bisect_left(self._sorted, prefix), bisect_right(self._sorted, prefix)
        stem = prefix.rstrip(b"\xff")
        after = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
        return start, low, len(self) if after is None else bisect_left(self._sorted, after)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.teacher_bytes[n] for n in self.order.tolist()]

    @cached_property
    def ranges(self) -> NDArray[np.int32]:
        """Start, low, high, as of `prefix_ranges`, of the bytes before each entry, ``(3, offsets[-1])``."""
        return prefix_ranges(Strings.of(self._sorted))

    @cached_property
    def whole(self) -> Booleans:
        """Which of the sorted teacher tokens spell a token of the student, ``(N,)``."""
        first = self.longest[self.offsets[:-1]].astype(np.int64)
        whole: Booleans = self.student_bytes.lengths_of(first) == np.diff(self.offsets)
        return whole

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """Shares of the teacher's tokens with text, 0 where there are none.

        Those that spell a token of the student, that begin with a shorter one, and with none; and those that
        the student's own tokenization is known of.
        """
        if not len(self):
            return 0.0, 0.0, 0.0, 0.0
        first = self.offsets[:-1]
        equal, nothing = self.whole.mean(), (self.longest[first] < 0).mean()
        return (
            float(equal),
            float(1 - equal - nothing),
            float(nothing),
            float((self.canonical[first] >= 0).mean()),
        )

    @cached_property
    def rank(self) -> Integers:
        """Place of each teacher id in ``order``, -1 for ids without text, ``(teacher_vocab_size,)``."""
        rank = np.full(self.teacher_vocab_size, -1, np.int64)
        rank[self.order] = np.arange(len(self))
        return rank


def _key(reader: Reader) -> str:
    """Fingerprint of a tokenizer with the ids that its wrapper takes for special."""
    special = zlib.crc32(repr(sorted(reader.special | reader.unknown)).encode())
    return f"{fingerprint(reader.tokenizer)}{special:08x}"


def _remember(keys: tuple[str, str], made: VocabularyMap) -> None:
    _MADE.pop(keys, None)
    _MADE[keys] = made
    while len(_MADE) > _REMEMBERED:
        _MADE.pop(next(iter(_MADE)))


def _strings(name: str, value: Any) -> list[bytes | None]:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of byte strings, got {type(value).__name__}")
    strings = list(value)
    for n, string in enumerate(strings):
        if string is not None and not isinstance(string, bytes):
            raise TypeError(f"{name}: expected bytes or None, got {type(string).__name__} for id {n}")
    return strings


def _role_rows(field_name: str, value: Any, student_size: int, teacher_size: int) -> Integers:
    rows = np.asarray(value)
    if not rows.size:
        return np.zeros((0, 2), np.int64)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"{field_name}: expected [teacher id, student id] rows, got shape {rows.shape}")
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"{field_name}: expected integers, got {rows.dtype}")
    for side, size in enumerate((teacher_size, student_size)):
        if rows[:, side].min() < 0 or rows[:, side].max() >= size:
            name = ("teacher", "student")[side]
            raise ValueError(
                f"{field_name}: expected {name} ids 0 to {size - 1}, got {rows[:, side].tolist()}"
            )
    return rows.astype(np.int64)
