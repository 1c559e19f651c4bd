"""One model's tokens of examples: which are targets, and which bytes of the common texts they end at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._hf.conversations import Rendered
from mlot.align._ranges import ranges_of_texts
from mlot.align._text_tokens import TextTokens, boundaries, stretches

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tokens:
    """One model's tokens of ``B`` examples with ``S`` targets, one after the other.

    Attributes:
        ids: token ids, ``(T,)``.
        offsets: first token of each example, and the number of tokens, ``(B + 1,)``.
        owner: example of each target, ``(S,)``.
        first: first token of each target among all tokens, ``(S,)``.
        last: the token after its last one of text, ``(S,)``.
        closing: the token after those that end it and are learnt with it; ``last`` where there are none.
        ranges: bytes of each target that its tokens cover, with the token before, which has read none of
            them, if there is one, and one token that ends it, if that comes next.
        numbers: which of all tokens those of ``ranges`` are.
        texts: bytes of each target.
        own: which of all tokens are learnt besides, though they stand for nothing that both models read.
    """

    ids: Integers
    offsets: Integers
    owner: Integers
    first: Integers
    last: Integers
    closing: Integers
    ranges: TextTokens
    numbers: Integers
    texts: Sequence[bytes]
    own: Booleans

    @cached_property
    def labels(self) -> Integers:
        """Ids of tokens that are targets, -100 for the others, ``(T,)``."""
        return np.where(self._within(self.closing) | self.own, self.ids, -100)

    @cached_property
    def text_mask(self) -> Booleans:
        """Which tokens are targets that stand for text, ``(T,)``."""
        return self._within(self.last)

    @property
    def _learnt(self) -> Integers:
        """First token of each target that is predicted; nothing predicts the first token of an example."""
        return np.maximum(self.first, self.offsets[self.owner] + 1)

    def _within(self, end: Integers) -> Booleans:
        mask = np.zeros(len(self.ids), np.bool_)
        mask[stretches(self._learnt, np.maximum(end - self._learnt, 0))] = True
        return mask

    def target_bytes(self, lengths: Integers) -> Integers:
        """Bytes of text that the targets among the first tokens of each example stand for, ``(B,)``."""
        end = np.minimum(self.last, (self.offsets[:-1] + lengths)[self.owner])
        size = np.maximum(self._read(end) - self._read(self._learnt), 0)
        return np.bincount(self.owner, size, len(lengths)).astype(np.int64)

    def _read(self, count: Integers) -> Integers:
        """Bytes of each target that its tokens before a number among all tokens have read."""
        inside = (count > self.first) & (count < self.last)
        before = self.first > self.offsets[self.owner]
        at = np.where(inside, self.ranges.offsets[:-1] + before + count - 1 - self.first, 0)
        ends = np.append(self.ranges.ends, 0)[at]
        return np.where(inside, ends, np.where(count <= self.first, 0, self.ranges.totals))


def tokenize(tokenizer: Any, examples: Sequence[Rendered], start: int | None, end: int | None) -> Tokens:
    """Tokenize examples.

    Each is tokenized as a whole, but cut first at the borders of targets that tokens do not keep to.

    Args:
        tokenizer: of one model.
        examples: what that model reads.
        start: token put before; ``None`` for none.
        end: token put after the last target and learnt; ``None`` for none.
    """
    data = [each.text.encode() for each in examples]
    spans = [_borders(each) for each in examples]
    borders = [[byte for start, _, end in rows for byte in (start, end)] for rows in spans]
    whole, counts = _encode_to_borders(tokenizer, data, borders, [()] * len(data))
    framed = np.array([each.framed for each in examples], np.bool_)
    lead, tail = (framed & (token is not None) for token in (start, end))
    offsets = boundaries(whole.counts + lead + tail)
    place = np.arange(len(whole.ids)) + (offsets[:-1] + lead - whole.offsets[:-1])[whole.owner]
    ids, starts, ends = (np.zeros(offsets[-1], np.int64) for _ in range(3))
    ids[place], starts[place], ends[place] = whole.ids, whole.starts, whole.ends
    ids[offsets[:-1][lead]] = -1 if start is None else start
    ids[offsets[1:][tail] - 1] = -1 if end is None else end

    every = np.array([len(rows) for rows in spans], np.int64)
    owner = np.repeat(np.arange(len(data)), every)
    low, high = np.array([row[1:] for rows in spans for row in rows], np.int64).reshape(-1, 2).T
    first, last = (counts.reshape(-1, 2) + (offsets[:-1] + lead)[owner][:, None]).T
    common = np.array(
        [n < len(each.spans) for each, rows in zip(examples, spans, strict=True) for n in range(len(rows))],
        np.bool_,
    )
    own = np.zeros(len(ids), np.bool_)
    if not common.all():
        closing = last.copy()
        _close(tokenizer, ids, ends, offsets, owner, last, closing, high, framed[owner], data)
        closing[common] = first[common]
        own[stretches(first, closing - first)] = True
        own[offsets[:-1][offsets[1:] > offsets[:-1]]] = False  # nothing predicts the first token
        owner, low, high, first, last = (each[common] for each in (owner, low, high, first, last))
    targets = np.array([len(each.spans) for each in examples], np.int64)
    final = np.arange(1, len(owner) + 1) == np.cumsum(targets)[owner]
    ended = tail[owner] & final & (last == offsets[1:][owner] - 1)
    closing = last + ended
    if not framed.all():
        _close(tokenizer, ids, ends, offsets, owner, last, closing, high, framed[owner], data)
    before, after = first > offsets[owner], closing == last + 1
    sizes = last - first + before + after
    numbers, size = stretches(first - before, sizes), high - low
    cuts, of = boundaries(sizes), np.repeat(np.arange(len(owner)), sizes)
    starts, ends = (np.clip(side[numbers] - low[of], 0, size[of]) for side in (starts, ends))
    special = np.zeros(len(numbers), np.bool_)
    opens, closes = cuts[:-1][before], cuts[1:][after] - 1
    starts[opens] = ends[opens] = 0
    starts[closes] = ends[closes] = size[after]
    special[opens] = special[closes] = True
    ranges = TextTokens(ids[numbers], starts, ends, special, sizes, size)
    texts = [data[n][a:b] for n, a, b in zip(owner.tolist(), low.tolist(), high.tolist(), strict=True)]
    return Tokens(ids, offsets, owner, first, last, closing, ranges, numbers, texts, own)


def _borders(example: Rendered) -> list[tuple[int, int, int]]:
    """Of each stretch that is learnt: the byte at which its first token may begin, its bytes."""
    rows = [(start - (n in example.spaced), start, end) for n, (start, end) in enumerate(example.spans)] + [
        (start, start, end) for start, end in example.own
    ]
    if example.text.isascii():
        return rows
    return [
        (first, second, third)
        for first, second, third in (tuple(len(example.text[:at].encode()) for at in row) for row in rows)
    ]


def _encode(tokenizer: Any, texts: list[str]) -> TextTokens:
    # verbose=False: texts longer than the model's limit are expected here, and are cut afterwards
    made = tokenizer(texts, add_special_tokens=False, verbose=False)
    return ranges_of_texts(tokenizer, texts, made["input_ids"], getattr(made, "encodings", None))


def _encode_to_borders(
    tokenizer: Any, data: Sequence[bytes], borders: Sequence[Sequence[int]], cuts: Sequence[Sequence[int]]
) -> tuple[TextTokens, Integers]:
    """Tokens of texts, none of which lies across a border, and of each the number before each border.

    Args:
        tokenizer: of one model.
        data: the texts.
        borders: bytes of each text that no token may lie across.
        cuts: bytes at which each text is cut before it is tokenized.
    """
    bounds = [[0, *cut, len(text)] for text, cut in zip(data, cuts, strict=True)]
    parts = [
        text[low:high].decode() for text, row in zip(data, bounds, strict=True) for low, high in pairwise(row)
    ]
    pieces = _encode(tokenizer, parts)
    sizes = np.array([len(row) - 1 for row in bounds], np.int64)
    whole = pieces.grouped(sizes)
    per_text = np.array([len(row) for row in borders], np.int64)
    owner = np.repeat(np.arange(len(data)), per_text)
    wanted = np.array([border for row in borders for border in row], np.int64)
    # A token without bytes of its own is a piece of the character before, ...
    reached = np.searchsorted(whole.joined_ends, wanted + whole.bases[owner], side="right")
    counts = np.minimum(reached - whole.offsets[owner], whole.counts[owner])
    # ... but at the start, and where the text was cut, it belongs to what follows.
    counts[wanted == 0] = 0
    first, opening = boundaries(per_text).tolist(), pieces.offsets[boundaries(sizes)[:-1]]
    for n in np.flatnonzero(sizes > 1).tolist():
        tokens_before = pieces.offsets[sizes[:n].sum() :][: sizes[n]] - opening[n]
        for byte, count in zip(cuts[n], tokens_before.tolist()[1:], strict=True):
            counts[first[n] : first[n + 1]][wanted[first[n] : first[n + 1]] == byte] = count
    inside = counts < whole.counts[owner]
    next_token = np.where(inside, whole.offsets[owner] + counts, 0)
    across = inside & (np.append(whole.starts, 0)[next_token] < wanted)
    if across.any():
        again = np.unique(owner[across]).tolist()
        wider = [sorted({*cuts[n], *wanted[across & (owner == n)].tolist()}) for n in again]
        others, other_counts = _encode_to_borders(
            tokenizer, [data[n] for n in again], [borders[n] for n in again], wider
        )
        whole = whole.replaced(again, others)
        counts[np.isin(owner, again)] = other_counts
    return whole, counts


def _special(tokenizer: Any) -> list[int]:
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special = {n for n, token in added.items() if getattr(token, "special", False)}
    return sorted(special | set(tokenizer.all_special_ids))


def _close(
    tokenizer: Any,
    ids: Integers,
    ends: Integers,
    offsets: Integers,
    owner: Integers,
    last: Integers,
    closing: Integers,
    border: Integers,
    framed: Booleans,
    data: Sequence[bytes],
) -> None:
    """Learn the special token that ends a turn, too, if nothing but white space comes before it."""
    special = np.append(np.flatnonzero(np.isin(ids, _special(tokenizer))), len(ids))
    token = special[np.searchsorted(special, last)]
    for s in np.flatnonzero(~framed & (token < offsets[1:][owner])).tolist():
        between = data[owner[s]][border[s] : ends[token[s] - 1]] if token[s] > last[s] else b""
        if not between.strip():
            closing[s] = token[s] + 1
