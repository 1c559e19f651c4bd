"""Windows of text as tensors: one side's tokens, labels, and where its words are."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlot._hf.tokenizers import start_token, token_ids
from mlot.align import TokenBytes, byte_ranges

#: Where documents may be cut: before the space in front of a word. A very long word is cut, too.
_PIECE = re.compile(r"\s*\S{1,16}|\s+")

#: A word: at least two letters after a space, which both tokenizers' rules of cutting keep in one piece.
_WORD = re.compile(r" [^\W\d_]{2,}")
#: Byte-level vocabularies write a space and the control characters below it as these characters.
_SPACES = range(0x100, 0x121)


class Window(NamedTuple):
    """A stretch of text as both models read it, a token that starts it first; nothing marks its end."""

    text: str
    student: list[int]
    teacher: list[int]


def cut(
    documents: Sequence[str],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    length: int,
) -> list[Window]:
    """Cut documents into windows as long as neither tokenizer needs more than ``length`` tokens for.

    The windows of a document joined are the document, but for windows that still turn out too long; those are
    left out.
    """
    texts = []
    for document in documents:
        pieces = _PIECE.findall(document)
        sizes = [list(map(len, token_ids(tokenizer, pieces))) for tokenizer in (student, teacher)]
        gathered: list[str] = []
        used = [1, 1]
        for piece, *found in zip(pieces, *sizes, strict=True):
            if gathered and max(have + more for have, more in zip(used, found, strict=True)) > length:
                texts.append("".join(gathered))
                gathered, used = [], [1, 1]
            gathered.append(piece)
            used = [have + more for have, more in zip(used, found, strict=True)]
        texts.append("".join(gathered))
    sides = [
        [[start_token(tokenizer), *ids] for ids in token_ids(tokenizer, texts)]
        for tokenizer in (student, teacher)
    ]
    windows = [Window(*window) for window in zip(texts, *sides, strict=True) if window[0].strip()]
    return [window for window in windows if max(len(window.student), len(window.teacher)) <= length]


@dataclass(frozen=True, eq=False)
class Tokens:
    """One side's tokens of some windows, padded on the right to one length.

    Attributes:
        ids: ``(N, L)`` integers.
        labels: the same, unshifted, -100 on padding and on the first token, which only starts a text.
    """

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Tokens:
        return Tokens(self.ids[index], self.labels[index])

    @property
    def targets(self) -> int:
        """Tokens that a model is asked to predict."""
        return int((self.labels != -100).sum())

    def to(self, device: torch.device) -> Tokens:
        """The same on a device."""
        return Tokens(self.ids.to(device), self.labels.to(device))


def tokens(rows: Sequence[Sequence[int]], length: int, pad_token_id: int) -> Tokens:
    """Pad rows of token ids to a length; longer ones are cut."""
    ids = torch.full((len(rows), length), pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for n, row in enumerate(rows):
        some = torch.tensor(row[:length])
        ids[n, : len(some)] = some
        labels[n, 1 : len(some)] = some[1:]
    return Tokens(ids, labels)


@dataclass(frozen=True, eq=False)
class Words:
    """Where words of windows are, in one side's tokens.

    Attributes:
        spans: ``(W, 3)`` integers: window, the word's first token, the token after its last.
        continues: ``(V,)`` booleans: tokens that would go on with a word, since they start with a letter.
    """

    spans: NDArray[np.int64]
    continues: Tensor


def words(texts: Sequence[str], rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> Words:
    """Find the words of windows that whole tokens stand for and after which the window goes on."""
    spans = []
    for n, (text, row) in enumerate(zip(texts, rows, strict=True)):
        ranges = byte_ranges(tokenizer, text, ids=list(row))
        offsets = np.cumsum([0, *(len(character.encode()) for character in text)])
        for word in _WORD.finditer(text):
            span = _span(ranges, int(offsets[word.start()]), int(offsets[word.end()]))
            if span is not None:
                spans.append((n, *span))
    vocabulary = [str(tokenizer.convert_ids_to_tokens(index)) for index in range(len(tokenizer))]
    continues = torch.tensor([_starts_with_letter(token) for token in vocabulary])
    return Words(np.array(spans, np.int64).reshape(-1, 3), continues)


def _span(ranges: TokenBytes, start: int, end: int) -> tuple[int, int] | None:
    """First token of some bytes and the one after their last, if these are whole and one follows."""
    first = int(np.searchsorted(ranges.starts, start, side="right")) - 1
    after = int(np.searchsorted(ranges.ends, end, side="left")) + 1
    if after >= len(ranges.starts) or ranges.starts[first] != start or ranges.ends[after - 1] != end:
        return None
    return first, after


def _starts_with_letter(token: str) -> bool:
    first = token[:1]
    return (first.isascii() and first.isalpha()) or (not first.isascii() and ord(first) not in _SPACES)


#: Words that each word of a cloze test stands against, and bytes of text that go before it at least.
_OTHERS, _BEFORE = 3, 20


def cloze(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, wanted: int, seed: int
) -> Tokens:
    """Draw words of windows, and rows that end with one: the true word, then three other words, for each.

    The others are drawn from all words of the windows, as often as they occur there. The draw depends on the
    texts alone, not on the tokenizer, as long as both tokenizers' windows have room for all four.

    Args:
        texts: windows.
        tokenizer: of one side.
        length: most tokens of a row; a word that one of the four rows has no room for is left out.
        wanted: words to draw.
        seed: of the draw.

    Returns:
        `Tokens` of four rows for each word, labels on the tokens of the word at the end alone.
    """
    draw = random.Random(seed)
    found = [(text, word.start(), word.group()) for text in texts for word in _WORD.finditer(text)]
    vocabulary = [word for _, _, word in found]
    places = [place for place in found if len(place[0][: place[1]].encode()) >= _BEFORE]
    rows = []
    for text, start, word in draw.sample(places, min(wanted, len(places))):
        candidates = [word]  # the true word first
        while len(candidates) <= _OTHERS:
            other = draw.choice(vocabulary)
            if other not in candidates:
                candidates.append(other)
        before, *ids = token_ids(tokenizer, [text[:start], *candidates])
        if 1 + len(before) + max(map(len, ids)) <= length:
            rows += [([start_token(tokenizer), *before], some) for some in ids]
    pad_token_id = int(str(tokenizer.pad_token_id))
    made = tokens([[*before, *ids] for before, ids in rows], length, pad_token_id)
    for n, (before, _) in enumerate(rows):
        made.labels[n, : len(before)] = -100
    return made
