"""Byte strings of a vocabulary in whole arrays: sorted, their prefixes as ranges, their longest prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot.align._text_tokens import stretches
from mlot.align._tokens import Booleans, Integers


@dataclass(frozen=True, eq=False)
class Strings:
    """Byte strings one after the other; those without text are empty.

    Attributes:
        data: all bytes, ``(offsets[-1],)``.
        offsets: string ``n`` is ``data[offsets[n] : offsets[n + 1]]``, ``(N + 1,)``.
    """

    data: NDArray[np.uint8]
    offsets: Integers

    @staticmethod
    def of(strings: Sequence[bytes | None]) -> Strings:
        lengths = [0 if string is None else len(string) for string in strings]
        data = np.frombuffer(b"".join(string for string in strings if string), np.uint8)
        return Strings(data, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, n: int) -> bytes:
        return self.data[self.offsets[n] : self.offsets[n + 1]].tobytes()

    @property
    def lengths(self) -> Integers:
        lengths: Integers = np.diff(self.offsets)
        return lengths

    def all(self) -> list[bytes]:
        """Every string."""
        whole, cuts = self.data.tobytes(), self.offsets.tolist()
        return [whole[low:high] for low, high in pairwise(cuts)]

    def lengths_of(self, ids: Integers) -> Integers:
        """Lengths of the strings of some ids, 0 for ids that there are not."""
        known = (ids >= 0) & (ids < len(self))
        inside = np.where(known, ids, 0)
        if not len(self):
            return np.zeros_like(ids)
        lengths: Integers = np.where(known, self.offsets[inside + 1] - self.offsets[inside], 0)
        return lengths

    def spell(self, ids: Integers, text: NDArray[np.uint8], starts: Integers, skip: Any = 0) -> Booleans:
        """Whether each id's string, without its first ``skip`` bytes, stands at its start in a text."""
        sizes = np.maximum(self.lengths_of(ids) - skip, 0)
        fits = (sizes > 0) & (starts >= 0) & (starts + sizes <= len(text))
        sizes = np.where(fits, sizes, 0)
        first = self.offsets[np.where(fits, ids, 0)] + skip
        wrong = np.flatnonzero(self.data[stretches(first, sizes)] != text[stretches(starts, sizes)])
        spelled: Booleans = fits
        spelled[np.searchsorted(np.cumsum(sizes), wrong, "right")] = False
        return spelled


def common_prefixes(strings: Strings) -> Integers:
    """Number of first bytes that each string shares with the one before it, 0 for the first; ``(N,)``."""
    shared = np.zeros(len(strings), np.int64)
    lengths = strings.lengths
    alive = np.arange(1, len(strings))
    depth = 0
    while len(alive):
        alive = alive[np.minimum(lengths[alive], lengths[alive - 1]) > depth]
        one, other = (strings.data[strings.offsets[n] + depth] for n in (alive, alive - 1))
        alive = alive[one == other]
        depth += 1
        shared[alive] = depth
    return shared


def prefix_ranges(strings: Strings) -> NDArray[np.int32]:
    """Ranges of sorted strings that begin as each of them does.

    Args:
        strings: sorted, none of them empty.

    Returns:
        ``(3, offsets[-1])``: at ``offsets[n] + d``, with ``c`` the first ``d`` bytes of string ``n``, the
        strings ``[start, low)`` are ``c`` and ``[low, high)`` begin with it and go on.
    """
    shared, lengths = common_prefixes(strings), strings.lengths
    ranges = np.zeros((3, len(strings.data)), np.int32)
    for depth in range(int(lengths.max(initial=0))):
        # Strings that begin alike stand together, those that end here first.
        members = np.flatnonzero(lengths >= depth)
        opens = shared[members] < depth
        opens[0] = True
        first = np.flatnonzero(opens)
        group = np.cumsum(opens) - 1
        start = members[first]
        high = members[np.append(first[1:], len(members)) - 1] + 1
        low = start + np.add.reduceat((lengths[members] == depth).astype(np.int64), first)
        longer = lengths[members] > depth
        entries, group = strings.offsets[members[longer]] + depth, group[longer]
        for row, values in enumerate((start, low, high)):
            ranges[row, entries] = values[group]
    return ranges


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A trie of sorted, distinct strings, level by level.

    Attributes:
        keys: for each level ``256 * parent + byte`` of its nodes, sorted; they are numbered in this order.
        last: for each level the string that ends at each node, -1 where none does.
    """

    keys: list[Integers]
    last: list[Integers]

    @staticmethod
    def of(strings: Strings) -> PrefixTree:
        shared, lengths = common_prefixes(strings), strings.lengths
        keys, last = [], []
        parent = np.zeros(len(strings), np.int64)
        for depth in range(1, int(lengths.max(initial=0)) + 1):
            members = np.flatnonzero(lengths >= depth)
            opens = shared[members] < depth
            opens[0] = True
            first = members[opens]
            keys.append(256 * parent[first] + strings.data[strings.offsets[first] + depth - 1])
            parent[members] = np.cumsum(opens) - 1
            last.append(np.where(lengths[first] == depth, first, -1))
        return PrefixTree(keys, last)

    def longest(self, strings: Strings) -> Integers:
        """The longest string of the tree that the rest of a string begins with, from each of its bytes on.

        Returns:
            ``(strings.offsets[-1],)`` numbers of strings of the tree, -1 where none fits.
        """
        tokens = np.full(len(strings.data), -1, np.int64)
        end = np.repeat(strings.offsets[1:], strings.lengths)
        entry = np.arange(len(strings.data))
        node = np.zeros(len(entry), np.int64)
        for depth, (keys, last) in enumerate(zip(self.keys, self.last, strict=True)):
            inside = entry + depth < end[entry]
            entry, node = entry[inside], node[inside]
            wanted = 256 * node + strings.data[entry + depth]
            node = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hit = keys[node] == wanted
            entry, node = entry[hit], node[hit]
            if not len(entry):
                break
            ending = last[node]
            tokens[entry[ending >= 0]] = ending[ending >= 0]
        return tokens
