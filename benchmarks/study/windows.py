"""Windows of text as both models read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlot._hf.tokenizers import token_ids

#: Where documents may be cut: before the space in front of a word. A very long word is cut, too.
_PIECE = re.compile(r"\s*\S{1,16}|\s+")


class Side(NamedTuple):
    """How a model reads.

    Attributes:
        tokenizer: of transformers.
        start: id of the token before a text.
        pad: id of the token after it.
    """

    tokenizer: Any
    start: int
    pad: int

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts, the start token first; nothing marks the end."""
        return [[self.start, *ids] for ids in token_ids(self.tokenizer, texts)]


class Window(NamedTuple):
    """A stretch of text in the tokens of both models."""

    text: str
    student: list[int]
    teacher: list[int]


def cut(documents: Sequence[str], student: Side, teacher: Side, length: int) -> list[Window]:
    """Cut documents into windows that are at most ``length`` tokens long for both models.

    The windows of a document joined are the document, but for those that still turn out too long, which are
    left out.
    """
    texts = []
    for document in documents:
        pieces = _PIECE.findall(document)
        sizes = [list(map(len, token_ids(side.tokenizer, pieces))) for side in (student, teacher)]
        gathered: list[str] = []
        used = [1, 1]
        for piece, *more in zip(pieces, *sizes, strict=True):
            if gathered and max(map(sum, zip(used, more, strict=True))) > length:
                texts.append("".join(gathered))
                gathered, used = [], [1, 1]
            gathered.append(piece)
            used = list(map(sum, zip(used, more, strict=True)))
        texts.append("".join(gathered))
    texts = [text for text in texts if text.strip()]
    windows = map(Window, texts, student.read(texts), teacher.read(texts))
    return [window for window in windows if max(len(window.student), len(window.teacher)) <= length]
