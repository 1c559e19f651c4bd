"""Text to learn from: the standard library's docstrings, or a file; documents and their split."""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlot._examples import Example, read_examples
from mlot.distill.errors import DistillError, refusing

#: Folders that hold tests, generated or foreign code.
_LEFT_OUT = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"})

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
            DistillError: nothing is left to train on.
        """
        identities = {document.identity for document in held_out}
        rest = tuple(each for each in as_documents(train) if each.identity not in identities)
        if not rest:
            raise DistillError("--text: expected documents that --eval-file does not have, got none")
        return Corpus(rest, tuple(held_out))


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


def read_documents(paths: Sequence[str | Path]) -> list[Example]:
    """Read files: of text, which is split into documents, and of examples, each of which is a document.

    Raises:
        DistillError: there is no such file, it cannot be read, or nothing in it is to be learnt.
    """
    with refusing():
        documents = read_examples(paths, "--text", cut=split_text)
    learnt = [each for each in documents if each.text.strip()]
    if not learnt:
        shown = ", ".join(repr(str(path)) for path in paths)
        raise DistillError(f"--text: expected some text to learn, but {shown} has none")
    return learnt


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
        DistillError: fewer than two different documents.
    """
    first: dict[str, Example] = {}
    for document in as_documents(documents):
        first.setdefault(document.identity, document)
    unique = list(first.values())
    sizes = [len(each.text if each.plain else each.identity) for each in unique]
    if len(unique) < 2:
        raise DistillError(
            "--text: expected at least two documents, one to train on and one to hold out, got "
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
