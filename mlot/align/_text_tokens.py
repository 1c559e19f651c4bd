"""TextTokens: the tokens of several texts in flat arrays, so that one pass does for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlot.align._tokens import Booleans, Integers, TokenBytes


@dataclass(frozen=True, eq=False)
class TextTokens:
    """Tokens of ``N`` texts, one text after the other, and the bytes of its own text that each covers.

    Attributes:
        ids, starts, ends, special: as of `TokenBytes`, for all tokens, ``(T,)``.
        counts: number of tokens of each text, ``(N,)``.
        totals: number of bytes of each text, ``(N,)``.
    """

    ids: Integers
    starts: Integers
    ends: Integers
    special: Booleans
    counts: Integers
    totals: Integers

    @staticmethod
    def of(tokens: TokenBytes) -> TextTokens:
        """The tokens of one text."""
        return TextTokens(
            tokens.ids,
            tokens.starts,
            tokens.ends,
            tokens.special,
            np.array([len(tokens)]),
            np.array([tokens.total]),
        )

    @cached_property
    def offsets(self) -> Integers:
        """First token of each text, and the number of tokens, ``(N + 1,)``."""
        return boundaries(self.counts)

    @cached_property
    def bases(self) -> Integers:
        """First byte of each text among all of them joined, and their bytes, ``(N + 1,)``."""
        return boundaries(self.totals)

    @cached_property
    def owner(self) -> Integers:
        """Text of each token, ``(T,)``."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def joined_starts(self) -> Integers:
        """First byte of each token in the texts joined, ``(T,)``."""
        joined: Integers = self.starts + self.bases[self.owner]
        return joined

    @cached_property
    def joined_ends(self) -> Integers:
        """Byte after the last of each token in the texts joined, ``(T,)``."""
        joined: Integers = self.ends + self.bases[self.owner]
        return joined

    def replaced(self, numbers: Sequence[int], others: TextTokens) -> TextTokens:
        """The same with other tokens of some of the texts."""
        order = np.arange(len(self.counts))
        order[list(numbers)] = len(order) + np.arange(len(numbers))
        counts = np.concatenate([self.counts, others.counts])
        tokens = stretches(boundaries(counts)[order], counts[order])
        ids, starts, ends, special = (
            np.concatenate([getattr(self, name), getattr(others, name)])[tokens]
            for name in ("ids", "starts", "ends", "special")
        )
        return TextTokens(ids, starts, ends, special, counts[order], self.totals)

    def grouped(self, sizes: Integers) -> TextTokens:
        """The same tokens where ``sizes`` texts at a time, one or more, are the parts of one text."""
        if len(sizes) == len(self.counts):
            return self
        first = np.cumsum(sizes) - sizes
        shifts = (self.bases[:-1] - np.repeat(self.bases[first], sizes))[self.owner]
        counts, totals = (np.add.reduceat(each, first) for each in (self.counts, self.totals))
        return TextTokens(self.ids, self.starts + shifts, self.ends + shifts, self.special, counts, totals)


def boundaries(sizes: Integers) -> Integers:
    """Where stretches of these sizes begin, one after the other, and where the last one ends."""
    cuts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=cuts[1:])
    return cuts


def stretches(first: Integers, sizes: Integers) -> Integers:
    """The numbers from each ``first`` on, ``sizes`` of them, one stretch after the other."""
    cuts = boundaries(sizes)
    return np.arange(cuts[-1]) + np.repeat(first - cuts[:-1], sizes)
