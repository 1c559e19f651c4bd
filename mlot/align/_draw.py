"""Pictures of two tokenizations and their pairs."""

from __future__ import annotations

import os
import unicodedata
from itertools import pairwise

from mlot._checks import count
from mlot.align._pairs import pairs
from mlot.align._text_positions import text_positions
from mlot.align._tokens import Integers, TokenBytes, require_one_text
from mlot.align._vocabulary_map import VocabularyMap

_SHOWN = {" ": "␣", "\n": "↵", "\t": "→", "\r": "␍"}
_NAMES = ("student", "teacher")
_PLAIN, _INSIDE, _UNSERVED = "0.93", "#cfe2f3", "#f4cccc"


def draw(
    student: TokenBytes,
    teacher: TokenBytes,
    text: str,
    vocabulary: VocabularyMap | None = None,
    *,
    width: int = 100,
) -> str:
    r"""Draw two tokenizations of a text, one above the other, cut where positions are paired.

    ``│`` is a place where a position of the student and one of the teacher are paired, ``·`` an end of a
    token that is not paired, ``∅`` a token that covers no byte. Spaces are drawn as ``␣``, bytes of
    characters that are split as ``\xNN``.

    With a map of the vocabularies a third line says what of the teacher's token has been read when each of
    the student's tokens is predicted: nothing, ``∅``, at a boundary of both; ``✗`` where the position has no
    target.

    Args:
        student: tokens of the student.
        teacher: tokens of the teacher, of the same text.
        text: the text.
        vocabulary: the map of the two tokenizers, for the third line.
        width: columns after which the picture goes on below.

    Returns:
        The picture, two or three lines for each row of it.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the text is not the one that was tokenized, or ``width`` is not positive.

    >>> student = TokenBytes([0, 1], [0, 3], [3, 6], [False, False], 6)
    >>> teacher = TokenBytes([0, 1, 2], [0, 1, 3], [1, 3, 6], [False] * 3, 6)
    >>> print(draw(student, teacher, "to eat"))
    student to␣ │eat│
    teacher t·o␣│eat│
    """
    count("width", width)
    data = _data(student, teacher, text)
    paired = pairs(student, teacher)
    names = _NAMES if vocabulary is None else (*_NAMES, "read   ")
    drawn = [_cells(_shown(tokens, data), paired[:, side]) for side, tokens in enumerate((student, teacher))]
    if vocabulary is not None:
        drawn.append(_cells(_read(student, teacher, data, vocabulary), paired[:, 0]))
    rows: list[str] = []
    lines, used = [""] * len(names), 0
    for cells in zip(*drawn, strict=True):
        size = max(map(_columns, cells)) + 1
        if used and used + size > width:
            rows += [f"{name} {line}" for name, line in zip(names, lines, strict=True)] + [""]
            lines, used = [""] * len(names), 0
        lines = [
            f"{line}{cell}{' ' * (size - 1 - _columns(cell))}│"
            for line, cell in zip(lines, cells, strict=True)
        ]
        used += size
    return "\n".join(rows + [f"{name} {line}" for name, line in zip(names, lines, strict=True)])


def plot(
    student: TokenBytes,
    teacher: TokenBytes,
    text: str,
    path: str | os.PathLike[str],
    vocabulary: VocabularyMap | None = None,
    *,
    bytes_per_row: int = 80,
) -> None:
    """Plot two tokenizations of a text as rows of boxes, joined where positions are paired.

    With a map of the vocabularies the student's boxes say what predicts them: white at a boundary of both,
    blue inside of a token of the teacher, red where there is no target.

    Args:
        student: tokens of the student, drawn above.
        teacher: tokens of the teacher, of the same text.
        text: the text.
        path: the picture; its ending says the format (png, svg, pdf).
        vocabulary: the map of the two tokenizers, for the colours.
        bytes_per_row: bytes of text after which the picture goes on below.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument is of the wrong kind.
        ValueError: the text is not the one that was tokenized, or ``bytes_per_row`` is not positive.
    """
    count("bytes_per_row", bytes_per_row)
    data = _data(student, teacher, text)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    paired = pairs(student, teacher)
    own = _colors(student, teacher, data, vocabulary)
    rows = max(1, -(-len(data) // bytes_per_row))
    figure = Figure(figsize=(min(bytes_per_row, max(len(data), 10)) * 0.16 + 1, 1.1 * rows + 0.4))
    all_axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    for row, axes in enumerate(all_axes):
        low, high = row * bytes_per_row, min((row + 1) * bytes_per_row, len(data))
        for height, tokens, colors in ((1.0, student, own), (0.0, teacher, [_PLAIN] * len(teacher))):
            for start, end, color in zip(tokens.starts.tolist(), tokens.ends.tolist(), colors, strict=True):
                left, right = max(start, low), min(end, high)
                if left >= right:
                    continue
                axes.broken_barh(
                    [(left, right - left)], (height + 0.1, 0.7), facecolor=color, edgecolor="0.4"
                )
                label = _plain(printable(data[start:end])) if left == start else "…"
                middle = (left + right) / 2
                axes.text(
                    middle, height + 0.45, label, ha="center", va="center", fontsize=7, parse_math=False
                )
        cuts = student.ends[paired[:, 0]]
        axes.vlines(cuts[(cuts >= low) & (cuts <= high)], 0, 1.9, color="C0", linewidth=1.5)
        axes.set(xlim=(low - 0.5, low + bytes_per_row + 0.5), ylim=(-0.1, 2), xticks=[])
        axes.set_yticks([1.45, 0.45], _NAMES)
        axes.set_frame_on(False)
    figure.tight_layout()
    figure.savefig(path)


def _colors(
    student: TokenBytes, teacher: TokenBytes, data: bytes, vocabulary: VocabularyMap | None
) -> list[str]:
    """Colours of the student's tokens; the first one is predicted by nothing."""
    if vocabulary is None:
        return [_PLAIN] * len(student)
    colors = [_PLAIN, *[_UNSERVED] * (len(student) - 1)][: len(student)]
    for i, _, depth, *_ in text_positions(student, teacher, data, vocabulary).tolist():
        colors[i + 1] = _INSIDE if depth else "white"
    return colors


def _data(student: TokenBytes, teacher: TokenBytes, text: str) -> bytes:
    require_one_text(student, teacher)
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {type(text).__name__}")
    data = text.encode()
    if len(data) != student.total:
        raise ValueError(
            f"text: expected the one that was tokenized, {student.total} bytes, got {len(data)} bytes"
        )
    return data


def _cells(shown: list[str], positions: Integers) -> list[str]:
    """What is drawn of each token, joined between one paired position and the next."""
    cuts = [0, *(positions + 1).tolist(), len(shown)]
    return ["·".join(shown[a:b]) for a, b in pairwise(cuts)]


def _shown(tokens: TokenBytes, data: bytes) -> list[str]:
    return [printable(data[a:b]) for a, b in zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)]


def _read(student: TokenBytes, teacher: TokenBytes, data: bytes, vocabulary: VocabularyMap) -> list[str]:
    """What of the teacher's token has been read before each of the student's; the first is not predicted."""
    read = ["✗"] * len(student)
    read[:1] = [" "][: len(student)]
    for i, j, depth, *_ in text_positions(student, teacher, data, vocabulary).tolist():
        read[i + 1] = printable(vocabulary.teacher_bytes[int(teacher.ids[j + 1])][:depth])
    return read


def printable(piece: bytes) -> str:
    if not piece:
        return "∅"
    return "".join(_visible(character) for character in piece.decode("utf-8", "backslashreplace"))


def _visible(character: str) -> str:
    """A character as it can stand in a picture without joining its neighbours or breaking the line."""
    if character in _SHOWN:
        return _SHOWN[character]
    if unicodedata.category(character)[0] in "CZM":
        return f"\\u{{{ord(character):x}}}"
    return character


def _columns(line: str) -> int:
    """Columns that a line takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def _plain(label: str) -> str:
    """A label in characters that the default font has."""
    known = set(_SHOWN.values()) | {"∅"}
    replaced = {"␣": "_", "␍": "\\r"}
    return "".join(
        replaced.get(c, c) if ord(c) < 0x250 or c in known else f"\\u{{{ord(c):x}}}" for c in label
    )
