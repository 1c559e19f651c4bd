"""The teacher's distribution in the student's tokens, from its definition, one position at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlot.backends.numpy.equations import Floats, Integers
from mlot.text import TextPlan

Booleans = NDArray[np.bool_]

#: Share of the mass below which the student's own tokenization is given up for the longest tokens.
LEAST_CONSISTENT = 0.01


class Position(NamedTuple):
    """A text position; see `mlot.align.text_positions`."""

    student: int
    teacher: int
    depth: int
    start: int
    low: int
    high: int
    borders: int
    next: int
    chain: int


def positions(
    rows: Integers, student_mask: Booleans, teacher_mask: Booleans
) -> Iterator[tuple[int, Position]]:
    """Sequence and text position of every row that counts on both sides."""
    for n, sequence in enumerate(rows.tolist()):
        for row in sequence:
            position = Position(*row)
            if min(row[:2]) >= 0 and student_mask[n, row[0]] and teacher_mask[n, row[1]]:
                yield n, position


def carried(t: Floats, position: Position, first: int, chain: float, plan: TextPlan) -> tuple[Floats, float]:
    """Mass of each student token, ``(V_s,)``, and what of the teacher's is at this place in the text.

    Args:
        t: the teacher's probabilities, ``(V_t,)``.
        position: where the student is.
        first: token of the teacher that the text has here.
        chain: probability of the teacher's tokens that the student's next token reaches into.
        plan: which student token follows.
    """
    mass = np.zeros(plan.student_vocab_size)
    teacher = plan.order[position.low : position.high]
    follows = next_tokens(t[teacher], position, plan)
    has_one = follows >= 0
    np.add.at(mass, follows[has_one], t[teacher[has_one]])
    there = t[plan.order[position.start : position.high]].sum()
    if position.chain > 1:
        before = follows[teacher == first]
        # What begins with the whole chain is followed by the token that the text has, not by a shorter one.
        if len(before) and before[0] >= 0:
            moved = min(chain, mass[before[0]])
            mass[before[0]] -= moved
            mass[position.next] += moved
        else:
            mass[position.next] += chain
    if position.depth == 0:
        own = plan.ends[position.borders - 1].tolist() if position.borders > 0 else [-1, -1]
        for special, role in plan.roles:
            mass[own[1] if special == own[0] else role] += t[special]
            there += t[special]
    return mass, float(there)


def next_tokens(weights: Floats, position: Position, plan: TextPlan) -> Integers:
    """Student token after each teacher token that goes on from here; -1: none, or the token is left out."""
    low, high, depth = position.low, position.high, position.depth
    entries = plan.offsets[low:high] + depth
    longest: Integers = plan.longest[entries].astype(np.int64)
    canonical: Integers = plan.canonical[entries].astype(np.int64)
    if plan.reading == "longest":
        return longest
    if depth == 0:
        return np.where(canonical >= 0, canonical, longest)
    # Borders after 1 to depth bytes, which are those of the tokens that the student has read.
    borders = plan.segmentation[low:high] & ((2 << min(depth, 62)) - 2)
    consistent = (position.borders >= 0) & (canonical >= 0) & (borders == position.borders)
    if weights[consistent].sum() > LEAST_CONSISTENT * weights.sum():
        return np.where(consistent, canonical, -1)
    return longest


def likeliest(q: Floats, k: int) -> tuple[Integers, Floats, float]:
    """The k likeliest tokens, their log-probabilities, and what all others have."""
    order = np.lexsort((np.arange(len(q)), -q))[:k]
    ids = np.where(q[order] > 0, order, -1)
    with np.errstate(divide="ignore"):
        return ids, np.log(q[order]), float(np.delete(q, order).sum())
