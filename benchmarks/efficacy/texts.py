"""The text and its splits. No document, and no paragraph of some length, is in two of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy
import scipy

from mlot._hf.made import standard_library_documents

#: Shares of the documents' characters: what teachers learn from, students learn from, the search measures on,
#: and the comparison measures on.
SHARES = {"teacher": 0.6, "student": 0.2, "validation": 0.08, "test": 0.12}
#: A paragraph of at least so many characters is kept in one split only, even where sources repeat it.
_REPEATED = 60
_SEED = 20


@dataclass(frozen=True)
class Texts:
    """Documents of each split.

    Attributes:
        teacher: standard library docstrings, for the teachers and both tokenizers.
        student: others of them, for every student that is compared.
        validation: others, for the search.
        test: others, for the comparison.
        other: docstrings of NumPy and SciPy, for students that start from training on other text.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    other: tuple[str, ...]

    def describe(self) -> dict[str, dict[str, object]]:
        """Documents, bytes and a digest of each split."""
        found: dict[str, dict[str, object]] = {}
        for field in fields(self):
            documents = getattr(self, field.name)
            data = "\0".join(documents).encode()
            found[field.name] = {
                "documents": len(documents),
                "bytes": sum(len(text.encode()) for text in documents),
                "sha256": hashlib.sha256(data).hexdigest()[:16],
            }
        return found


def collect(other_bytes: int) -> Texts:
    """Collect the text that every installation has, and split it by documents, always the same way."""
    documents = list(standard_library_documents())
    random.Random(_SEED).shuffle(documents)
    total = sum(map(len, documents))
    splits: dict[str, list[str]] = {name: [] for name in SHARES}
    ends = {name: total * sum(list(SHARES.values())[: n + 1]) for n, name in enumerate(SHARES)}
    size = 0.0
    for document in documents:
        middle = size + len(document) / 2
        size += len(document)
        splits[next(name for name, end in ends.items() if middle <= end)].append(document)
    splits["other"] = list(_some(_other_documents(), other_bytes))
    # Held-out text comes first: what it has is taken out of everything trained on.
    seen: set[str] = set()
    kept = {
        name: _fresh(splits[name], seen) for name in ("test", "validation", "student", "teacher", "other")
    }
    return Texts(**kept)


def _other_documents() -> list[str]:
    documents = [
        document
        for package in (numpy, scipy)
        for document in standard_library_documents(Path(str(package.__file__)).parent)
    ]
    random.Random(_SEED).shuffle(documents)
    return documents


def _some(documents: Sequence[str], size: int) -> Iterator[str]:
    """Documents, cut where they are very long, until they have about so many bytes."""
    found = 0
    for document in documents:
        if found >= size:
            return
        some = document[: max(size // 20, 1000)]
        found += len(some.encode())
        yield some


def paragraphs(document: str) -> list[str]:
    """Paragraphs of a document."""
    return [part for part in document.split("\n\n") if part.strip()]


def _fresh(documents: Sequence[str], seen: set[str]) -> tuple[str, ...]:
    """Documents without the longer paragraphs that were seen before; those of these are seen then."""
    kept = []
    found: set[str] = set()
    for document in documents:
        parts = [part for part in paragraphs(document) if part.strip() not in seen]
        found.update(part.strip() for part in parts if len(part.strip()) >= _REPEATED)
        if parts:
            kept.append("\n\n".join(parts) + "\n")
    seen |= found
    return tuple(kept)
