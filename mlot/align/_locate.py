"""Byte ranges from token bytes and hints about their place; whole arrays at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mlot.align._match import fold
from mlot.align._tokens import Booleans, Integers

_WHITE = np.zeros(256, dtype=np.bool_)
_WHITE[list(b" \t\n\r\v\f")] = True


def char_starts(data: bytes) -> Integers:
    """First byte of each character of UTF-8 data, and the number of bytes."""
    array = np.frombuffer(data, np.uint8)
    return np.append(np.flatnonzero((array & 0xC0) != 0x80), len(data)).astype(np.int64)


def tile(
    data: bytes, surfaces: Sequence[bytes], opens: Callable[[], Integers]
) -> tuple[Integers, Integers] | None:
    """Ranges of tokens whose bytes, joined, are the data, but for a space put before a part; else ``None``.

    Args:
        data: the text.
        surfaces: bytes of each token.
        opens: says which tokens a part of the text begins with, besides the first.
    """
    joined = b"".join(surfaces)
    lengths = _lengths(surfaces)
    before = np.concatenate([[0], np.cumsum(lengths)])
    if joined == data:
        return before[:-1], before[1:]
    bounds = [0, *opens().tolist(), len(surfaces)]
    at, floors, shifts = 0, [], []
    for low, high in pairwise(before[bounds].tolist()):
        piece = joined[low:high]
        added = 0 if data.startswith(piece, at) else 1
        if added and not (piece[:1] == b" " and data.startswith(piece[1:], at)):
            return None
        floors.append(at)
        shifts.append(low + added - at)
        at += len(piece) - added
    if at != len(data):
        return None
    sizes = np.diff(bounds)
    floor, shift = np.repeat(floors, sizes), np.repeat(shifts, sizes)
    return np.maximum(before[:-1] - shift, floor), np.maximum(before[1:] - shift, floor)


def resolve(
    data: bytes,
    surfaces: Sequence[bytes],
    starts: Integers,
    ends: Integers,
    free: Booleans,
    unknown: Booleans,
    *,
    closed: bool,
    sure: bool,
) -> tuple[Integers, Integers, bool]:
    """Ranges from hints: byte ranges of whole characters that may overlap, lack spaces or leave gaps.

    Tokens that share characters form a cluster. Where a cluster's bytes are those of the text, it is cut to
    the byte. Elsewhere the text was changed: the first token covers the characters and the others are empty
    after them, so that the last one marks the place where the characters have been read.

    Args:
        data: the text.
        surfaces: bytes of each token, empty where unknown.
        starts, ends: hints, ``(T,)``.
        free: tokens that have no place in the text; their surfaces are empty.
        unknown: tokens that stand for whatever is at their place.
        closed: whether the tokens go to the end of the text.
        sure: whether a token that shares its characters with no other one is where its hint says.

    Returns:
        starts, ends, and whether every byte, up to where the tokens go, is in one that spells it or is sure.
    """
    n = len(data)
    if not len(surfaces):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), n == 0
    starts = np.clip(starts, 0, n)
    ends = np.clip(ends, starts, n)
    joined = np.frombuffer(b"".join(surfaces), np.uint8)
    lengths = _lengths(surfaces)
    starts, ends = _restore_spaces(data, joined, lengths, starts, ends, free)
    # No token begins after a later one does.
    starts = np.minimum.accumulate(np.where(free, n, starts)[::-1])[::-1]
    ends = _close_gaps(data, starts, ends, free, closed)
    reach, before = _reach(ends, free)
    starts, ends = np.where(free, reach, starts), np.where(free, reach, ends)
    starts, ends, certain = _cut_clusters(
        data, joined, lengths, starts, reach, starts >= before, unknown, sure
    )
    whole = ends[-1] == n or (sure and not closed)
    tiles = starts[0] == 0 and whole and np.array_equal(starts[1:], ends[:-1])
    return starts, ends, bool(tiles and certain)


def _lengths(surfaces: Sequence[bytes]) -> Integers:
    return np.fromiter(map(len, surfaces), np.int64, len(surfaces))


def _reach(ends: Integers, free: Booleans) -> tuple[Integers, Integers]:
    """Byte that the tokens up to each one, and those before it, have reached."""
    reach = np.maximum.accumulate(np.where(free, 0, ends))
    return reach, np.concatenate([[0], reach[:-1]])


def _runs(mask: Booleans) -> tuple[Integers, Integers]:
    """Number of true values in a row that end just before, and that begin at, each of the len + 1 places."""
    index = np.arange(len(mask) + 1)
    last_false = np.maximum.accumulate(np.concatenate([[0], np.where(mask, 0, index[1:])]))
    upward = np.append(np.where(mask, len(mask), index[:-1]), len(mask))
    next_false = np.minimum.accumulate(upward[::-1])[::-1]
    return index - last_false, next_false - index


def _restore_spaces(
    data: bytes,
    joined: NDArray[np.uint8],
    lengths: Integers,
    starts: Integers,
    ends: Integers,
    free: Booleans,
) -> tuple[Integers, Integers]:
    """Give tokens the spaces that they spell and that their hints leave out, and take invented ones off."""
    offsets = np.cumsum(lengths) - lengths
    spelled_before, spelled_after = _runs(joined == ord(" "))
    leading = np.minimum(spelled_after[offsets], lengths)
    trailing = np.minimum(spelled_before[offsets + lengths], lengths)
    if not (leading.any() or trailing.any()):
        return starts, ends
    text = np.frombuffer(data + b" ", np.uint8)
    white_before, white_after = _runs(_WHITE[text[:-1]])
    _, before = _reach(ends, free)

    # A token of spaces alone, hinted at a word that the next token also has, is a mark put before that word.
    follows = np.append(starts[1:] == starts[:-1], False) & ~np.append(free[1:], True)
    mark = (leading == lengths) & (lengths > 0) & follows & (ends > starts) & (white_after[starts] == 0)
    for i in np.flatnonzero(mark & (text[starts] >= 0x80)):
        word = joined[offsets[i + 1] : offsets[i + 1] + lengths[i + 1]].tobytes()
        spelled = bool(word) and data.startswith(word, starts[i])
        mark[i] = spelled or not _expands_to_space(data[starts[i] : ends[i]])
    ends = np.where(mark, starts, ends)

    # Line breaks are not trimmed, but may stand among the spaces.
    blank_before, blank_after = _runs(_WHITE[joined])
    missing = np.minimum(blank_after[offsets], lengths) - np.minimum(white_after[starts], ends - starts)
    spaces = _least(missing, leading, white_before[starts], starts - before)
    starts = starts - np.where(free, 0, np.maximum(spaces, 0))

    # Where the space is not in the text, trimming has cut that many letters off instead.
    trimmed = (leading > 0) & (spaces <= 0) & (ends - starts < lengths - leading) & (before < starts)
    for i in np.flatnonzero(trimmed):
        lost = data[before[i] : starts[i]].decode("utf-8", "replace")[-leading[i] :].encode()
        if joined[offsets[i] + leading[i] :][: len(lost)].tobytes() == lost:
            starts[i] -= len(lost)

    later = np.where(free, len(data), starts)
    later = np.append(np.minimum.accumulate(later[::-1])[::-1][1:], len(data))
    missing = np.minimum(blank_before[offsets + lengths], lengths) - np.minimum(
        white_before[ends], ends - starts
    )
    spaces = _least(missing, trailing, white_after[ends], later - ends)
    return starts, ends + np.where(free, 0, np.maximum(spaces, 0))


def _least(*rows: Integers) -> Integers:
    least: Integers = np.minimum.reduce(rows)
    return least


def _expands_to_space(piece: bytes) -> bool:
    """Whether text begins with a character that normalisers turn into a space and something more."""
    expanded = unicodedata.normalize("NFKD", piece.decode("utf-8", "replace")[:1])
    return len(expanded) > 1 and expanded[0].isspace()


def _close_gaps(data: bytes, starts: Integers, ends: Integers, free: Booleans, closed: bool) -> Integers:
    """Count characters that left no token, other than white space, as read with the token before.

    A composed character has the offset of its base alone, and unknown characters may be dropped.
    """
    placed = np.flatnonzero(~free)
    if not len(placed):
        return ends
    ends = ends.copy()
    lows = np.maximum.accumulate(ends[placed])
    highs = np.append(starts[placed[1:]], len(data))
    gap = lows < highs
    gap[gap] = ~_WHITE[np.frombuffer(data, np.uint8)[lows[gap]]]
    for g in np.flatnonzero(gap):
        open_end = g == len(placed) - 1 and not closed
        kept = 0
        for character in data[lows[g] : highs[g]].decode("utf-8", "replace"):
            if character.isspace() or (open_end and fold(character)):
                break
            kept += len(character.encode())
        ends[placed[g]] = min(lows[g] + kept, highs[g])
    return ends


def _cut_clusters(
    data: bytes,
    joined: NDArray[np.uint8],
    lengths: Integers,
    starts: Integers,
    reach: Integers,
    opens: Booleans,
    unknown: Booleans,
    sure: bool,
) -> tuple[Integers, Integers, bool]:
    """Cut clusters, each begun by a token that opens it, to the byte where the bytes agree; see `resolve`."""
    text = np.frombuffer(data, np.uint8)
    first, cluster = np.flatnonzero(opens), np.cumsum(opens) - 1
    low, high = starts[first], reach[np.append(first[1:], len(starts)) - 1]
    offsets = np.cumsum(lengths) - lengths
    base = offsets[first]
    size = np.add.reduceat(lengths, first)

    # One byte too many may be a space that the tokenizer put before the text.
    padded = np.append(joined, np.uint8(0))
    added = (size == high - low + 1) & (padded[base] == ord(" "))
    spelled = (size == high - low) | added
    shift = low - base - added
    expected = np.arange(len(joined)) + np.repeat(shift, size)
    inside = (expected >= np.repeat(low, size)) & (expected < len(text))
    wrong = np.ones(len(joined), np.bool_)
    wrong[inside] = text[expected[inside]] != joined[inside]
    wrong[base[added]] = False
    errors = np.concatenate([[0], np.cumsum(wrong)])
    spelled &= errors[base + size] == errors[base]
    alone = np.diff(first, append=len(starts)) == 1
    torn = _torn(data, high, ~spelled & ~(alone & unknown[first]))
    if torn:
        opens = opens.copy()
        opens[first[torn]] = False
        return _cut_clusters(data, joined, lengths, starts, reach, opens, unknown, sure)

    at = shift[cluster] + offsets
    floor, exact = low[cluster], spelled[cluster]
    new_starts = np.where(exact, np.maximum(at, floor), np.where(opens, starts, high[cluster]))
    new_ends = np.where(exact, np.maximum(at + lengths, floor), high[cluster])
    return new_starts, new_ends, bool((spelled | (sure & alone)).all())


def _torn(data: bytes, high: Integers, changed: Booleans) -> list[int]:
    """Clusters of marks after changed text: normalisers may reorder marks, so text is not cut before them."""
    text = np.append(np.frombuffer(data, np.uint8), np.uint8(0))
    torn: list[int] = []
    # No combining mark is below U+0300, of which this is the first byte.
    for previous in np.flatnonzero(text[high[:-1]] >= 0xCC).tolist():
        if not changed[previous] and torn[-1:] != [previous]:
            continue
        character = data[high[previous] : high[previous] + 4].decode("utf-8", "ignore")[:1]
        if character and unicodedata.combining(character):
            torn.append(previous + 1)
    return torn
