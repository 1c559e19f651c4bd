"""The plan from the text for one window, to be shown: both tokenizations, what was read, likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import mlot
from mlot import MultiLevelOTConfig, TextPositions
from mlot.align import TEXT_POSITION_FIELDS, byte_ranges, draw
from mlot.align._draw import printable
from mlot.training._inspect import predicted_by, spell
from mlot.training._windows import Examples

#: The example shown is that of the student's tokens nearest to so many; positions and tokens of each listed.
_WANTED, _POSITIONS, _LIKELIEST = 26, 40, 3
_COLUMNS = 100


@dataclass(frozen=True)
class PositionTarget:
    """What the text's plan says at one position.

    Attributes:
        token: the student's next token in the text, made fit to be shown.
        read: what of the teacher's token has been read before it; ``None`` where there is no target.
        likeliest: the likeliest tokens of the target, with their probabilities.
    """

    token: str
    read: str | None
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TextPicture:
    """The text's plan for one window.

    Attributes:
        drawing: lines of text, as `mlot.align.draw` makes them.
        targets: of its first positions.
    """

    drawing: str
    targets: tuple[PositionTarget, ...]


def paint_text(
    examples: Examples,
    indices: Sequence[int],
    tokenizers: tuple[Any, Any],
    teacher: Any,
    config: MultiLevelOTConfig,
) -> TextPicture | None:
    """Picture the text's plan for that window of text which can be read best; ``None`` if there are none.

    Args:
        examples: in the student's tokens, with the map of both vocabularies.
        indices: those that may be shown.
        tokenizers: of the student and the teacher.
        teacher: a causal language model, or a saved teacher.
        config: settings of the loss.
    """
    vocabulary, plan = examples.collator.vocabulary, examples.collator.plan
    windows = [n for n in indices if examples.pieces[n].record is None]
    if vocabulary is None or plan is None or not windows:
        return None
    index = min(windows, key=lambda n: abs(len(examples[n]["input_ids"]) - _WANTED))
    row, text = examples[index], examples.pieces[index].text
    student, others = (
        byte_ranges(tokenizer, text, ids=np.asarray(row[name]))
        for tokenizer, name in zip(tokenizers, ("input_ids", "teacher_input_ids"), strict=True)
    )
    batch = examples.collator([row])
    source, mask = predicted_by(teacher, examples, [index])
    device = source.device if isinstance(source, torch.Tensor) else "cpu"
    targets = mlot.text_targets(
        source,
        TextPositions(batch["text_positions"].to(device), batch["teacher_input_ids"].to(device), plan),
        student_mask=mlot.mask_from_labels(batch["labels"].to(device)),
        teacher_mask=mask,
        k=_LIKELIEST,
        temperature=config.temperature,
    )
    ids, chances = targets.ids[0].cpu().numpy(), targets.log_probs[0].double().exp().cpu().numpy()
    fields = {name: n for n, name in enumerate(TEXT_POSITION_FIELDS)}
    served = {int(each[0]): each for each in np.asarray(row["text_positions"]).tolist()}
    asked = np.flatnonzero(np.asarray(row["labels"])[1:] != -100)[:_POSITIONS].tolist()
    names = spell(tokenizers[0], np.asarray(row["input_ids"], np.int64))
    listed = []
    for i in asked:
        each, read = served.get(i), None
        if each is not None:
            token = int(row["teacher_input_ids"][each[fields["teacher"]] + 1])
            read = printable(vocabulary.teacher_bytes[token][: each[fields["depth"]]])
        known = ids[i] >= 0
        likeliest = zip(spell(tokenizers[0], ids[i][known]), chances[i][known].tolist(), strict=True)
        listed.append(PositionTarget(names[i + 1], read, tuple(likeliest)))
    return TextPicture(draw(student, others, text, vocabulary, width=_COLUMNS), tuple(listed))
