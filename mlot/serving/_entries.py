"""What the responses of inference servers have in common: entries of positions, and tokens given as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mlot._typing import Tail
from mlot.topk import TopKLogprobs

#: What stands for "very unlikely" where a format has no minus infinity.
SENTINEL = -9999.0
_TOKEN_ID = re.compile(r"token_id:(\d{1,18})")
_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


class Entry(NamedTuple):
    """One token that a server named for a position."""

    id: int
    logprob: float
    rank: int | None = None


@dataclass
class SkipCounts:
    """What was left out while responses were read."""

    beyond: int = 0
    unknown: int = 0
    ambiguous: int = 0


#: Entries that describe each token of a sequence, ``None`` where there are none.
Described = Sequence[Sequence[Entry] | None]


def attribute(value: Any, name: str) -> Any:
    """A field of a parsed response, whether it is an object or a dictionary; ``None`` if it lacks it."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def is_list(value: Any) -> bool:
    """Whether a value is a list or a tuple, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def number(value: Any, where: str) -> float:
    """A log-probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: expected a log-probability, got {type(value).__name__} {value!r}")
    try:
        logprob = float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: expected a log-probability, got an integer beyond all floats") from error
    if math.isnan(logprob):
        raise ValueError(f"{where}: expected a log-probability, got NaN")
    return logprob


def token_id(value: Any, where: str) -> int:
    """A token's id, which JSON keys give as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{where}: expected a token id, got {value!r}")
    return value


def likeliest(entries: Iterable[Entry], k: int | None, skipped: SkipCounts) -> list[Entry]:
    """Entries that are the most likely of their position, in descending order.

    Servers add the token that stands there, however unlikely. It is told by its rank, or by being beyond the
    k that were asked for; what is marked as very unlikely tells nothing. Leaving out the least likely is
    always safe.
    """
    given = list(entries)
    kept = [each for each in given if each.logprob > SENTINEL]
    kept.sort(key=lambda each: (-each.logprob, each.id))
    if k is not None:
        kept = kept[:k]
    while kept and (kept[-1].rank or 0) > len(kept):
        kept.pop()
    skipped.beyond += len(given) - len(kept)
    return kept


def assemble(
    described: Sequence[Described],
    *,
    vocab_size: int | None,
    tail: Tail,
    temperature: float,
    length: int | None,
    padding_side: str,
    backend: str | None,
) -> TopKLogprobs:
    """A source of sequences in which the entries that describe token t + 1 stand at position t.

    Raises:
        ValueError: a sequence is longer than ``length``.
    """
    longest = max((len(each) for each in described), default=0)
    if length is not None and longest > length:
        raise ValueError(
            f"length: expected at least {longest}, the tokens of the longest sequence, got {length}"
        )
    width = longest if length is None else length
    most = max((len(entries or ()) for each in described for entries in each[1:]), default=0)
    ids = np.full((len(described), width, most), -1, dtype=np.int64)
    logprobs = np.full(ids.shape, -np.inf)
    for n, sequence in enumerate(described):
        start = width - len(sequence) if padding_side == "left" else 0
        for t, entries in enumerate(sequence[1:]):
            for j, entry in enumerate(entries or ()):
                ids[n, start + t, j], logprobs[n, start + t, j] = entry.id, entry.logprob
    if backend not in (None, "numpy"):
        from mlot.backends import get_backend

        xp = get_backend(str(backend))
        return TopKLogprobs(xp.from_numpy(ids), xp.from_numpy(logprobs), vocab_size, tail, temperature)
    return TopKLogprobs(ids, logprobs, vocab_size, tail, temperature)


@dataclass(frozen=True)
class Lookup:
    """Ids of tokens that are given as text or bytes."""

    by_bytes: Mapping[bytes, tuple[int, ...]] = field(default_factory=dict)
    by_text: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    opaque: bool = False  #: whether nobody knows what bytes the vocabulary's spelling stands for

    @staticmethod
    def of(vocabulary: Any) -> Lookup:
        """Make one from a tokenizer, or from a mapping of text or bytes to ids.

        Raises:
            TypeError: ``vocabulary`` is neither.
        """
        if vocabulary is None:
            return Lookup()
        by_bytes: dict[bytes, tuple[int, ...]] = {}
        by_text: dict[str, tuple[int, ...]] = {}
        opaque = False
        for token, surface, i in _tokens(vocabulary):
            opaque |= surface is None
            if surface is not None:
                by_bytes[surface] = (*by_bytes.get(surface, ()), i)
            if isinstance(token, str):
                by_text[token] = (*by_text.get(token, ()), i)
        return Lookup(by_bytes, by_text, opaque)

    def find(self, token: str, raw: bytes | None) -> tuple[int, ...]:
        """Ids that a token can have: none if it is unknown, several if it is ambiguous."""
        if match := _TOKEN_ID.fullmatch(token):
            return (int(match[1]),)
        if raw is None:
            escaped = _ESCAPED.fullmatch(token)
            raw = (
                bytes.fromhex(escaped[1].replace("\\x", "")) if escaped else token.encode("utf-8", "replace")
            )
        spelled, by_bytes = self.by_text.get(token, ()), self.by_bytes.get(raw, ())
        if len(by_bytes) > 1 and len(spelled) == 1 and spelled[0] in by_bytes:
            return spelled
        # The same letters may spell other bytes, as in byte-level vocabularies.
        return by_bytes or (spelled if self.opaque else ())


def _tokens(vocabulary: Any) -> Iterable[tuple[str | bytes, bytes | None, int]]:
    """Tokens of a vocabulary as they are spelled there, the bytes they stand for if known, and their ids."""
    if isinstance(vocabulary, Mapping):
        for token, i in vocabulary.items():
            if not isinstance(token, str | bytes) or isinstance(i, bool) or not isinstance(i, int):
                raise TypeError(
                    f"vocabulary: expected text or bytes mapped to ids, got {token!r} mapped to {i!r}"
                )
            yield token, token if isinstance(token, bytes) else token.encode("utf-8", "replace"), i
        return
    from mlot.align._reader import Reader

    if not hasattr(vocabulary, "get_vocab"):
        raise TypeError(
            "vocabulary: expected a tokenizer, or a mapping of text or bytes to ids, "
            f"got {type(vocabulary).__name__}"
        )
    reader = Reader(vocabulary)
    for token, i in vocabulary.get_vocab().items():
        if i in reader.added or i in reader.special:
            yield token, str(token).encode(), i
        else:
            yield token, None if reader.scheme is None else reader.scheme.surface(token), i


def resolved(
    tokens: Iterable[tuple[str, bytes | None, float]], lookup: Lookup, skipped: SkipCounts
) -> list[Entry]:
    """Entries of one position, up to the first that has not exactly one id.

    What comes after it is left out as well: a token that is absent must be no likelier than one that is kept.
    """
    ordered = sorted(tokens, key=lambda each: -each[2])
    entries: list[Entry] = []
    seen: set[int] = set()
    for n, (token, raw, logprob) in enumerate(ordered):
        if logprob <= SENTINEL:
            skipped.beyond += len(ordered) - n
            break
        matches = lookup.find(token, raw)
        if len(matches) != 1 or matches[0] in seen:
            if matches:
                skipped.ambiguous += 1
            else:
                skipped.unknown += 1
            skipped.beyond += len(ordered) - n - 1
            break
        seen.add(matches[0])
        entries.append(Entry(matches[0], logprob))
    return entries
