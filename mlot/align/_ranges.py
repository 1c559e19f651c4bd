"""byte_ranges: the bytes of a text that each of its tokens covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mlot._checks import flag
from mlot.align import _locate, _match
from mlot.align._reader import Reader
from mlot.align._scheme import Scheme, plausible
from mlot.align._text_tokens import TextTokens, boundaries
from mlot.align._tokens import Booleans, Integers, TokenBytes, integers


def byte_ranges(
    tokenizer: Any,
    text: str,
    *,
    ids: Any = None,
    encoding: Any = None,
    add_special_tokens: bool = True,
) -> TokenBytes:
    """Find the bytes of a text that each of its tokens covers.

    Ranges are in the bytes of ``text`` as given, before the tokenizer normalises it.

    - Where the tokens' own bytes, joined, are the text, ranges are exact to the byte, characters split over
      tokens included. This is so for byte-level BPE, and for SentencePiece with or without byte fallback. A
      space that the tokenizer puts before a word and that is not in the text covers no byte.
    - Where the tokenizer changes the text (case, accents, compatibility forms, dropped white space), ranges
      come from its offsets, and without offsets from looking for the tokens in the text. Of several tokens
      made of the same changed characters, the first covers them and the others are empty after them.
      Characters that left no token are counted with the token before, white space with none.
    - Tokens from no text (BOS, EOS, padding) are empty at the place that the tokens before them have reached.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, a tokenizer of transformers, or any object that has
            ``convert_ids_to_tokens`` (and ``encode``, unless ``ids`` are given).
        text: the text.
        ids: its token ids, ``(T,)``, where the text has been tokenized already; they may be sampled, cut off
            or framed by special tokens. ``None`` tokenizes here.
        encoding: instead of ``ids``, a ``tokenizers.Encoding`` of the text, which has the offsets too:
            ``tokenizer(text)[0]`` of a fast tokenizer of transformers.
        add_special_tokens: whether tokenizing here adds BOS and the like.

    Returns:
        `TokenBytes`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``text`` is not valid Unicode, ``ids`` are no row of ids, or come with an ``encoding``.

    >>> from types import SimpleNamespace
    >>> words = ["[CLS]", "to", "##morrow", "never"]
    >>> tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [words[i] for i in ids])
    >>> ranges = byte_ranges(tokenizer, "Tomorrow never", ids=[0, 1, 2, 3])
    >>> ranges.starts, ranges.ends, ranges.exact
    (array([0, 0, 2, 9]), array([ 0,  2,  8, 14]), False)
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {type(text).__name__}")
    flag("add_special_tokens", add_special_tokens)
    if ids is not None and encoding is not None:
        raise ValueError("ids: expected None beside an encoding, which has ids, got both")
    # dir, since asking an encoding for its offsets makes a list of them.
    if encoding is not None and not {"ids", "offsets", "special_tokens_mask"} <= set(dir(encoding)):
        raise TypeError(f"encoding: expected a tokenizers.Encoding, got {type(encoding).__name__}")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text: expected valid Unicode, got a lone surrogate at {error.start}") from None
    reader = Reader.of(tokenizer)
    if ids is None and encoding is None:
        made = reader.encode(text, add_special_tokens)
        ids, encoding = (None, made) if reader.fast else (made, None)
    checked = integers("ids", encoding.ids if ids is None else ids)
    if (checked < 0).any():
        raise ValueError(f"ids: expected token ids >= 0, got {checked.min()}")
    return _Job(reader, text, data, checked, encoding).run()


def ranges_of_texts(
    tokenizer: Any, texts: Sequence[str], ids: Sequence[Sequence[int]], encodings: Sequence[Any] | None
) -> TextTokens:
    """What `byte_ranges` says of several texts.

    Texts that their tokens' bytes spell are compared with these; the others are looked at one by one.

    Args:
        tokenizer: as of `byte_ranges`.
        texts: the texts, valid Unicode.
        ids: their token ids.
        encodings: their encodings, where the tokenizer makes them.
    """
    reader = Reader.of(tokenizer)
    order = list(chain.from_iterable(ids))
    flat, counts = np.array(order, np.int64), np.fromiter(map(len, ids), np.int64, len(ids))
    data = [text.encode() for text in texts]
    totals = np.fromiter(map(len, data), np.int64, len(data))
    starts, ends = np.zeros_like(flat), np.zeros_like(flat)
    special = np.zeros(len(flat), np.bool_)
    if not reader.special.isdisjoint(order):
        special = np.isin(flat, list(reader.special))
    tokens = TextTokens(flat, starts, ends, special, counts, totals)
    scheme = None if encodings is None else reader.scheme
    others: Sequence[int] = range(len(texts))
    if scheme is not None and encodings is not None:
        table = reader.spelled(scheme, order)
        surfaces = list(map(table.__getitem__, order))
        before = boundaries(np.fromiter(map(len, surfaces), np.int64, len(surfaces)))
        joined, cuts = b"".join(surfaces), before[tokens.offsets].tolist()
        spaces, others = [False] * len(texts), []
        for n, (text, encoding) in enumerate(zip(data, encodings, strict=True)):
            piece = joined[cuts[n] : cuts[n + 1]]
            if piece != text:
                # A space that the tokenizer put there; after added tokens, there may be more of them.
                spaces[n] = piece[:1] == b" " and piece[1:] == text and reader.opening.isdisjoint(ids[n])
            if not (piece == text or spaces[n]) or 1 in encoding.special_tokens_mask:
                others.append(n)
        shift = (before[tokens.offsets[:-1]] + spaces)[tokens.owner]
        np.maximum(before[:-1] - shift, 0, out=starts)
        np.maximum(before[1:] - shift, 0, out=ends)
    for n in others:
        encoding = None if encodings is None else encodings[n]
        mine = slice(tokens.offsets[n], tokens.offsets[n + 1])
        made = _Job(reader, texts[n], data[n], flat[mine], encoding).run()
        starts[mine], ends[mine], special[mine] = made.starts, made.ends, made.special
    return tokens


@dataclass(frozen=True)
class _CharacterRanges:
    """Hints in characters; whether tokens go to the end of the text; whether hints are the tokenizer's."""

    starts: Integers
    ends: Integers
    free: Booleans
    closed: bool
    sure: bool


class _Job:
    """One text and its tokens on the way to ranges."""

    def __init__(self, reader: Reader, text: str, data: bytes, ids: Integers, encoding: Any) -> None:
        self.reader, self.text, self.data, self.ids = reader, text, data, ids
        self.order: list[int] = ids.tolist()
        self.unique = list(dict.fromkeys(self.order))
        self.strings = dict(zip(self.unique, reader.tokens(self.unique), strict=True))
        self.encoding = encoding
        if encoding is None:
            self.inserted = self._unspelled()
        else:
            self.inserted = np.frombuffer(bytes(encoding.special_tokens_mask), np.bool_)
        self.special = self._where(reader.special) | self.inserted
        self.unknown = self._where(reader.unknown) & ~self.inserted

    def run(self) -> TokenBytes:
        """Ranges under the spelling that explains the text best."""
        schemes = plausible(self._ordinary()) if self.reader.scheme is None else [self.reader.scheme]
        spellings = [(scheme, self._read_text(scheme), self._surfaces(scheme)) for scheme in schemes]
        for _, text, surfaces in spellings:
            cuts = _locate.tile(text.encode(), surfaces, self._opens)
            if cuts is not None:
                return self._result(text, *cuts, True)
        known = self._known_ranges() if self.reader.fast else None
        if known is not None:
            self.special = self.special | known.free
        candidates = []
        for scheme, text, surfaces in spellings:
            places, score = self._searched(scheme, text, surfaces) if known is None else (known, 0)
            starts, ends, exact = self._resolved(text, surfaces, places)
            candidates.append((exact, score, text, starts, ends))
        exact, _, text, starts, ends = max(candidates, key=lambda candidate: candidate[:2])
        return self._result(text, starts, ends, exact)

    def _opens(self) -> Integers:
        """Tokens after one that is added or special: parts of the text begin there."""
        opens: Integers = np.flatnonzero(self._where(self.reader.added, self.reader.special)[:-1]) + 1
        return opens

    def _read_text(self, scheme: Scheme) -> str:
        """The text with its own marks for spaces read as spaces, as the tokenizer does."""
        return self.text.replace(scheme.space, " ") if scheme.space else self.text

    def _resolved(
        self, text: str, surfaces: list[bytes], ranges: _CharacterRanges
    ) -> tuple[Integers, Integers, bool]:
        for n in np.flatnonzero(ranges.free).tolist():
            surfaces[n] = b""
        data = text.encode()
        at = _locate.char_starts(data)
        low, high = (at[np.clip(side, 0, len(at) - 1)] for side in (ranges.starts, ranges.ends))
        return _locate.resolve(
            data, surfaces, low, high, ranges.free, self.unknown, closed=ranges.closed, sure=ranges.sure
        )

    def _result(self, text: str, starts: Integers, ends: Integers, exact: bool) -> TokenBytes:
        """Ranges in the bytes of the text as given."""
        if text != self.text:
            read, given = _locate.char_starts(text.encode()), _locate.char_starts(self.data)
            starts, ends = (
                given[(c := np.searchsorted(read, side, "right") - 1)] + side - read[c]
                for side in (starts, ends)
            )
        return TokenBytes(self.ids, starts, ends, self.special, len(self.data), exact)

    def _where(self, *wanted: Container[int]) -> Booleans:
        """Tokens whose ids are in one of some sets."""
        hits = [i for ids in wanted for i in self.unique if i in ids]
        return np.isin(self.ids, hits) if hits else np.zeros(len(self.order), np.bool_)

    def _ordinary(self) -> list[str | bytes | None]:
        skipped = self.reader.special | self.reader.unknown | self.reader.added.keys()
        return [token for i, token in self.strings.items() if i not in skipped]

    def _surfaces(self, scheme: Scheme) -> list[bytes]:
        """Bytes that each token stands for; empty for tokens that are not in the text."""
        table = self.reader.surfaces(scheme, self.strings)
        surfaces = list(map(table.__getitem__, self.order))
        for n in np.flatnonzero(self.inserted).tolist():
            surfaces[n] = b""
        return surfaces

    def _known_ranges(self) -> _CharacterRanges | None:
        """Hints from the offsets of the encoding, or of a new one that has the same tokens."""
        nothing = np.zeros_like(self.inserted)
        ranges = None if self.encoding is None else self._offsets(self.encoding, nothing)
        if ranges is not None:
            return ranges
        for add_special_tokens, outside in ((False, self.inserted), (True, nothing)):
            encoding = self.reader.encode(self.text, add_special_tokens)
            inside = self.ids[~outside].tolist()
            if encoding.ids[: len(inside)] == inside:
                return self._offsets(encoding, outside)
        return None

    def _offsets(self, encoding: Any, outside: Booleans) -> _CharacterRanges | None:
        """Hints from an encoding of all tokens but some; ``None`` if it was made without offsets."""
        inside = np.flatnonzero(~outside)
        count = len(inside)
        offsets = np.fromiter(chain.from_iterable(encoding.offsets[:count]), np.int64, 2 * count)
        mask = np.frombuffer(bytes(encoding.special_tokens_mask), np.bool_)[:count]
        if self.data and not offsets.any() and not mask.all():
            return None
        starts, ends, free = np.zeros_like(self.ids), np.zeros_like(self.ids), outside.copy()
        starts[inside], ends[inside], free[inside] = offsets[0::2], offsets[1::2], mask
        closed = count == len(encoding.ids) and not getattr(encoding, "overflowing", None)
        return _CharacterRanges(starts, ends, free, closed, sure=True)

    def _searched(self, scheme: Scheme, text: str, surfaces: Sequence[bytes]) -> tuple[_CharacterRanges, int]:
        """Hints from looking for the tokens in the text, and how many were found."""
        starting = {i for i, token in self.strings.items() if token is not None and scheme.starts_word(token)}
        starts_word = self._where(starting - set(self.reader.added))
        hints = _match.hints(text, surfaces, self.inserted, self.unknown, starts_word)
        return _CharacterRanges(hints.starts, hints.ends, hints.free, closed=False, sure=False), hints.located

    def _unspelled(self) -> Booleans:
        """Special tokens that the text does not spell: more of an id than it has, first those at its ends."""
        silent = self.reader.special | self.reader.padding
        inserted = np.zeros(len(self.order), np.bool_)
        counts = Counter(i for i in self.order if i in silent)
        contents = {i: self.reader.added.get(i, self.strings[i]) for i in counts}
        named = {i: content for i, content in contents.items() if isinstance(content, str) and content}
        opening = _opening(self.text, named)
        ordinary = np.flatnonzero(~self._where(silent))
        # Where all are special, one may open the text, and the others close it.
        first = ordinary[0] if len(ordinary) else 1
        for i, count in counts.items():
            positions = np.flatnonzero(self.ids == i)
            if i in self.reader.padding:
                inserted[positions] = self._pads(positions)
                continue
            spelled = self.text.count(named[i]) if i in named else 0
            extra = max(count - spelled, 0)
            leading = min(extra, max(int((positions < first).sum()) - opening[i], 0))
            inserted[positions[:leading]] = True
            inserted[positions[count - (extra - leading) :]] = True
        return inserted

    def _pads(self, positions: Integers) -> Booleans:
        """Which of the tokens that pad, and are unknown text elsewhere, lie outside of the text's own."""
        for framed in (True, False) if hasattr(self.reader.tokenizer, "encode") else ():
            made = self.reader.encode(self.text, framed)
            own = list(getattr(made, "ids", made))
            for low in range(len(self.order) - len(own) + 1):
                if self.order[low : low + len(own)] == own:
                    return (positions < low) | (positions >= low + len(own))
        known = np.flatnonzero(~self._where(self.reader.special, self.reader.padding))
        return (positions < known[0]) | (positions > known[-1]) if len(known) else positions >= 0


def _opening(text: str, contents: dict[int, str]) -> Counter[int]:
    """Special tokens, by their strings, that a text begins with."""
    opening: Counter[int] = Counter()
    at = 0
    ordered = sorted(contents.items(), key=lambda item: -len(item[1]))
    while (i := next((i for i, content in ordered if text.startswith(content, at)), None)) is not None:
        opening[i] += 1
        at += len(contents[i])
    return opening
