"""Text to learn from: the standard library's docstrings, or a file; documents and their split."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlot._text import is_json_lines, read_text
from mlot.distill.errors import DistillError
from mlot.distill.records import Record, read_records

#: Folders that hold tests, generated or foreign code.
_LEFT_OUT = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"})

#: A document of a text file ends at the first blank line after so many characters, or at any line end after
#: so many more.
_ENOUGH, _TOO_MUCH = 1_000, 4_000


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out; none is in both."""

    train: tuple[str | Record, ...]
    held_out: tuple[str | Record, ...]

    @property
    def train_texts(self) -> list[str]:
        """Texts of the documents to train on."""
        return [text_of(document) for document in self.train]


def standard_library_documents(root: Path | None = None) -> list[str]:
    """Collect docstrings of Python's standard library, one document for each source file.

    A docstring that several places share is kept at the first. Tests and idlelib are left out, and so is what
    is installed beside the library.

    Args:
        root: folder to search; ``None`` means that of the running Python.

    Returns:
        Documents in the order of the files' names, the same on each call.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    seen: set[str] = set()
    documents = []
    for name in sorted(files):
        if not _LEFT_OUT.isdisjoint(name.split("/")[:-1]):
            continue
        fresh = []
        for docstring in _docstrings(files[name]):
            if docstring not in seen:
                seen.add(docstring)
                fresh.append(docstring)
        if fresh:
            documents.append("\n\n".join(fresh) + "\n")
    return documents


def text_of(document: str | Record) -> str:
    """What there is to learn in a document."""
    return document if isinstance(document, str) else document.text


def read_documents(path: str | Path) -> list[str] | list[Record]:
    """Read a file: text, which is split into documents, or JSONL by its name, each line of which is one.

    Raises:
        DistillError: there is no such file, it is not UTF-8, has no text, or a line that is no record.
    """
    path = Path(path)
    if is_json_lines(path):
        return read_records(path)
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DistillError(str(error)) from error
    return split_text(text)


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


def split_corpus(documents: Sequence[str | Record], share: float, seed: int) -> Corpus:
    """Hold out whole documents, drawn by ``seed``, until they make up a share of the characters.

    Args:
        documents: at least two.
        share: of the characters, between 0 and 1; at least one document is held out and one kept.
        seed: of the draw.

    Raises:
        DistillError: fewer than two different documents.
    """
    unique = list(dict.fromkeys(documents))
    if len(unique) < 2:
        raise DistillError(
            "--text: expected at least two documents, one to train on and one to hold out, got "
            f"{len(unique)}; those of a text file end at blank lines, after {_ENOUGH} characters or more, "
            "those of a JSONL file are its lines"
        )
    order = list(range(len(unique)))
    random.Random(seed).shuffle(order)
    wanted = share * sum(map(len, unique))
    held_out: set[int] = set()
    size = 0
    for index in order[:-1]:
        if held_out and size >= wanted:
            break
        held_out.add(index)
        size += len(unique[index])
    return Corpus(
        tuple(text for n, text in enumerate(unique) if n not in held_out),
        tuple(text for n, text in enumerate(unique) if n in held_out),
    )


def _docstrings(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in a source are no business of ours
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some files are broken on purpose
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        (getattr(node, "lineno", 0), ast.get_docstring(node))
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]
    found.sort(key=lambda item: item[0])
    return [text for _, text in found if text and text.strip() and _is_unicode(text)]


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
