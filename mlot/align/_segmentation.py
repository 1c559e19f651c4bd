"""The student's own tokenization of byte strings, as far as it spells them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mlot.align._strings import Strings
from mlot.align._tokens import Booleans, Integers

#: Bytes of a string up to which its borders are kept: the bits of an integer that has a sign.
MAX_BORDER = 62


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Tokenizations of ``N`` strings.

    Attributes:
        following: token that begins at each byte of each string, -1 where none does, ``(offsets[-1],)``.
        borders: bit ``b`` is set where a token begins at byte ``b``, ``1 <= b <= 62``, ``(N,)``.
        count: number of tokens; 0: they do not spell the string, ``(N,)``.
    """

    following: Integers
    borders: Integers
    count: Integers

    @property
    def known(self) -> Booleans:
        """Strings whose tokens spell them."""
        return self.count > 0


def segment(strings: Strings, tokens: Sequence[Sequence[int]], vocabulary: Strings) -> Segmentation:
    """Borders of tokenizations.

    Args:
        strings: the strings.
        tokens: token ids of each of them.
        vocabulary: bytes of each id.
    """
    count = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ids = np.fromiter(chain.from_iterable(tokens), np.int64, int(count.sum()))
    owner = np.repeat(np.arange(len(strings)), count)
    sizes = vocabulary.lengths_of(ids)
    reached = np.concatenate([[0], np.cumsum(sizes)])
    first = np.cumsum(count) - count
    within = reached[:-1] - reached[first[owner]]
    starts = strings.offsets[owner] + within
    wrong = ~vocabulary.spell(ids, strings.data, starts)
    total = reached[first + count] - reached[first]
    spelled = (np.bincount(owner, wrong, len(strings)) == 0) & (total == strings.lengths) & (count > 0)
    kept = spelled[owner]
    following = np.full(len(strings.data), -1, np.int64)
    following[starts[kept]] = ids[kept]
    marked = kept & (within >= 1) & (within <= MAX_BORDER)
    borders = np.zeros(len(strings), np.int64)
    np.bitwise_or.at(borders, owner[marked], np.int64(1) << within[marked])
    return Segmentation(following, borders, np.where(spelled, count, 0))
