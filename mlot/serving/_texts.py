"""Lists of tokens that are given as text, with their bytes or ids where a server tells them."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlot import _checks
from mlot.serving._entries import SENTINEL, Described, SkipCounts, probability, without_described
from mlot.serving._lookup import AMBIGUOUS, UNKNOWN, Lookup
from mlot.serving._values import (
    MOST_TOKENS,
    attribute,
    is_list,
    list_of,
    logarithm,
    number,
    raw_bytes,
    shown,
    token_id,
)

_TOKEN_ID = re.compile(r"token_id:(\d{1,18})")
_FIRST = operator.itemgetter(0)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: What names a token: its id, its own bytes, or a text that may be another's, too.
Key = int | bytes | str


@dataclass
class Row:
    """What is listed for one token.

    Attributes:
        entries: negative log-probability and key of each.
        described: the key of the token itself, ``None`` if it is not told.
        inside: whether what comes before ends within a character, so that texts may be of several tokens.
        keyed: whether texts are keys, of which equal ones cannot be told.
        exact: whether bytes show what the text does not.
    """

    entries: list[tuple[float, Any]]
    described: Key | None = None
    inside: bool = False
    keyed: bool = False
    exact: bool = False


def described_row(described: Any, names: Sequence[str], where: str) -> Row:
    """The list of one token: fields of it, and the first of some fields that is a list of tokens."""
    rows = next((value for name in names if is_list(value := attribute(described, name))), None)
    listed = list_of(rows, f"{where}: expected a list {names[0]}")
    row = Row([], _described_key(described, where))
    add = row.entries.append
    for each in listed:
        if type(each) is dict:  # the usual cases, without a call
            get = each.get
            logprob, token, i = get("logprob"), get("token"), get("id")
            if type(logprob) is float and logprob == logprob and type(token) is str:
                if i is None:
                    raw, own = get("bytes"), _ENCODED[token]
                    if own and (raw is None or raw == own) and get("token_id") is None:
                        add((-logprob, token))
                        continue
                elif type(i) is int and 0 <= i < 2**63:
                    add((-logprob, i))
                    continue
        entry = _entry(each, where)
        row.exact = row.exact or type(entry[1]) is bytes
        add(entry)
    return row


class _Encoded(dict[str, list[int]]):
    """Bytes of texts that are only texts, as lists; an empty list for others."""

    def __missing__(self, token: str) -> list[int]:
        plain = token and token[:9] != "token_id:"
        encoded = list(token.encode("utf-8", "surrogatepass")) if plain else []
        if len(self) < 1 << 18:
            self[token] = encoded
        return encoded


_ENCODED = _Encoded()


def keyed_row(row: Any, described: Any, where: str) -> Row | None:
    """The list of one token as texts mapped to log-probabilities."""
    if row is None:
        return None
    if not hasattr(row, "items"):
        raise ValueError(f"{where}: expected None or text mapped to log-probabilities, got {shown(row)}")
    entries: list[tuple[float, Any]] = [
        (-(p if type(p) is float and p == p else number(p, where)), _text_key(text))
        for text, p in row.items()
    ]
    return Row(entries, _text_key(described) if isinstance(described, str) else None, keyed=True)


def mark_inside(rows: Iterable[Row | None]) -> None:
    """Mark the lists that follow a token which ends within a character.

    Some servers write what a token completes: the last byte of a character as the whole of it.
    """
    inside = False
    for row in rows:
        if row is None:
            inside = False
            continue
        row.inside = inside
        text = row.described
        inside = isinstance(text, str) and (not text or text.endswith(_REPLACEMENT))


def _getter(value: Any) -> Callable[[str], Any]:
    return value.get if type(value) is dict else lambda name: attribute(value, name)


def _entry(each: Any, where: str) -> tuple[float, Key]:
    get = _getter(each)
    logprob = get("logprob")
    if type(logprob) is not float or logprob != logprob:
        probability = get("prob") if logprob is None else None
        logprob = number(logprob, where) if probability is None else logarithm(probability, where)
    return -logprob, _key(get, where)


def _key(get: Callable[[str], Any], where: str) -> Key:
    i = get("id")
    if i is None:
        i = get("token_id")
    if i is not None:
        return i if type(i) is int and 0 <= i < 2**63 else token_id(i, where)
    token, raw = get("token"), get("bytes")
    if token is None:
        token = get("tok_str")
    if not isinstance(token, str):
        raise ValueError(f"{where}: expected a token as text, got {shown(token)}")
    if token[:9] == "token_id:" and (match := _TOKEN_ID.fullmatch(token)):
        return int(match[1])
    if raw is None:
        return token
    try:
        given = bytes(raw) if type(raw) is list else raw_bytes(raw, where)
    except (TypeError, ValueError):
        given = raw_bytes(raw, where)
    # Bytes that only repeat the text say no more than it does.
    if not given or given == token.encode("utf-8", "surrogatepass"):
        return token
    return given if _fits(given, token) else _REPLACEMENT


def _fits(given: bytes, token: str) -> bool:
    """Whether bytes may be those of a token with another text; some servers give code points for bytes."""
    if not token or _REPLACEMENT in token or "\\x" in token:
        return True
    try:
        given.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text_key(text: Any) -> int | str:
    match = _TOKEN_ID.fullmatch(text) if isinstance(text, str) and text[:9] == "token_id:" else None
    return str(text) if match is None else int(match[1])


def _described_key(described: Any, where: str) -> Key | None:
    """What names the token described; ``None`` where the response does not tell it."""
    get = _getter(described)
    if get("token") is None and get("id") is None:
        content = get("content")  # of older servers
        return content if isinstance(content, str) else None
    return _key(get, where)


def finder_of(described: Iterable[Sequence[Row | None]], lookup: Lookup) -> Mapping[str, int]:
    """The ids of one response's texts, by what they show of how a server writes tokens."""
    rows = [row for each in described for row in each if row is not None]
    exact = any(row.exact for row in rows)
    texts = {key for row in rows if not row.inside for _, key in row.entries if type(key) is str}
    return lookup.finder(texts, exact=exact)


def sequence_of(
    rows: Sequence[Row | None],
    before: int,
    ids_of: Mapping[str, int],
    lookup: Lookup,
    k: int | None,
    skipped: SkipCounts,
) -> Described:
    """Entries of each token, up to the first that has not exactly one id.

    What comes after it is left out as well: a token that is absent must be no likelier than one that is kept.
    """
    sequence = Described(before)
    for row in rows:
        if row is None:
            sequence.counts.append(0)
            continue
        entries = sorted(row.entries, key=_FIRST)
        given = len(entries)
        while entries and entries[-1][0] >= -SENTINEL:
            entries.pop()
        if entries and row.described is not None:
            entries = without_described(entries, row.described)
        collided = row.keyed and any(type(x) is str and ids_of[x] == AMBIGUOUS for _, x in row.entries)
        if collided:
            entries = _sure(entries, row.entries)
        if k is not None:
            del entries[k:]
        keys = [each[1] for each in entries]
        repeated: Collection[Key] = ()
        if len(set(keys)) < len(keys):
            repeated = {key for key, count in Counter(keys).items() if count > 1 and type(key) is not int}
        ids: dict[int, None] = {}
        failed = AMBIGUOUS if collided else None
        for key in keys:
            i = key if type(key) is int else ids_of[key] if type(key) is str else lookup.find_bytes(key)
            if row.inside and type(key) is str and key[:1] > "\x7f":
                i = AMBIGUOUS
            if i < 0 or i in ids or key in repeated:
                failed = UNKNOWN if i == UNKNOWN else AMBIGUOUS
                break
            ids[i] = None
        if failed is not None:
            skipped.unknown += failed == UNKNOWN
            skipped.ambiguous += failed == AMBIGUOUS
            given = max(given - 1, len(ids))  # the entry that is counted there
        skipped.beyond += given - len(ids)
        sequence.add(list(ids), [-each[0] for each in entries[: len(ids)]])
    return sequence


def _sure(entries: list[tuple[float, Any]], whole: Sequence[tuple[float, Any]]) -> list[tuple[float, Any]]:
    """What is sure to be likeliest where a key may have taken the place of another token's.

    Of two tokens with one text a mapping keeps one, and the other, which it lost, may be the likelier.
    """
    rest = 1 - sum(probability(each[0]) for each in whole)
    return [each for each in entries if probability(each[0]) >= rest]


def sequence_lengths(value: Any, count: int) -> list[int]:
    """Tokens before the first described one of each sequence, as the caller tells them."""
    lengths = list(value) if is_list(value) else [value] * count
    for each in lengths:
        _checks.count("prompt_lengths", each, least=0)
        if each > MOST_TOKENS:
            raise ValueError(f"prompt_lengths: expected at most {MOST_TOKENS}, got {each}")
    if len(lengths) != count:
        raise ValueError(f"prompt_lengths: expected one for each of {count} choices, got {len(lengths)}")
    return lengths
