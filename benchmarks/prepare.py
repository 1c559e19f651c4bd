"""Preparing batches of texts for both models, with the plan from the text, beside tokenizing them.

Seconds are those of the processor.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import Row
from benchmarks.timing import interleaved
from mlot.align import VocabularyMap
from mlot.training import DistillationCollator

#: Bytes of the texts.
SIZES = (150, 400, 2000, 20000)
BATCH = 32
#: Where `make tokenizers` puts published ones, and which of them are student and teacher.
PUBLISHED = Path(__file__).parents[1] / ".tokenizers"
PUBLISHED_PAIRS = (("llama2", "llama3"), ("qwen3", "gemma3"))
_QUANTITY = "batches with the plan from the text"


def published_pairs() -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Published tokenizers, where they are."""
    from transformers import AutoTokenizer

    for names in PUBLISHED_PAIRS:
        if all((PUBLISHED / name).is_dir() for name in names):
            student, teacher = (AutoTokenizer.from_pretrained(PUBLISHED / name) for name in names)
            yield " and ".join(names), (student, teacher)


def prepare_rows(
    name: str, documents: Sequence[str], tokenizers: tuple[Any, Any], limit: int | None, repeats: int
) -> tuple[list[Row], str]:
    """Measure batches of a collator beside tokenizing alone.

    Args:
        name: of the tokenizers.
        documents: what texts are cut from.
        tokenizers: of the student and the teacher.
        limit: most bytes of text; ``None``: 200 000, or one batch where that is more.
        repeats: timed runs.

    Returns:
        The rows, and a note on the megabytes of text a second beyond tokenizing.
    """
    vocabulary = VocabularyMap.from_tokenizers(*tokenizers)
    collator = DistillationCollator(
        *tokenizers, pairs="text", vocabulary=vocabulary, max_length=10**8, teacher_max_length=10**8
    )
    text = "\n\n".join(documents)
    rows, rates = [], []
    for size in SIZES:
        texts = cut(text, size, limit)
        batches = [texts[n : n + BATCH] for n in range(0, len(texts), BATCH)]
        actions = [partial(_collate, collator, batches), partial(_tokenize, tokenizers, batches)]
        served = actions[0]()  # what is made once is made before
        with _one_thread():
            # Of the processor: other programs on the machine count less, and all is one thread.
            seconds = interleaved(actions, repeats, torch.device("cpu"), time.process_time)
        beyond = statistics.median(one - other for one, other in zip(*seconds, strict=True))
        total = sum(len(each.encode()) for each in texts)
        rates.append(f"{total / 1e6 / beyond:.2f} for texts of {size:,}")
        section = f"preparing batches of {BATCH} texts"
        base = f"tokenizing {size:,}-byte texts, {name}"
        remark = "positions of the student that have a target"
        made = Row(f"collator, {size:,}-byte texts, {name}", _QUANTITY, base, False, remark, True, section)
        made.value, made.seconds = float(served), seconds[0]
        alone = Row(base, _QUANTITY, base, False, "what preparing comes on top of", False, section)
        alone.seconds = seconds[1]
        made.time_ratio = statistics.median(one / other for one, other in zip(*seconds, strict=True))
        alone.time_ratio = 1.0
        rows += [made, alone]
    return (
        rows,
        f"Megabytes of text per second of the processor beyond tokenizing, {name}: {', '.join(rates)} bytes.",
    )


def cut(text: str, size: int, limit: int | None = None) -> list[str]:
    """Texts of a number of characters each, about as many bytes; one batch at least, if there are enough."""
    most = max(BATCH * size, 200_000) if limit is None else limit
    return [text[at : at + size] for at in range(0, max(min(len(text), most) - size, 1), size)]


def _collate(collator: DistillationCollator, batches: Sequence[Sequence[str]]) -> int:
    """Number of the student's positions that have a target."""
    made = [collator([{"text": each} for each in batch]) for batch in batches]
    return sum(int((each["text_positions"][..., 0] >= 0).sum()) for each in made)


def _tokenize(tokenizers: Sequence[Any], batches: Sequence[Sequence[str]]) -> int:
    for batch in batches:
        for tokenizer in tokenizers:
            tokenizer(list(batch), add_special_tokens=False, verbose=False)
    return len(batches)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep tokenizers from using several threads."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
