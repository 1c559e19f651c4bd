"""Small byte vocabularies, texts cut into their tokens, and what is said of them as loops."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from hypothesis import strategies as st

from mlot.align import TokenBytes

LETTERS = (b"a", b"b", b" ", b"\xff", b"\xc3")
WORDS = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4).map(b"".join)
#: Tokens with repeated and missing strings.
VOCABULARIES = st.lists(st.one_of(st.none(), st.just(b""), WORDS), max_size=14)


@st.composite
def two_tokenizations(draw, framed=True):
    """Two vocabularies, a text, and random tokens of it: some of them special, with gaps, or changed."""
    text = b"".join(draw(st.lists(st.sampled_from(LETTERS), max_size=14)))
    vocabularies, sides = [], []
    for _ in range(2):
        count = draw(st.integers(0, len(text)))
        cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=count))})
        pieces = [text[low:high] for low, high in pairwise(cuts)]
        vocabulary = [None, None, *draw(VOCABULARIES), *dict.fromkeys(pieces)]
        ids, starts, ends, special = [], [], [], []
        low = 0
        spaced = framed and draw(st.booleans())
        if spaced and pieces:
            vocabulary.append(b" " + pieces[0])
        for number, piece in enumerate(pieces):
            places = [n for n, word in enumerate(vocabulary) if word == piece]
            token = draw(st.sampled_from(places))
            if spaced and number == 0:
                token = len(vocabulary) - 1
            change = draw(st.integers(0, 9)) if framed else 9
            if change == 0:
                token = draw(st.integers(0, len(vocabulary) - 1))
            if change == 1:
                ids, starts, ends, special = [*ids, token], [*starts, low], [*ends, low], [*special, False]
            if change != 2:
                ids, starts, ends, special = (
                    [*ids, token],
                    [*starts, low],
                    [*ends, low + len(piece)],
                    [*special, False],
                )
            low += len(piece)
        reached = max(ends, default=0)
        before, after = (draw(st.integers(0, 2)) for _ in range(2)) if framed else (1, 1)
        ids = [0] * before + ids + [1] * after
        starts, ends = [0] * before + starts + [reached] * after, [0] * before + ends + [reached] * after
        special = [True] * before + special + [True] * after
        vocabularies.append(vocabulary)
        sides.append(TokenBytes(ids, starts, ends, special, len(text)))
    return (*vocabularies, text, *sides)


def bytewise(vocabulary):
    """A tokenization from left to right by the shortest token, which is not the longest reading."""

    @cache
    def tokenize(data):
        if not data:
            return ()
        for size in range(1, len(data) + 1):
            if data[:size] in vocabulary:
                rest = tokenize(data[size:])
                if rest is not None:
                    return (vocabulary.index(data[:size]), *rest)
        return None

    return lambda data: tokenize(data) or ()
