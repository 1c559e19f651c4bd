"""Pieces of text as both models read them: cut where they are too long, tokenised when first asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mlot._examples import Example
from mlot._hf.pairs import Truncation
from mlot._hf.tokenizers import token_ids
from mlot.align import VocabularyMap
from mlot.training._collator import DistillationCollator
from mlot.training._corpus import as_documents
from mlot.training._prepared import TOGETHER


@dataclass(frozen=True)
class Piece:
    """What makes one example: a stretch of a text, or a record that is not cut.

    Attributes:
        text: what there is to learn.
        document: index of the document that it is of.
        ends: whether a token that ends a text comes after it.
        record: the example, unless it is a stretch of text.
    """

    text: str
    document: int
    ends: bool
    record: Example | None = None

    @property
    def example(self) -> Mapping[str, Any]:
        """The example as `mlot.training.DistillationCollator` takes it."""
        return {"text": self.text} if self.record is None else self.record.content


def make_pieces(
    documents: Sequence[str | Example],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    length: int,
    *,
    mark_end: bool = True,
) -> list[Piece]:
    """Cut texts into pieces that neither tokenizer needs more than ``length`` tokens for.

    Cuts fall at line ends, in a line too long between words, in a word too long between characters. The
    pieces of a text joined are the text. Prompts with completions and conversations are left whole.

    Args:
        documents: texts, and examples of other forms.
        student: tokenizer of the student.
        teacher: tokenizer of the teacher.
        length: most tokens of a piece, those that start and end a text included.
        mark_end: whether documents end with the eos token.

    Raises:
        ValueError: ``length`` is too small for a single character.
    """

    def count(texts: Sequence[str]) -> list[int]:
        both = zip(token_ids(student, texts), token_ids(teacher, texts), strict=True)
        return [max(len(one), len(other)) for one, other in both]

    documents = as_documents(documents)
    plain = [(n, each.text) for n, each in enumerate(documents) if each.plain]
    owned = _cut(plain, length - 2, count, _LEVELS)
    pieces = []
    for n, (document, text) in enumerate(owned):
        last = n + 1 == len(owned) or owned[n + 1][0] != document
        pieces.append(Piece(text, document, mark_end and last))
    pieces += [Piece(each.text, n, mark_end, each) for n, each in enumerate(documents) if not each.plain]
    return sorted(pieces, key=lambda piece: piece.document)


class Examples(Dataset[dict[str, Any]]):
    """Pieces in the tokens of two models, for a ``Trainer``; each is tokenised when it is first asked for.

    Args:
        pieces: the pieces.
        reader: tokenizer of the model that is trained or measured.
        other: tokenizer of the other model.
        length: most tokens of either.
        keys: whether the other one is a saved teacher.
        vocabulary: the map of both tokenizers, for ``matching="text"``.

    Attributes:
        collator: makes batches of them.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        reader: PreTrainedTokenizerBase,
        other: PreTrainedTokenizerBase,
        length: int,
        *,
        keys: bool = False,
        vocabulary: VocabularyMap | None = None,
    ) -> None:
        self.pieces = list(pieces)
        self._arguments = (reader, other, length)
        self._collators = {
            ends: DistillationCollator(
                reader,
                other,
                max_length=length,
                teacher_max_length=length,
                keys=keys,
                add_end=ends,
                pairs="boundary" if vocabulary is None else "text",
                vocabulary=vocabulary,
            )
            for ends in (False, True)
        }
        self.collator = self._collators[True]
        self._found: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, as loaders ask for them; they are tokenised together."""
        lacking = [n for n in dict.fromkeys(indices) if n not in self._found]
        for ends in self._collators:
            fresh = [n for n in lacking if self.pieces[n].ends == ends]
            for first in range(0, len(fresh), TOGETHER):
                self._tokenise(fresh[first : first + TOGETHER], self._collators[ends])
        return [self._found[n] for n in indices]

    def _tokenise(self, indices: Sequence[int], collator: DistillationCollator) -> None:
        try:
            rows = collator.prepare_batch([self.pieces[n].example for n in indices])
        except (TypeError, ValueError) as error:
            if len(indices) == 1:
                record = self.pieces[indices[0]].record
                raise ValueError(f"{'text' if record is None else record.where}: {error}") from error
            for n in indices:
                self._tokenise([n], collator)
        else:
            self._found |= dict(zip(indices, map(_compact, rows), strict=True))

    def bytes_per_token(self) -> float:
        """Bytes of text over the reader's tokens that stand for it."""
        rows = self.__getitems__(range(len(self)))
        tokens = sum(int(np.sum(row["text_mask"])) for row in rows)
        return sum(int(row["target_bytes"]) for row in rows) / max(tokens, 1)

    def changed_by(self, tokenizer: Any) -> int:
        """How many pieces a tokenizer does not give back as they were."""
        texts = [piece.text.strip() for piece in self.pieces]
        ids = token_ids(tokenizer, [piece.text for piece in self.pieces])
        read = (tokenizer.decode(each, clean_up_tokenization_spaces=False).strip() for each in ids)
        return sum(one != other for one, other in zip(texts, read, strict=True))

    def keys(self) -> list[str]:
        """Keys of all examples in a saved teacher."""
        return [row["teacher_key"] for row in self.__getitems__(range(len(self)))]

    def at_boundaries(self) -> Examples:
        """The same with the positions at which both models have read the same bytes."""
        return Examples(self.pieces, *self._arguments, keys=bool(self.collator.keys))

    def swapped(self) -> Examples:
        """The same for the other model."""
        reader, other, length = self._arguments
        return Examples(self.pieces, other, reader, length)

    def with_keys(self) -> Examples:
        """The same, the other model being a saved teacher."""
        return Examples(self.pieces, *self._arguments, keys=True, vocabulary=self.collator.vocabulary)

    def drop_empty(self) -> Truncation:
        """Tokenise what may be too long, leave out that of which nothing is left, and say what was cut."""
        self.__getitems__([n for n, piece in enumerate(self.pieces) if piece.record is not None])
        kept = [
            n
            for n, piece in enumerate(self.pieces)
            if piece.record is None or any(label != -100 for label in self._found[n]["labels"])
        ]
        self._found = {new: self._found[old] for new, old in enumerate(kept) if old in self._found}
        self.pieces = [self.pieces[n] for n in kept]
        return self._collators[False].truncation + self._collators[True].truncation


def _compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same in arrays of 32 bits, an eighth of what lists of integers take."""
    return {
        name: np.array(value, np.int32) if isinstance(value, list) else value for name, value in row.items()
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


_Parts = Callable[[str], list[str]]

#: How to divide a text, coarsest first. Each division's parts joined are the text.
_LEVELS: tuple[_Parts, ...] = (_lines, _words)


def _cut(
    owned: Sequence[tuple[int, str]],
    limit: int,
    count: Callable[[Sequence[str]], list[int]],
    levels: tuple[_Parts, ...],
) -> list[tuple[int, str]]:
    """Divide texts at the coarsest level, join neighbours while they fit, divide finer what does not fit."""
    parts = [(owner, part) for owner, text in owned for part in levels[0](text)]
    packed: list[tuple[int, str]] = []
    gathered: list[str] = []
    size = 0
    previous = -1
    # Joined parts seldom need more tokens than the parts did alone; where they do, the check below sees it.
    for (owner, part), tokens in zip(parts, count([part for _, part in parts]), strict=True):
        if gathered and (owner != previous or size + tokens > limit):
            packed.append((previous, "".join(gathered)))
            gathered, size = [], 0
        gathered.append(part)
        size += tokens
        previous = owner
    if gathered:
        packed.append((previous, "".join(gathered)))
    fitting: list[tuple[int, str]] = []
    for (owner, text), tokens in zip(packed, count([text for _, text in packed]), strict=True):
        if tokens <= limit:
            fitting.append((owner, text))
        elif len(levels) > 1:
            fitting += _cut([(owner, text)], limit, count, levels[1:])
        else:
            fitting += [(owner, part) for part in _halve(text, limit, count)]
    return fitting


def _halve(text: str, limit: int, count: Callable[[Sequence[str]], list[int]]) -> list[str]:
    """Divide a word between characters until its parts fit."""
    if count([text])[0] <= limit:
        return [text]
    if len(text) == 1:
        raise ValueError(f"length: expected room for the tokens of any one character, got {limit + 2}")
    middle = len(text) // 2
    return _halve(text[:middle], limit, count) + _halve(text[middle:], limit, count)
