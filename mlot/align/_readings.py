"""Which student token the bytes of each teacher token begin with, in two readings, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlot.align._segmentation import segment
from mlot.align._strings import PrefixTree, Strings
from mlot.align._tokens import Integers


@dataclass(frozen=True, eq=False)
class Readings:
    """Which student token the rest of each teacher token begins with; see `VocabularyMap`."""

    order: Integers
    offsets: Integers
    longest: NDArray[np.int32]
    canonical: NDArray[np.int32]
    segmentation: Integers


def readings(
    student: Strings,
    teacher: Strings,
    tokenize: Callable[[list[bytes]], Sequence[Sequence[int]]] | None,
    preference: Integers | None = None,
    teacher_preference: Integers | None = None,
    spaced: Sequence[int] = (),
) -> Readings:
    """Sort the teacher's tokens and read them in the student's.

    Args:
        student: bytes of the student's ids.
        teacher: bytes of the teacher's ids.
        tokenize: the student's own tokenization of strings; ``None``: it is not known.
        preference: of student ids with the same bytes the one with the least value stands for all,
            ``(V_s,)``; ``None``: the lowest id.
        teacher_preference: the order of teacher ids with the same bytes, in the same way.
        spaced: student ids that also stand for their bytes with a space before.
    """
    order = sort(teacher, teacher_preference)
    spelled = Strings.of([teacher[n] for n in order.tolist()])
    segments = None if tokenize is None else segment(spelled, tokenize(spelled.all()), student)
    every = student.all()
    own = np.concatenate([np.arange(len(every)), np.array(spaced, np.int64)])
    every += [b" " + every[i] for i in spaced]
    ranked = sort(Strings.of(every), None if preference is None else preference[own])
    distinct, groups = _distinct([every[n] for n in ranked.tolist()])
    student_order = own[ranked]
    longest = PrefixTree.of(Strings.of(distinct)).longest(spelled)
    ids = np.full(len(longest), -1, np.int64)
    ids[longest >= 0] = student_order[groups[longest[longest >= 0]]]
    whole, copies = _copies(spelled, distinct, longest, groups)
    ids[spelled.offsets[whole]] = student_order[copies]
    if segments is None:
        canonical = np.full(len(ids), -1, np.int64)
        bits = np.zeros(len(order), np.int64)
    else:
        canonical, bits = segments.following.copy(), segments.borders
        # The same choice among tokens of the same bytes as in the other reading.
        first = spelled.offsets[:-1]
        alone = np.zeros(len(order), np.bool_)
        alone[whole] = segments.count[whole] == 1
        canonical[first[alone]] = ids[first[alone]]
    return Readings(order, spelled.offsets, ids.astype(np.int32), canonical.astype(np.int32), bits)


def sort(strings: Strings, preference: Integers | None = None) -> Integers:
    """Ids that spell text, sorted by their bytes, then by preference, the least first, then by id."""
    every = strings.all()
    ids = np.flatnonzero(strings.lengths)
    if preference is not None:
        ids = ids[np.argsort(preference[ids], kind="stable")]
    return np.array(sorted(ids.tolist(), key=every.__getitem__), np.int64)


def _distinct(strings: list[bytes]) -> tuple[list[bytes], Integers]:
    """Distinct strings of sorted ones, and the first place of each, with the number of strings at the end."""
    first = [n for n, string in enumerate(strings) if n == 0 or string != strings[n - 1]]
    return [strings[n] for n in first], np.array([*first, len(strings)], np.int64)


def _copies(
    spelled: Strings, distinct: list[bytes], longest: Integers, groups: Integers
) -> tuple[Integers, Integers]:
    """Sorted teacher tokens that are student tokens, too, and which of the copies of that they are given."""
    tokens = longest[spelled.offsets[:-1]]
    sizes = np.array([len(string) for string in distinct], np.int64)
    whole = np.flatnonzero(tokens >= 0)
    whole = whole[sizes[tokens[whole]] == spelled.lengths[whole]]
    match = tokens[whole]
    # How many teacher tokens before this one spell the same.
    opens = np.ones(len(match), np.bool_)
    opens[1:] = match[1:] != match[:-1]
    first = np.flatnonzero(opens)
    number = np.arange(len(match)) - first[np.cumsum(opens) - 1] if len(match) else match
    return whole, groups[match] + np.minimum(number, groups[match + 1] - groups[match] - 1)
