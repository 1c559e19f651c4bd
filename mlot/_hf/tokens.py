"""One model's tokens of an example: which are targets, and which bytes of the common text they end at."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._hf.render import Rendered
from mlot.align import (
    TEXT_POSITION_FIELDS,
    TokenBytes,
    VocabularyMap,
    byte_ranges,
    pairs,
    text_positions,
)


@dataclass(frozen=True)
class Span:
    """Tokens of one target.

    Attributes:
        first: position of its first token.
        last: position after its last token of text.
        closing: position after the tokens that end it and are learnt with it; ``last`` where there are none.
        ranges: bytes of the target that its tokens cover, with the token before, which has read none of them,
            if there is one, and one token that ends it, if that comes next.
        text: bytes of the target.
    """

    first: int
    last: int
    closing: int
    ranges: TokenBytes
    text: bytes


@dataclass(frozen=True)
class Tokens:
    """One model's tokens of an example.

    Attributes:
        ids: token ids.
        spans: targets, in order.
    """

    ids: list[int]
    spans: tuple[Span, ...]

    def labels(self, length: int) -> list[int]:
        """Ids of the first tokens that are targets, -100 for the others."""
        targets = [-100] * length
        for span in self.spans:
            # nothing predicts the first token of all
            for n in range(max(span.first, 1), min(span.closing, length)):
                targets[n] = self.ids[n]
        return targets

    def text_mask(self, length: int) -> list[bool]:
        """Which of the first tokens are targets that stand for text."""
        mask = [False] * length
        for span in self.spans:
            for n in range(max(span.first, 1), min(span.last, length)):
                mask[n] = True
        return mask

    def target_bytes(self, length: int) -> int:
        """Bytes of text that the targets among the first tokens stand for."""
        size = 0
        for span in self.spans:
            read = [self._read(span, n - 1) for n in (max(span.first, 1), min(span.last, length))]
            size += max(read[1] - read[0], 0)
        return size

    @staticmethod
    def _read(span: Span, position: int) -> int:
        """Bytes of a target that have been read at a position."""
        if position < span.first:
            return 0
        if position >= span.last - 1:
            return span.ranges.total
        return int(span.ranges.ends[position - span.first + (span.first > 0)])


def tokenize(tokenizer: Any, rendered: Rendered, start: int | None, end: int | None) -> Tokens:
    """Tokenize an example.

    The whole is tokenized at once, but cut first at the borders of targets that tokens do not keep to.

    Args:
        tokenizer: of one model.
        rendered: what that model reads.
        start: token put before; ``None`` for none.
        end: token put after the last target and learnt; ``None`` for none.
    """
    data = rendered.text.encode()
    borders = [len(rendered.text[:at].encode()) for span in rendered.spans for at in span]
    whole, cuts = _encode_to_borders(tokenizer, data, borders)
    lead = [] if start is None or not rendered.framed else [start]
    tail = [] if end is None or not rendered.framed else [end]
    special = _special(tokenizer)
    ids = [*lead, *whole.ids.tolist(), *tail]
    spans = []
    for n in range(len(rendered.spans)):
        first, last = cuts[2 * n], cuts[2 * n + 1]
        low, high = borders[2 * n], borders[2 * n + 1]
        closing = last
        if tail and n + 1 == len(rendered.spans) and last == len(whole):
            closing = last + 1
        elif not rendered.framed:
            closing = _closing(whole, last, high, data, special)
        offset = len(lead)
        starts = np.clip(whole.starts[first:last] - low, 0, high - low)
        ends = np.clip(whole.ends[first:last] - low, 0, high - low)
        before, after = int(first + offset > 0), int(closing == last + 1)
        ranges = TokenBytes(
            ids=np.array(ids[first + offset - before : last + offset + after], np.int64),
            starts=np.concatenate([[0] * before, starts, [high - low] * after]).astype(np.int64),
            ends=np.concatenate([[0] * before, ends, [high - low] * after]).astype(np.int64),
            special=np.array([True] * before + [False] * (last - first) + [True] * after),
            total=high - low,
            exact=whole.exact,
        )
        spans.append(Span(first + offset, last + offset, closing + offset, ranges, data[low:high]))
    return Tokens(ids, tuple(spans))


def common_positions(student: Tokens, teacher: Tokens) -> NDArray[np.int64]:
    """Positions ``(P, 2)`` at which both models have read the same bytes of the same target."""
    parts = [np.zeros((0, 2), np.int64)]
    for one, other in zip(student.spans, teacher.spans, strict=True):
        parts.append(pairs(one.ranges, other.ranges) + np.array(_offsets(one, other)))
    return np.concatenate(parts)


def common_text_positions(
    student: Tokens, teacher: Tokens, vocabulary: VocabularyMap
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """What the teacher says at each of the student's positions in the targets.

    Returns:
        ``(P, 9)`` rows as `mlot.align.text_positions` makes them, in the positions of the examples, and the
        number of positions without one by reason.
    """
    parts = [np.zeros((0, len(TEXT_POSITION_FIELDS)), np.int64)]
    reasons: Counter[str] = Counter()
    for one, other in zip(student.spans, teacher.spans, strict=True):
        rows, counts = text_positions(one.ranges, other.ranges, one.text, vocabulary, return_counts=True)
        rows[:, :2] += _offsets(one, other)
        parts.append(rows)
        reasons.update(counts)
    return np.concatenate(parts), dict(reasons)


def _offsets(one: Span, other: Span) -> list[int]:
    """Positions of the tokens that the ranges of two targets begin with."""
    return [one.first - (one.first > 0), other.first - (other.first > 0)]


def _encode(tokenizer: Any, text: str) -> TokenBytes:
    # verbose=False: texts longer than the model's limit are expected here, and are cut afterwards
    made = tokenizer(text, add_special_tokens=False, verbose=False)
    encodings = getattr(made, "encodings", None)
    if encodings:
        return byte_ranges(tokenizer, text, encoding=encodings[0])
    return byte_ranges(tokenizer, text, ids=made["input_ids"])


def _encode_to_borders(tokenizer: Any, data: bytes, borders: list[int]) -> tuple[TokenBytes, list[int]]:
    """Tokens of a text none of which lies across a border, and the number of tokens before each border."""
    cuts: set[int] = set()
    while True:
        ends = [0, *sorted(cuts), len(data)]
        pieces = [_encode(tokenizer, data[low:high].decode()) for low, high in pairwise(ends)]
        whole = _joined(pieces, ends)
        # At the start, and where the text was cut, what has no bytes of its own belongs to what follows.
        before = dict(zip(ends[:-1], np.cumsum([0, *map(len, pieces)]).tolist(), strict=False))
        counts = [before.get(border, _ending(whole, border)) for border in borders]
        across = {
            border
            for border, count in zip(borders, counts, strict=True)
            if count < len(whole) and whole.starts[count] < border
        }
        if not across:
            return whole, counts
        cuts |= across


def _ending(whole: TokenBytes, border: int) -> int:
    """Number of tokens up to a border; one without bytes of its own is a piece of the character before."""
    return int(np.searchsorted(whole.ends, border, side="right"))


def _joined(pieces: list[TokenBytes], cuts: list[int]) -> TokenBytes:
    placed = list(zip(pieces, cuts[:-1], strict=True))
    return TokenBytes(
        ids=np.concatenate([piece.ids for piece in pieces]),
        starts=np.concatenate([piece.starts + at for piece, at in placed]),
        ends=np.concatenate([piece.ends + at for piece, at in placed]),
        special=np.concatenate([piece.special for piece in pieces]),
        total=cuts[-1],
        exact=all(piece.exact for piece in pieces),
    )


def _special(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {n for n, token in added.items() if getattr(token, "special", False)} | set(
        tokenizer.all_special_ids
    )


def _closing(whole: TokenBytes, last: int, border: int, data: bytes, special: set[int]) -> int:
    """Position after the special token that ends a turn, if nothing but white space comes before it."""
    for n in range(last, len(whole)):
        if int(whole.ids[n]) in special:
            return n + 1
        if data[border : int(whole.ends[n])].strip():
            break
    return last
