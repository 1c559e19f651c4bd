"""Small saved teachers for the tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import mlot
from mlot.saved import Manifest, SavedTeacher, TeacherWriter, example_key

FIELDS = ("columns", "log_probs", "log_normalizers", "column_mass", "mask")
WIDE = {"float16": "float32", "float32": "float32", "float64": "float64"}


def manifest(**changes: object) -> Manifest:
    made = Manifest("teacher", "0f", "a1", vocab_size=40, k=6)
    return replace(made, **changes)


@dataclass(frozen=True)
class Case:
    """One example: ids, mask, and a teacher's logits for it."""

    ids: np.ndarray
    mask: np.ndarray
    logits: np.ndarray

    @property
    def key(self) -> str:
        return example_key(self.ids, self.mask)


def cases(count: int, seed: int = 0, longest: int = 9, vocabulary: int = 40) -> list[Case]:
    """Examples of ragged lengths with interior gaps; some are empty, some have no valid position."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        length = 0 if n == 3 else int(rng.integers(1, longest + 1))
        mask = rng.random(length) < (0 if n == 4 else 0.75)
        ids = rng.integers(0, vocabulary, length)
        made.append(Case(ids, mask, 3 * rng.normal(size=(length, vocabulary))))
    return made


def together(
    examples: list[Case], *, left: bool = False, length: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, mask and attention mask of a padded batch; padding holds numbers that must not matter."""
    length = max(len(each.ids) for each in examples) if length is None else length
    rng = np.random.default_rng(99)
    logits = rng.normal(size=(len(examples), length, examples[0].logits.shape[1]))
    mask = np.zeros((len(examples), length), bool)
    present = np.zeros((len(examples), length), bool)
    for n, each in enumerate(examples):
        start = length - len(each.ids) if left else 0
        where = slice(start, start + len(each.ids))
        logits[n, where], mask[n, where], present[n, where] = each.logits, each.mask, True
    return logits, mask, present


def select(logits: object, mask: object, made: Manifest) -> mlot.Traces:
    return mlot.select(
        logits,
        mask,
        k=made.k,
        temperature=made.temperature,
        extra_temperatures=made.extra_temperatures,
        standardize=made.standardize,
    )


def save(
    examples: list[Case], folder: Path, made: Manifest | None = None, per_shard: int = 3, batch: int = 4
) -> SavedTeacher:
    made = manifest() if made is None else made
    with TeacherWriter(folder, made, examples_per_shard=per_shard) as writer:
        for start in range(0, len(examples), batch):
            some = examples[start : start + batch]
            logits, mask, present = together(some, left=start % (2 * batch) == 0)
            writer.add([each.key for each in some], select(logits, mask, made), present)
    return SavedTeacher(folder, expect=made)


def in_dtype(traces: mlot.Traces, dtype: str) -> mlot.Traces:
    """Traces with what is stored in another type cast to it."""

    def cast(array: object, to: str) -> object:
        if hasattr(array, "astype"):
            return array.astype(to)
        import torch

        return array.to(getattr(torch, to))

    return replace(
        traces,
        log_probs=cast(traces.log_probs, dtype),
        log_normalizers=cast(traces.log_normalizers, WIDE[dtype]),
        column_mass=cast(traces.column_mass, WIDE[dtype]),
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def read_log_probs(saved: SavedTeacher, key: str) -> np.ndarray:
    """For another process, which then needs no test module."""
    return saved.batch([key]).log_probs
