"""Random problems of awkward shapes, as NumPy arrays: what the backends under test are given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlot.testing import _oracle as oracle
from mlot.testing._oracle import Floats, Integers, Mask, TraceData

#: B, T_s, T_t, V_s, V_t, k: single positions, one column, V < k, V = k, odd vocabularies, T_s != T_t.
SHAPES = (
    (4, 6, 5, 11, 13, 4),
    (1, 1, 1, 5, 3, 8),
    (3, 4, 6, 1, 1, 2),
    (2, 1, 5, 7, 19, 3),
    (3, 8, 8, 33, 6, 6),
    (2, 3, 9, 2, 23, 2),
    (1, 12, 10, 37, 29, 9),
    (3, 7, 2, 13, 1, 3),
)
#: Masks of the sequences of the first problem, student and teacher: every pattern, empty ones included.
FIRST_MASKS = (("gaps", "none", "left", "all"), ("right", "gaps", "none", "left"))
PATTERNS = ("all", "gaps", "left", "right", "one", "none")
TEMPERATURES = ((1.0, (2.0,)), (0.7, (1.4, 3.0)), (2.0, (0.7,)), (1.0, (0.5, 2.0)), (1.3, ()))
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)


@dataclass(frozen=True, eq=False)
class Model:
    """What one model predicted: dense logits ``(B, T, V)``, or hidden states, weight and perhaps a bias."""

    arrays: tuple[Floats, ...]
    mask: Mask
    softcap: float | None = None
    scale: float | None = None

    @property
    def is_head(self) -> bool:
        """Whether the logits are the product of hidden states and a head."""
        return len(self.arrays) > 1

    def logits(self, *arrays: Floats) -> Floats:
        """Logits ``(B, T, V)``, of other arrays of the same shapes if given."""
        first, *rest = arrays or self.arrays
        if not rest:
            return first
        with np.errstate(all="ignore"):  # what is masked out may hold anything
            logits: Floats = np.einsum("btd,vd->btv", first, rest[0])
            if len(rest) == 2:
                logits = logits + rest[1]
            if self.scale is not None:
                logits = logits * self.scale
            if self.softcap is not None:
                logits = np.tanh(logits / self.softcap) * self.softcap
        return logits

    def free(self) -> tuple[Mask, ...]:
        """Entries of each array that may influence a result."""
        first = np.broadcast_to(self.mask[:, :, None], self.arrays[0].shape) & np.isfinite(self.arrays[0])
        return (first, *(np.ones(array.shape, dtype=bool) for array in self.arrays[1:]))


@dataclass(frozen=True, eq=False)
class Problem:
    """Two models on the same sequences, pairs of their positions, and settings."""

    student: Model
    teacher: Model
    given_pairs: Integers | None
    pairs: Integers
    k: int
    temperature: float
    extra: tuple[float, ...]
    standardize: bool
    single: bool

    @property
    def student_k(self) -> int:
        """Columns kept of the student when each model is looked at alone."""
        return min(self.k, int(self.student.logits().shape[2]))

    def traces(self, model: Model, columns: Integers) -> TraceData:
        """Traces of one of the models, rounded to the precision of the problem."""
        data = oracle.traces(
            model.logits(), model.mask, columns, self.temperature, self.extra, self.standardize
        )
        return TraceData(
            data.columns,
            rounded(data.log_probs, self.single),
            rounded(data.log_normalizers, self.single),
            rounded(data.column_mass, self.single),
            *(data.mask, data.vocab_size, data.temperature, data.extra, data.standardize),
        )

    def counts(self) -> Floats:
        """Number of pairs of each sequence."""
        return counted(self.pairs[:, :, 0] >= 0)


def counted(flags: Mask) -> Floats:
    """Number of true entries in each row, floating."""
    return np.array([sum(row) for row in flags.tolist()], dtype=np.float64)


def rounded(values: Floats, single: bool) -> Floats:
    """Values that float32 holds exactly, if that is the precision."""
    return values.astype(np.float32).astype(np.float64) if single else values


def make_problem(rng: np.random.Generator, n: int, single: bool, *, small: bool = False) -> Problem:
    """The n-th of a series of problems: the first ones have chosen shapes, the others random ones."""
    shape = SHAPES[n % len(SHAPES)] if n < 2 * len(SHAPES) else _random_shape(rng)
    if small:
        shape = (2, int(rng.integers(3, 6)), int(rng.integers(2, 6)), int(rng.integers(6, 10)), 7, 3)
    batch, t_s, t_t, v_s, v_t, k = shape
    temperature, extra = TEMPERATURES[n % len(TEMPERATURES)]
    standardize = n % 4 == 3
    masks = []
    for side, length in enumerate((t_s, t_t)):
        chosen = rng.choice(PATTERNS, size=batch, p=(0.3, 0.25, 0.15, 0.1, 0.1, 0.1))
        patterns = FIRST_MASKS[side] if n % len(SHAPES) == 0 and not small else chosen
        masks.append(np.array([_mask(rng, length, pattern) for pattern in patterns[:batch]]))
    spread = 1.0 if small else (2.0, 0.5, 8.0)[n % 3]
    zeros = not small and n % 5 == 2
    student = make_model(rng, masks[0], v_s, spread, single, head=n % 3 == 1, zeros=zeros)
    teacher = make_model(rng, masks[1], v_t, spread, single, head=n % 3 != 0, zeros=zeros)
    given = None if n % 2 == 0 else _random_pairs(rng, batch, t_s, t_t)
    pairs = restricted(given, *masks) if given is not None else by_index(*masks)
    return Problem(student, teacher, given, pairs, k, temperature, extra, standardize, single)


def make_model(
    rng: np.random.Generator,
    mask: Mask,
    vocabulary: int,
    spread: float,
    single: bool,
    *,
    head: bool,
    zeros: bool = False,
) -> Model:
    """Random predictions, with garbage in what the mask excludes."""
    softcap, scale, arrays = None, None, [spread * rng.normal(size=(*mask.shape, vocabulary))]
    if head:
        width = int(rng.integers(2, 6))
        arrays = [rng.normal(size=(*mask.shape, width)), spread * rng.normal(size=(vocabulary, width)) / 2]
        if rng.random() < 0.6:
            arrays.append(rng.normal(size=vocabulary))
        softcap = (None, 5.0)[rng.integers(2)]
        scale = (None, 0.8)[rng.integers(2)]
    elif zeros and vocabulary > 2:
        # Probabilities of exactly zero, but never all of a row.
        arrays[0][..., 1:][rng.random((*mask.shape, vocabulary - 1)) < 0.2] = -np.inf
    first = rounded(arrays[0], single)
    first[~mask] = rng.choice(GARBAGE, size=(int((~mask).sum()), first.shape[2]))
    return Model((first, *(rounded(array, single) for array in arrays[1:])), mask, softcap, scale)


def by_index(student_mask: Mask, teacher_mask: Mask) -> Integers:
    """The i-th valid positions of both sides, padded by -1."""
    width = min(student_mask.shape[1], teacher_mask.shape[1])
    pairs = np.full((len(student_mask), width, 2), -1)
    for n, masks in enumerate(zip(student_mask, teacher_mask, strict=True)):
        valid = [[i for i, kept in enumerate(mask) if kept] for mask in masks]
        for p, pair in enumerate(zip(*valid, strict=False)):
            pairs[n, p] = pair
    return pairs


def restricted(pairs: Integers, student_mask: Mask, teacher_mask: Mask) -> Integers:
    """Pairs with those blanked that a mask excludes or that have a negative entry."""
    result = np.full(pairs.shape, -1)
    for n, p in np.ndindex(*pairs.shape[:2]):
        i, j = pairs[n, p].tolist()
        if min(i, j) >= 0 and student_mask[n, i] and teacher_mask[n, j]:
            result[n, p] = i, j
    return result


def some_columns(rng: np.random.Generator, batch: int, vocabulary: int, k: int) -> Integers:
    """Random distinct columns for each sequence, in no order."""
    picks = [rng.permutation(vocabulary)[:k] for _ in range(batch)]
    return np.array(picks, dtype=np.int64).reshape(batch, min(k, vocabulary))


def _mask(rng: np.random.Generator, length: int, pattern: str) -> Mask:
    mask = np.ones(length, dtype=bool)
    size = int(rng.integers(1, max(length, 2)))
    if pattern == "gaps":
        mask = rng.random(length) < 0.6
        mask[[0, -1]] = True
    elif pattern == "left":
        mask[: length - size] = False
    elif pattern == "right":
        mask[size:] = False
    elif pattern == "one":
        mask = np.arange(length) == rng.integers(length)
    elif pattern == "none":
        mask[:] = False
    return mask


def _random_pairs(rng: np.random.Generator, batch: int, t_s: int, t_t: int) -> Integers:
    """Pairs with repeated, masked and missing positions, in no order."""
    width = int(rng.integers(1, 9))
    pairs = np.stack([rng.integers(-1, t_s, (batch, width)), rng.integers(-1, t_t, (batch, width))], axis=2)
    pairs[rng.random((batch, width)) < 0.2] = -1
    return pairs


def _random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(
        int(rng.integers(low, high)) for low, high in ((1, 5), (1, 10), (1, 10), (1, 41), (1, 41), (1, 11))
    )
