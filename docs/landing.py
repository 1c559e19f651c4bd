"""The picture of the landing page: a sentence in the tokens of two tokenizers, and the plan between them."""

from __future__ import annotations

import numpy as np
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from mlot.align import TokenBytes, VocabularyMap, text_positions

#: SmolLM2's tokens, and those of a byte-level BPE of 50,257 tokens trained on Python's standard library.
TEACHER = ["Un", "belie", "v", "ably", ",", " the", " student", " learns", " from", " its", " teacher", "'s"]
STUDENT = ["Un", "be", "li", "ev", "ably", ",", " the", " st", "udent", " learn", "s", " from", " its"]
STUDENT += [" t", "each", "er", "'s"]


def _tokens(pieces: list[str]) -> tuple[TokenBytes, list[bytes | None]]:
    """Tokens of the sentence after a start token, and a vocabulary of these alone."""
    vocabulary: list[bytes | None] = [None, *dict.fromkeys(piece.encode() for piece in pieces)]
    ends = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    ids = [0, *(vocabulary.index(piece.encode()) for piece in pieces)]
    special = [True] + [False] * len(pieces)
    return TokenBytes(ids, [0, *ends[:-1]], ends, special, int(ends[-1])), vocabulary


def tokens() -> Figure:
    """Both rows of tokens, and a band from each student token to the teacher's that predicts it."""
    (student, student_words), (teacher, teacher_words) = _tokens(STUDENT[:11]), _tokens(TEACHER[:8])
    vocabulary = VocabularyMap.from_bytes(student_words, teacher_words)
    text = "".join(TEACHER[:8])
    rows = text_positions(student, teacher, text, vocabulary)
    figure, axes = pyplot.subplots(figsize=(5.2, 2.4))
    for i, j, depth, *_ in rows.tolist():
        (a, b), (c, d) = ((side.starts[n + 1], side.ends[n + 1]) for side, n in ((teacher, j), (student, i)))
        shade = {"facecolor": "C1", "alpha": 0.55} if depth else {"facecolor": "C0", "alpha": 0.25}
        axes.add_patch(Polygon([(a, 1), (b, 1), (d, 0), (c, 0)], linewidth=0, **shade))
    for side, height, color in ((teacher, 1.0, "#dfe8f5"), (student, -0.45, "#f5ead9")):
        for start, end in zip(side.starts[1:], side.ends[1:], strict=True):
            axes.broken_barh([(start, end - start)], (height, 0.45), facecolor=color, edgecolor="0.35")
            label = text[start:end].replace(" ", "\u00b7")
            axes.text(
                (start + end) / 2, height + 0.22, label, ha="center", va="center", fontsize=9, color="black"
            )
    axes.set(xlim=(-0.3, student.total + 0.3), ylim=(-0.5, 1.5), xticks=[])
    axes.set_yticks([1.22, -0.22], ["teacher", "student"])
    axes.tick_params(left=False)
    axes.set_frame_on(False)
    return figure
