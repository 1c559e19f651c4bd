"""Documents of text, and their split into those to train on and those held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mlot._examples import Example

#: A document of a text file ends at the first blank line after so many characters, or at any line end after
#: so many more.
_ENOUGH, _TOO_MUCH = 1_000, 4_000


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out; none is in both."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def train_texts(self) -> list[str]:
        """Texts of the documents to train on."""
        return [document.text for document in self.train]

    @staticmethod
    def of(train: Sequence[str | Example], held_out: Sequence[Example]) -> Corpus:
        """Documents that are given apart; those in both are held out.

        Raises:
            ValueError: nothing is left to train on.
        """
        identities = {document.identity for document in held_out}
        rest = tuple(each for each in as_documents(train) if each.identity not in identities)
        if not rest:
            raise ValueError("text: expected documents that are not held out, got none")
        return Corpus(rest, tuple(held_out))


def as_documents(texts: Sequence[str | Example]) -> list[Example]:
    """Texts as documents, which documents are already."""
    return [Example({"text": each}, "--text") if isinstance(each, str) else each for each in texts]


def split_text(text: str) -> list[str]:
    """Cut a text into documents of about a thousand characters, at blank lines where it has such.

    The documents joined are the text.
    """
    documents, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= _TOO_MUCH or (size >= _ENOUGH and not line.strip()):
            documents.append("".join(lines))
            lines, size = [], 0
    rest = "".join(lines)
    if rest.strip() or not documents:
        documents.append(rest)
    elif rest:
        documents[-1] += rest
    return documents


def split_corpus(documents: Sequence[str | Example], share: float, seed: int) -> Corpus:
    """Hold out whole documents, drawn by ``seed``, until they make up a share of the characters.

    Args:
        documents: at least two.
        share: of the characters, between 0 and 1; at least one document is held out and one kept.
        seed: of the draw.

    Raises:
        ValueError: fewer than two different documents.
    """
    first: dict[str, Example] = {}
    for document in as_documents(documents):
        first.setdefault(document.identity, document)
    unique = list(first.values())
    sizes = [len(each.text if each.plain else each.identity) for each in unique]
    if len(unique) < 2:
        raise ValueError(
            "text: expected at least two documents, one to train on and one to hold out, got "
            f"{len(unique)}; those of a text file end at blank lines, after {_ENOUGH} characters or more, "
            "those of other files are their examples"
        )
    order = list(range(len(unique)))
    random.Random(seed).shuffle(order)
    wanted = share * sum(sizes)
    held_out: set[int] = set()
    size = 0
    for index in order[:-1]:
        if held_out and size >= wanted:
            break
        held_out.add(index)
        size += sizes[index]
    return Corpus(
        tuple(text for n, text in enumerate(unique) if n not in held_out),
        tuple(text for n, text in enumerate(unique) if n in held_out),
    )
