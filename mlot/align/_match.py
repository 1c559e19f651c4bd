"""Hints for tokenizers without offsets: the place of each token's string in the text, from left to right."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlot.align._tokens import Booleans, Integers

#: Characters to look ahead for a token that is not at the place reached: usually, and after an unknown one.
_LOOKAHEAD = 32
_LOOKAHEAD_UNKNOWN = 1024
#: Ways to split text that unknown tokens stand for: as BERT does, at white space, into characters.
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_SPLITS = [re.compile(split) for split in (rf"[{CJK}]|[^\W{CJK}]+|[^\w\s]", r"\S+", r"\S", r"(?s:.)")]
_IGNORED = ("Mn", "Mc", "Me", "Cc", "Cf", "Zs", "Zl", "Zp")


@lru_cache(maxsize=1 << 16)
def fold(character: str) -> str:
    """What normalisers leave of a character: no case, accent, compatibility form, white space or control."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(c for c in decomposed if unicodedata.category(c) not in _IGNORED)


@dataclass(frozen=True)
class Hints:
    """Places found, in characters; ``located`` counts the tokens that have one."""

    starts: Integers
    ends: Integers
    free: Booleans
    located: int


def hints(
    text: str, surfaces: Sequence[bytes], free: Booleans, unknown: Booleans, starts_word: Booleans
) -> Hints:
    """Find tokens in a text that a normaliser may have changed.

    Each token is looked for where the last one ended: as it is, after white space, then with case, accents
    and compatibility forms folded away, then a little further on. Unknown tokens cover what lies between
    their neighbours, a piece each where it splits into as many.

    Args:
        text: the text.
        surfaces: bytes of each token.
        free: tokens that are not in the text.
        unknown: tokens that stand for any text, ``[UNK]``.
        starts_word: tokens that can only begin a word.
    """
    cursor = _Cursor(text, len(surfaces))
    units = list(_units(surfaces, free, unknown))
    for (first, last, piece), (_, _, following) in zip(units, [*units, (0, 0, "")][1:], strict=True):
        if unknown[first]:
            cursor.waiting.append(first)
        else:
            cursor.move_to(first, last, piece, following, bool(starts_word[first]))
    cursor._fill_waiting(len(text), at_end=True)
    return Hints(cursor.starts, cursor.ends, cursor.free, int((~cursor.free).sum()))


def _units(surfaces: Sequence[bytes], free: Booleans, unknown: Booleans) -> Iterator[tuple[int, int, str]]:
    """Runs of tokens, the fewest that end where a character does: first, last, and their string.

    Unknown tokens come alone, with an empty string; bytes that are no text are left out.
    """
    first, pending = 0, b""
    for i, surface in enumerate(surfaces):
        if free[i] or unknown[i]:
            pending = b""
            if unknown[i]:
                yield i, i, ""
            continue
        first = first if pending else i
        piece = _text(pending + surface)
        if piece is None and pending:
            first, pending, piece = i, b"", _text(surface)
        if piece == "":
            pending += surface
            continue
        pending = b""
        if piece is not None:
            yield first, i, piece


def _text(data: bytes) -> str | None:
    """Data as text, empty if its last character is not whole, ``None`` if it is no text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return "" if error.reason == "unexpected end of data" else None


class _Cursor:
    """A cursor over a text, the places found so far, and the unknown tokens that wait for the next place."""

    def __init__(self, text: str, count: int) -> None:
        self.text = text
        self.waiting: list[int] = []
        self.starts = np.zeros(count, np.int64)
        self.ends = np.zeros(count, np.int64)
        self.free = np.ones(count, np.bool_)
        pieces = [fold(character) for character in text]
        self.folded = "".join(pieces)
        self.source = [n for n, piece in enumerate(pieces) for _ in piece]
        # Where this is in the text, and in the folded text, which may be within a character.
        self.cursor = self.folded_cursor = 0

    def move_to(self, first: int, last: int, piece: str, following: str, starts_word: bool) -> None:
        """Find a run of tokens and go there; leave it without a place if it is not found."""
        if self.waiting:
            match = self._search(piece, starts_word)
        else:
            match = self._here(piece, following) or self._ahead(piece, self.folded_cursor, _LOOKAHEAD)
        if match is None:
            return
        start, end, after = match
        self._fill_waiting(start)
        self._set(first, last, start, end)
        self.cursor, self.folded_cursor = max(end, self.cursor), after

    def _fill_waiting(self, end: int, at_end: bool = False) -> None:
        """Give the text from the cursor to a place to the unknown tokens that wait."""
        if not self.waiting:
            return
        splits = [[m.span() for m in split.finditer(self.text, self.cursor, end)] for split in _SPLITS]
        count = len(self.waiting)
        best = next((pieces for pieces in splits if len(pieces) == count), splits[1] or splits[-1])
        for n, (i, (start, stop)) in enumerate(zip(self.waiting, best, strict=False)):
            takes_rest = n == count - 1 and not at_end
            self._set(i, i, start, best[-1][1] if takes_rest else stop)
        self.waiting = []

    def _set(self, first: int, last: int, start: int, end: int) -> None:
        self.starts[first : last + 1] = start
        self.ends[first : last + 1] = end
        self.free[first : last + 1] = False

    def _here(self, piece: str, following: str) -> tuple[int, int, int] | None:
        """Place of a piece at the cursor, white space aside: start, end, and folded cursor after it."""
        wanted = _folded(piece)
        inside = self.folded_cursor < len(self.source) and self.source[self.folded_cursor] < self.cursor
        if inside and wanted and self.folded.startswith(wanted, self.folded_cursor):
            return self._at(self.folded_cursor, wanted)
        core = piece.strip(" ")
        for start, spelled in ((self.cursor, piece), (self._after_space(), core)):
            if spelled and self.text.startswith(spelled, start):
                return self._spelled(start, spelled)
        if not core:  # spaces alone: a mark before what follows, or white space of another kind
            mark = bool(following) and self.text.startswith(following, self.cursor)
            end = self.cursor if mark else min(self.cursor + len(piece), self._after_space())
            return self.cursor, end, self.folded_cursor
        return self._ahead(piece, self.folded_cursor, 0)

    def _search(self, piece: str, starts_word: bool) -> tuple[int, int, int] | None:
        """Place of a piece after at least one character for the unknown tokens that wait."""
        low = self._after_space() + 1
        for wanted in dict.fromkeys((piece, piece.strip(" "))):
            start = self.text.find(wanted, low, low + _LOOKAHEAD_UNKNOWN) if wanted else -1
            while start > 0 and starts_word and self.text[start].isalnum() and self.text[start - 1].isalnum():
                start = self.text.find(wanted, start + 1, low + _LOOKAHEAD_UNKNOWN)
            if start >= 0:
                return self._spelled(start, wanted)
        return self._ahead(piece, bisect_left(self.source, low), _LOOKAHEAD_UNKNOWN)

    def _ahead(self, piece: str, begin: int, window: int) -> tuple[int, int, int] | None:
        """Place of a piece in the folded text, at most a window away."""
        wanted = _folded(piece)
        at = self.folded.find(wanted, begin, begin + window + len(wanted)) if wanted else -1
        return None if at < 0 else self._at(at, wanted)

    def _at(self, at: int, wanted: str) -> tuple[int, int, int]:
        after = at + len(wanted)
        return self.source[at], self.source[after - 1] + 1, after

    def _spelled(self, start: int, spelled: str) -> tuple[int, int, int]:
        end = start + len(spelled)
        return start, end, bisect_left(self.source, end)

    def _after_space(self) -> int:
        start = self.cursor
        while start < len(self.text) and self.text[start].isspace():
            start += 1
        return start


def _folded(piece: str) -> str:
    return "".join(map(fold, piece))
