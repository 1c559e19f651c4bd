"""The plan between two vocabularies that is read off the text, and what it makes of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlot import _checks
from mlot._arrays import ArrayOperations
from mlot._composite import Composite
from mlot._typing import Array, Reading

#: Columns of text positions; see `mlot.align.text_positions`.
POSITION_FIELDS = ("student", "teacher", "depth", "start", "low", "high", "borders", "next", "chain")


@dataclass(frozen=True, eq=False)
class TextPlan:
    r"""Which student token follows when the teacher's token is given and part of it has been read.

    The teacher's tokens :math:`v` that spell text, sorted by their bytes :math:`\beta(v)`, are numbered by
    :math:`n`. Entry ``offsets[n] + d`` stands for the bytes :math:`\beta(v)[d:]` that are left after
    :math:`d` have been read. Made from two tokenizers by `mlot.align.VocabularyMap.plan`.

    Args:
        order: teacher id of each number, ``(N,)``.
        offsets: first entry of each number, and the number of entries, ``(N + 1,)``.
        longest: for each entry the longest student token that its bytes begin with; -1: there is none.
        canonical: for each entry the token that the student's own tokenization of :math:`\beta(v)` has
            there; -1: it has no border there, or is not known.
        segmentation: bit :math:`b` is set where that tokenization has a border after :math:`b` bytes,
            ``(N,)``.
        equal: student token of the same bytes for each number; -1: there is none, ``(N,)``.
        roles: special tokens that correspond, ``[teacher id, student id]``, ``(S, 2)``.
        student_vocab_size: :math:`V_s`.
        teacher_vocab_size: :math:`V_t`.
        reading: ``"canonical"``: the student's own tokenization, the longest token where it has none;
            ``"longest"``: always the longest token.
        ends: ``[teacher id, student id]`` that hold instead of ``roles`` where positions say so, ``(E, 2)``.

    Raises:
        TypeError, ValueError: an array is of the wrong kind, shape or range.
    """

    order: NDArray[Any]
    offsets: NDArray[Any]
    longest: NDArray[Any]
    canonical: NDArray[Any]
    segmentation: NDArray[Any]
    equal: NDArray[Any]
    roles: NDArray[Any]
    student_vocab_size: int
    teacher_vocab_size: int
    reading: Reading = "canonical"
    ends: NDArray[Any] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    #: Arrays of a backend made of these, by device.
    cache: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        _checks.count("student_vocab_size", self.student_vocab_size)
        _checks.count("teacher_vocab_size", self.teacher_vocab_size)
        _checks.choice("reading", self.reading, ("canonical", "longest"))
        number = len(self.order) if hasattr(self.order, "__len__") else 0
        entries = int(self.offsets[-1]) if len(self.offsets) else 0
        shapes = {
            "order": (number,),
            "offsets": (number + 1,),
            "longest": (entries,),
            "canonical": (entries,),
            "segmentation": (number,),
            "equal": (number,),
            "roles": (len(self.roles), 2),
            "ends": (len(self.ends), 2),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
                raise TypeError(f"{name}: expected a NumPy array of integers, got {type(array).__name__}")
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        for name, size in (
            ("order", self.teacher_vocab_size),
            ("longest", self.student_vocab_size),
            ("canonical", self.student_vocab_size),
            ("equal", self.student_vocab_size),
        ):
            array = getattr(self, name)
            if array.size and not -1 <= array.min() <= array.max() < size:
                raise ValueError(f"{name}: expected ids below {size}, got {array.min()} to {array.max()}")

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return (
            f"TextPlan({self.teacher_vocab_size} to {self.student_vocab_size} tokens, {len(self)} with text, "
            f"reading={self.reading!r})"
        )


@dataclass(frozen=True, eq=False)
class TextPositions:
    """Where a student reads in the tokens of its teacher.

    Args:
        rows: ``(B, P, 9)`` integers, padded by -1, of `mlot.align.batch_text_positions`.
        teacher_ids: tokens of the teacher, ``(B, T_t)`` integers, as the teacher has read them.
        plan: the `TextPlan` of both tokenizers.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or shape.
    """

    rows: Array
    teacher_ids: Array
    plan: TextPlan

    def __post_init__(self) -> None:
        if not isinstance(self.plan, TextPlan):
            raise TypeError(f"plan: expected a TextPlan, got {type(self.plan).__name__}")
        width = len(POSITION_FIELDS)
        for name, rank in (("rows", 3), ("teacher_ids", 2)):
            value = getattr(self, name)
            if not hasattr(value, "shape"):
                raise TypeError(f"{name}: expected an array, got {type(value).__name__}")
            if len(value.shape) != rank or (rank == 3 and value.shape[2] != width):
                wanted = f"(B, P, {width})" if rank == 3 else "(B, T)"
                raise ValueError(f"{name}: expected {wanted}, got shape {tuple(value.shape)}")
        if self.rows.shape[0] != self.teacher_ids.shape[0]:
            raise ValueError(
                f"teacher_ids: expected the batch size of rows, {self.rows.shape[0]}, "
                f"got {self.teacher_ids.shape[0]}"
            )


@dataclass(frozen=True, eq=False)
class TextTargets(Composite):
    r"""What a teacher says in the student's tokens: the likeliest of them at each position, and a rest.

    .. math:: q_i(u) = \frac{\sum_v t_j(v)\,[c \text{ is a proper prefix of } \beta(v),\
              \mathrm{nxt}(\beta(v)[|c|:]) = u]}
              {\sum_v t_j(v)\,[c \text{ is a proper prefix of } \beta(v)]}

    Made by `mlot.text_targets`; a teacher for ``matching="text"``. Constants for differentiation.

    Args:
        ids: student tokens, likeliest first, ``(B, T_s, K)`` integers, -1 where there are fewer.
        log_probs: natural logarithms of their :math:`q_i(u)`, ``(B, T_s, K)``; minus infinity beside -1.
        rest: what all other tokens have together, ``(B, T_s)``.
        served: share of the teacher's mass at that place in the text that is carried over, ``(B, T_s)``; 0
            where a position has no target.
        vocab_size: :math:`V_s`.
        temperature: temperature of the teacher's probabilities.
    """

    ids: Array
    log_probs: Array
    rest: Array
    served: Array
    vocab_size: int
    temperature: float = 1.0

    _whole: ClassVar[bool] = False
    _knows_mask: ClassVar[bool] = True
    _no_student: ClassVar[str] = "targets are constants, which a student cannot be trained through"

    @property
    def k(self) -> int:
        """Number of tokens that are listed at each position."""
        return int(self.ids.shape[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(B, T_s, V_s)`` of the distributions."""
        batch, length, _ = self.ids.shape
        return int(batch), int(length), self.vocab_size

    def __repr__(self) -> str:
        batch, length, _ = self.shape
        return f"TextTargets(B={batch}, T={length}, K={self.k}, V={self.vocab_size})"

    def map(self, function: Callable[[Array], Array]) -> TextTargets:
        """Return the same with ``function`` applied to every array."""
        return replace(
            self,
            ids=function(self.ids),
            log_probs=function(self.log_probs),
            rest=function(self.rest),
            served=function(self.served),
        )

    def _check(self, xp: ArrayOperations, name: str) -> None:
        batch, length, k = self.ids.shape
        shapes = {"log_probs": (batch, length, k), "rest": (batch, length), "served": (batch, length)}
        if xp.kind(self.ids) != "integer":
            raise TypeError(f"{name}.ids: expected integers, got {self.ids.dtype}")
        for field_name, shape in shapes.items():
            array = getattr(self, field_name)
            if tuple(array.shape) != shape:
                raise ValueError(f"{name}.{field_name}: expected {shape}, got shape {tuple(array.shape)}")
            if xp.kind(array) != "float":
                raise TypeError(f"{name}.{field_name}: expected floating-point numbers, got {array.dtype}")

    def _mask(self, xp: ArrayOperations) -> Array:
        """Positions that have a target."""
        return self.served > 0
