"""``python -m benchmarks align``: pairs, rows and batches of two tokenizations, beside tokenizing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.contestant import Findings, Row
from benchmarks.prepare import prepare_rows, published_pairs
from benchmarks.timing import interleaved
from mlot._hf.made import standard_library_documents, train_bpe, train_unigram
from mlot.align import VocabularyMap, byte_ranges, pairs, text_positions

_QUANTITY = "byte-exact pairs"
_TEXT = "rows of the plan from the text"
_BASELINE = "tokenizing with both tokenizers"

Pairs = list[list[list[int]]]


def run(options: argparse.Namespace) -> Findings:
    """Measure pairing on the example's text, with the example's tokenizers trained on it."""
    documents = shortened(standard_library_documents(), options.bytes)
    size = sum(len(text.encode()) for text in documents)
    tokenizers = (
        train_unigram(documents, options.student_vocabulary, 128),
        train_bpe(documents, options.teacher_vocabulary, 128),
    )
    encodings = [[_encode(tokenizer, text) for text in documents] for tokenizer in tokenizers]
    begin = time.perf_counter()
    vocabulary = VocabularyMap.from_tokenizers(*tokenizers)
    made = time.perf_counter() - begin
    rows = _measure(documents, tokenizers, encodings, vocabulary, options.repeats)
    rates = ", ".join(f"{row.name} {size / 1e6 / row.median_seconds:.1f}" for row in rows if row.seconds)
    tokens = " and ".join(f"{sum(len(one.ids) for one in side):,}" for side in encodings)
    trained = (train_bpe(documents, options.student_vocabulary, 128), tokenizers[1])
    sizes = f"BPE of {options.student_vocabulary:,} and {options.teacher_vocabulary:,} tokens"
    beyond = []
    for name, both in [(sizes, trained), *(published_pairs() if options.published else ())]:
        prepared, note = prepare_rows(name, documents, both, options.bytes, options.repeats)
        rows += prepared
        beyond.append(note)
    return Findings(
        rows,
        notes=(
            f"The standard library's docstrings: {size:,} bytes, {len(documents)} documents, {tokens} tokens",
            f"Megabytes of text per second: {rates}.",
            "The comparison of byte prefixes steps through both sides in plain Python, by the tokens' bytes.",
            f"The map of the two vocabularies is made once, in {made:.2f} s.",
            *beyond,
        ),
    )


def shortened(documents: Sequence[str], limit: int | None) -> list[str]:
    """The first documents that together have at least ``limit`` bytes."""
    kept: list[str] = []
    size = 0
    for text in documents:
        if limit is not None and size >= limit:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def prefix_pairs(student: Any, teacher: Any) -> list[list[int]]:
    """Pairs of two byte-level encodings without special tokens, whose characters are one byte each."""
    mine, others = student.tokens, teacher.tokens  # each access makes a list
    found, i, j, read, other = [], 0, 0, len(mine[0]), len(others[0])
    while i + 1 < len(mine) and j + 1 < len(others):
        if read == other:
            found.append([i, j])
        if read <= other:
            i += 1
            read += len(mine[i])
        else:
            j += 1
            other += len(others[j])
    return found


def _measure(
    documents: Sequence[str],
    tokenizers: Sequence[Any],
    encodings: Sequence[Sequence[Any]],
    vocabulary: VocabularyMap,
    repeats: int,
) -> list[Row]:
    ids = [[one.ids for one in side] for side in encodings]
    actions: dict[str, Callable[[], Pairs]] = {
        "comparison of byte prefixes": lambda: [
            prefix_pairs(one, other) for one, other in zip(*encodings, strict=True)
        ],
        "mlot.align, from encodings": partial(_pairs, documents, tokenizers, "encoding", encodings),
        "mlot.align, from ids": partial(_pairs, documents, tokenizers, "ids", ids),
    }
    rows = [
        Row(name, _QUANTITY, _BASELINE, True, "", name.startswith("mlot"), section=_QUANTITY)
        for name in actions
    ]
    found = [action() for action in actions.values()]
    for row, pairs_of_row in zip(rows, found, strict=True):
        row.value = float(sum(map(len, pairs_of_row)))
        row.is_reference = row is rows[0]
        row.agrees = pairs_of_row == found[0]
        row.value_difference = abs(row.value - float(sum(map(len, found[0])))) / max(row.value, 1.0)
    served = partial(_served, documents, tokenizers, encodings, vocabulary)
    remark = "positions of the student that have a target"
    text = Row("mlot.align, from encodings to rows", _TEXT, _BASELINE, False, remark, True, section=_TEXT)
    text.value = float(served())
    base = Row(_BASELINE, _QUANTITY, _BASELINE, False, "what pairing comes on top of", False, _QUANTITY)
    everything = [*actions.values(), partial(_tokenize, documents, tokenizers), served]
    rows += [base, text]
    for row, seconds in zip(rows, interleaved(everything, repeats, torch.device("cpu")), strict=True):
        row.seconds = seconds
    for row in rows:
        assert row.median_seconds is not None
        assert base.median_seconds is not None
        row.time_ratio = row.median_seconds / base.median_seconds
    return rows


def _encode(tokenizer: Any, text: str) -> Any:
    return tokenizer(text, add_special_tokens=False, verbose=False)[0]


def _tokenize(documents: Sequence[str], tokenizers: Sequence[Any]) -> list[Any]:
    return [_encode(tokenizer, text) for tokenizer in tokenizers for text in documents]


def _pairs(
    documents: Sequence[str], tokenizers: Sequence[Any], given: str, sides: Sequence[Sequence[Any]]
) -> Pairs:
    found = []
    for n, text in enumerate(documents):
        one, other = (
            byte_ranges(tokenizer, text, **{given: side[n]})
            for tokenizer, side in zip(tokenizers, sides, strict=True)
        )
        found.append(pairs(one, other).tolist())
    return found


def _served(
    documents: Sequence[str],
    tokenizers: Sequence[Any],
    encodings: Sequence[Sequence[Any]],
    vocabulary: VocabularyMap,
) -> int:
    """Number of the student's positions that have a target."""
    count = 0
    for n, text in enumerate(documents):
        one, other = (
            byte_ranges(tokenizer, text, encoding=side[n])
            for tokenizer, side in zip(tokenizers, encodings, strict=True)
        )
        count += len(text_positions(one, other, text, vocabulary))
    return count
