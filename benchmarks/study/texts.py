"""The text and its splits: addresses on the State of the Union, and a novel for training before."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

#: Where the files are.
FOLDER = Path(".texts")
#: Shares of the years that the search and the comparison are measured on; the rest is for students.
_VALIDATION, _TEST = 0.1, 0.15
_FIRST_YEAR, _SEED = 1960, 20


@dataclass(frozen=True)
class Texts:
    """Documents of each split.

    Attributes:
        student: addresses that students are trained on.
        validation: addresses of other years, for the search.
        test: addresses of yet other years, for the comparison.
        other: chapters of a novel, for students that are trained on other text first.
    """

    student: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    other: tuple[str, ...]

    def describe(self) -> dict[str, dict[str, object]]:
        """Documents, bytes and a digest of each split."""
        described: dict[str, dict[str, object]] = {}
        for field in fields(self):
            documents = getattr(self, field.name)
            described[field.name] = {
                "documents": len(documents),
                "bytes": sum(len(text.encode()) for text in documents),
                "sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest()[:16],
            }
        return described


def collect(folder: Path = FOLDER) -> Texts:
    """Read the texts and split them, always the same way; all addresses of one year are in one split.

    Args:
        folder: holds ``sotu/*.txt`` and ``moby-dick/*.txt``.

    Raises:
        FileNotFoundError: the files are not there.
    """
    addresses = [path for path in _files(folder / "sotu") if int(path.name[:4]) >= _FIRST_YEAR]
    years = [list(group) for _, group in groupby(addresses, key=lambda path: path.name[:4])]
    random.Random(_SEED).shuffle(years)
    test, validation = round(_TEST * len(years)), round(_VALIDATION * len(years))
    chapters = sorted(_files(folder / "moby-dick"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    return Texts(
        student=_read(path for year in years[test + validation :] for path in year),
        validation=_read(path for year in years[test : test + validation] for path in year),
        test=_read(path for year in years[:test] for path in year),
        other=_read(chapters),
    )


def _files(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise FileNotFoundError(
            f"{str(folder)!r}: expected the texts of the study; see benchmarks/study/README.md"
        )
    return paths


def _read(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8").strip() for path in paths)
