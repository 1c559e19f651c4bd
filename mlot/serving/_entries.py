"""What was read from responses: the likeliest tokens of each position, and how a source is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlot import _checks
from mlot._typing import Tail
from mlot.topk import TopKLogprobs

#: What stands for "very unlikely" where a format has no minus infinity.
SENTINEL = -9999.0
#: Places of the arrays for each entry read, beyond which a few long lists among many short ones are refused.
_MOST_PLACES, _MOST_PLACES_FOR_ENTRY = 1 << 23, 64


@dataclass(frozen=True, eq=False)
class Served:
    """What was read from responses.

    Attributes:
        source: the predictions, ``(B, T, K)``; position t predicts token t + 1.
        beyond: entries left out because they may not be among the most likely of their position (servers list
            the token that stands there, too, or in place of another), or come after one that could not be
            resolved.
        unknown: positions whose entries end at a token that the vocabulary lacks.
        ambiguous: positions whose entries end at a token that may be any of several: pieces of characters,
            which servers write as U+FFFD; words without their leading space; what several ids spell. Tokens
            given as ids (``token_id:17``, or fields ``id``) are never ambiguous.
    """

    source: TopKLogprobs
    beyond: int = 0
    unknown: int = 0
    ambiguous: int = 0


@dataclass
class SkipCounts:
    """What was left out while responses were read."""

    beyond: int = 0
    unknown: int = 0
    ambiguous: int = 0


@dataclass
class Described:
    """The entries that describe the tokens of one sequence.

    Attributes:
        before: tokens before the first that is described.
        counts: entries of each token described.
        ids: all of them, one after the other.
        logprobs: theirs.
    """

    before: int = 0
    counts: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return self.before + len(self.counts)

    def add(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """The entries of the next token."""
        self.counts.append(len(ids))
        self.ids += ids
        self.logprobs += logprobs


@dataclass(frozen=True)
class Settings:
    """What all converters take."""

    k: int | None
    vocab_size: int | None
    tail: Tail
    temperature: float
    length: int | None
    padding_side: str
    backend: str | None

    def __post_init__(self) -> None:
        _checks.count("k", self.k, allow_none=True)
        _checks.count("vocab_size", self.vocab_size, allow_none=True)
        _checks.divisor("temperature", self.temperature)
        _checks.count("length", self.length, allow_none=True)
        _checks.choice("padding_side", self.padding_side, ("right", "left"))

    def served(self, sequences: Sequence[Described], skipped: SkipCounts) -> Served:
        """The source of some sequences, and what was left out of it."""
        return Served(self._source(sequences), skipped.beyond, skipped.unknown, skipped.ambiguous)

    def _source(self, sequences: Sequence[Described]) -> TopKLogprobs:
        """Entries that describe token t + 1 stand at position t."""
        longest = max(map(len, sequences), default=0)
        if self.length is not None and longest > self.length:
            raise ValueError(
                f"length: expected at least {longest}, the tokens of the longest sequence, got {self.length}"
            )
        width = longest if self.length is None else self.length
        # Nothing predicts the first token.
        skips = [int(not each.before) for each in sequences]
        most = max(
            (max(each.counts[s:], default=0) for each, s in zip(sequences, skips, strict=True)), default=0
        )
        places, entries = len(sequences) * width * most, sum(len(each.ids) for each in sequences)
        if places > _MOST_PLACES and places > _MOST_PLACES_FOR_ENTRY * entries:
            raise ValueError(
                f"responses: expected lists of about one length, got one of {most} entries among "
                f"{entries} in all, at {len(sequences) * width} positions"
            )
        ids = np.full((len(sequences), width, most), -1, dtype=np.int64)
        logprobs = np.full(ids.shape, -np.inf)
        for n, (each, skip) in enumerate(zip(sequences, skips, strict=True)):
            start = width - len(each) if self.padding_side == "left" else 0
            rows = slice(start + each.before + skip - 1, start + max(len(each) - 1, 0))
            here = np.arange(most) < np.array(each.counts[skip:], dtype=np.int64)[:, None]
            first = sum(each.counts[:skip])
            ids[n, rows][here], logprobs[n, rows][here] = each.ids[first:], each.logprobs[first:]
        if self.backend not in (None, "numpy"):
            from mlot.backends import get_backend

            xp = get_backend(str(self.backend))
            ids, logprobs = xp.from_numpy(ids), xp.from_numpy(logprobs)
        return TopKLogprobs(ids, logprobs, self.vocab_size, self.tail, self.temperature)


def surely_among(entries: Sequence[tuple[Any, ...]], n: int) -> bool:
    """Whether no token outside a list can be likelier than entry ``n``: what is left has no more than it."""
    return probability(entries[n][0]) >= 1 - sum(probability(each[0]) for each in entries)


def probability(negative: float) -> float:
    """The probability of a negative log-probability; what is no log-probability is refused later."""
    return math.exp(min(-negative, 1.0))


def without_described(entries: list[tuple[float, Any]], described: Any) -> list[tuple[float, Any]]:
    """A list, likeliest first, without the token described where that may stand in place of a likelier one.

    Servers list the token that stands there, beside the likeliest or in place of the last of them. So where
    it is the least likely of its list it is left out, unless it is sure to be among the likeliest.

    Args:
        entries: pairs of a negative log-probability and whatever names a token, in ascending order.
        described: what names the token described.
    """
    for n in range(len(entries) - 1, -1, -1):
        if entries[n][0] < entries[-1][0]:
            break
        if entries[n][1] == described:
            return entries if surely_among(entries, n) else entries[:n] + entries[n + 1 :]
    return entries


def by_rank(
    entries: list[tuple[float, int, int | None]], k: int | None, told: bool, skipped: SkipCounts
) -> tuple[list[int], list[float]]:
    """Entries that are the most likely of their position, likeliest first.

    The token that stands there is told by its rank; where ranks tell nothing it may be the least likely,
    which is left out then, unless it is sure to be among the likeliest. Leaving out the least likely is
    always safe.

    Args:
        entries: negative log-probability, id and rank of each.
        k: how many were asked for.
        told: whether ranks can be believed.
        skipped: what was left out is added here.
    """
    given = len(entries)
    entries.sort()
    while entries and entries[-1][0] >= -SENTINEL:
        entries.pop()
    most = len(entries) if k is None else k
    if told:
        del entries[most:]
        while entries and (entries[-1][2] or 0) > len(entries):
            entries.pop()
    else:
        if entries and not surely_among(entries, -1):
            entries.pop()
        del entries[most:]
    skipped.beyond += given - len(entries)
    return [each[1] for each in entries], [-each[0] for each in entries]
