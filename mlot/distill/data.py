"""Windows of text in two tokenisations, and the batches made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mlot.align import batch_pairs, byte_ranges, pairs
from mlot.distill.errors import DistillError
from mlot.distill.vocabularies import start_token, token_ids

Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class Window:
    """One stretch of a document, as both models read it.

    Attributes:
        text: the characters that the tokens stand for.
        document: index of the document.
        student: the student's tokens: one that starts, those of the text, and at a document's end one that
            ends, if asked for.
        teacher: the same text in the teacher's tokens.
    """

    text: str
    document: int
    student: tuple[int, ...]
    teacher: tuple[int, ...]


def tokens_of(window: Window, side: Side) -> tuple[int, ...]:
    """One side's tokens of a window."""
    return window.student if side == "student" else window.teacher


class WindowDataset(Dataset[Window]):
    """Windows, for a ``DataLoader``."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.windows[index]


def make_windows(
    documents: Sequence[str],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    length: int,
    *,
    mark_end: bool = True,
) -> list[Window]:
    """Cut documents into windows that neither tokenizer needs more than ``length`` tokens for.

    Cuts fall at line ends, in a line too long between words, in a word too long between characters. The
    windows of a document joined are the document.

    Args:
        documents: texts.
        student: tokenizer of the student.
        teacher: tokenizer of the teacher.
        length: most tokens of a window, those that start and end a text included.
        mark_end: whether a document's last window ends with the eos token.

    Raises:
        DistillError: ``length`` is too small for a single character.
    """

    def count(texts: Sequence[str]) -> list[int]:
        both = zip(token_ids(student, texts), token_ids(teacher, texts), strict=True)
        return [max(len(one), len(other)) for one, other in both]

    owned = _cut(list(enumerate(documents)), length - 2, count, _LEVELS)
    texts = [text for _, text in owned]
    windows = []
    sides = list(zip(token_ids(student, texts), token_ids(teacher, texts), strict=True))
    for n, (document, text) in enumerate(owned):
        ends = mark_end and (n + 1 == len(owned) or owned[n + 1][0] != document)
        ids = [
            (start_token(tokenizer), *found, *_end(tokenizer, ends))
            for tokenizer, found in zip((student, teacher), sides[n], strict=True)
        ]
        windows.append(Window(text, document, ids[0], ids[1]))
    return windows


def _end(tokenizer: PreTrainedTokenizerBase, wanted: bool) -> tuple[int, ...]:
    return (int(tokenizer.eos_token_id),) if wanted and tokenizer.eos_token_id is not None else ()


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
        raise DistillError(f"--length: expected room for the tokens of any one character, got {limit + 2}")
    middle = len(text) // 2
    return _halve(text[:middle], limit, count) + _halve(text[middle:], limit, count)


class Collator:
    """Pads one side's tokens to a batch: ``input_ids``, ``attention_mask``, ``labels``, each ``(B, T)``.

    Labels are unshifted, as transformers has them. They are -100 on padding, found by position because the
    pad token may be one that texts contain, and on the first token, which nothing predicts.
    """

    def __init__(self, side: Side, pad_token_id: int) -> None:
        self.side = side
        self.pad_token_id = pad_token_id

    def __call__(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        return pad([tokens_of(window, self.side) for window in windows], self.pad_token_id)


class PairCollator:
    """Pads both sides: the student's tensors named as by `Collator`, the teacher's with ``teacher_`` before.

    Args:
        student_pad_token_id: what to pad the student's tokens with.
        teacher_pad_token_id: the same for the teacher.
        pairs: finds the pairs of positions in a window, ``(P, 2)`` integers, as `PrefixPairs` does; batches
            then hold ``pairs``, ``(B, P, 2)``, padded by -1. ``None`` leaves them out.
    """

    def __init__(
        self,
        student_pad_token_id: int,
        teacher_pad_token_id: int,
        pairs: Callable[[Window], NDArray[np.int64]] | None = None,
    ) -> None:
        self._student = Collator("student", student_pad_token_id)
        self._teacher = Collator("teacher", teacher_pad_token_id)
        self._pairs = pairs

    def __call__(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        batch = self._student(windows)
        batch.update({f"teacher_{name}": tensor for name, tensor in self._teacher(windows).items()})
        if self._pairs is not None:
            batch["pairs"] = torch.from_numpy(batch_pairs([self._pairs(window) for window in windows]))
        return batch


class PrefixPairs:
    """Pairs the positions of a window at which both models have read the same bytes; see `mlot.align.pairs`.

    Args:
        student: tokenizer of the student.
        teacher: tokenizer of the teacher.
    """

    def __init__(self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
        self._tokenizers = student, teacher
        self._found: dict[Window, NDArray[np.int64]] = {}

    def __call__(self, window: Window) -> NDArray[np.int64]:
        if window not in self._found:
            student, teacher = self._tokenizers
            self._found[window] = pairs(
                byte_ranges(student, window.text, ids=list(window.student)),
                byte_ranges(teacher, window.text, ids=list(window.teacher)),
            )
        return self._found[window]


def pad(tokens: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the right; see `Collator`."""
    longest = max(len(row) for row in tokens)
    ids = torch.full((len(tokens), longest), pad_token_id)
    mask = torch.zeros((len(tokens), longest), dtype=torch.long)
    for n, row in enumerate(tokens):
        ids[n, : len(row)] = torch.tensor(row)
        mask[n, : len(row)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
