"""Several texts at once: ranges, pairs and rows are those of each text alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlot.align import VocabularyMap, byte_ranges, pairs, text_positions
from mlot.align._pairs import paired_tokens
from mlot.align._ranges import ranges_of_texts
from mlot.align._text_positions import rows_of_texts
from mlot.align._text_tokens import TextTokens
from tokenizer_cases import ALL, TEXTS, tokenizer

FIELDS = ("ids", "starts", "ends", "special")
#: Student and teacher: the same one, both without changes, with a space put before the text, with changes.
PAIRS = [
    ("byte_level", "byte_level"),
    ("byte_level", "byte_level_large"),
    ("llama", "byte_level"),
    ("unigram", "llama"),
    ("word_piece", "byte_level_nfkc"),
]


@cache
def mapped(student, teacher):
    return VocabularyMap.from_tokenizers(tokenizer(student), tokenizer(teacher))


def joined(tokens):
    arrays = {name: np.concatenate([getattr(each, name) for each in tokens]) for name in FIELDS}
    counts, totals = ([f(each) for each in tokens] for f in (len, lambda each: each.total))
    return TextTokens(**arrays, counts=np.array(counts), totals=np.array(totals))


def some(name, text, draw):
    """Tokens of a text: with or without those put around it, all of them or the first ones."""
    own = tokenizer(name)
    ids = own.encode(text, add_special_tokens=draw(st.booleans())).ids
    return byte_ranges(own, text, ids=ids[: draw(st.one_of(st.just(len(ids)), st.integers(0, len(ids))))])


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), framed=st.booleans(), with_encodings=st.booleans())
def test_ranges_are_those_of_each_text(name, texts, framed, with_encodings):
    own = tokenizer(name)
    encodings = own.encode_batch(texts, add_special_tokens=framed)
    ids = [each.ids for each in encodings]
    made = ranges_of_texts(own, texts, ids, encodings if with_encodings else None)
    given_as = [{"encoding": each} if with_encodings else {"ids": each.ids} for each in encodings]
    alone = [byte_ranges(own, text, **one) for text, one in zip(texts, given_as, strict=True)]
    expected = joined(alone)
    for field in (*FIELDS, "counts", "totals"):
        assert getattr(made, field).tolist() == getattr(expected, field).tolist(), field


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), data=st.data())
def test_pairs_and_rows_are_those_of_each_text(student, teacher, texts, data):
    vocabulary = mapped(student, teacher)
    sides = [[some(name, text, data.draw) for text in texts] for name in (student, teacher)]
    mine, others = map(joined, sides)
    together = "".join(texts).encode()
    rows, reasons = rows_of_texts(mine, others, together, vocabulary)
    paired = paired_tokens(mine, others).tolist()
    expected, expected_rows, expected_reasons = [], [], {}
    for n, (one, other, text) in enumerate(zip(*sides, texts, strict=True)):
        shift = np.array([mine.offsets[n], others.offsets[n]])
        expected += (pairs(one, other) + shift).tolist()
        alone, counts = text_positions(one, other, text, vocabulary, return_counts=True)
        alone[:, :2] += shift
        expected_rows += alone.tolist()
        for reason, count in counts.items():
            expected_reasons[reason] = expected_reasons.get(reason, 0) + count
    assert paired == expected
    assert rows.tolist() == expected_rows
    assert reasons == expected_reasons


def test_a_text_that_the_teacher_does_not_reach_changes_nothing_of_the_next():
    vocabulary, own = mapped("unigram", "llama"), tokenizer("llama")
    mine = [byte_ranges(tokenizer("unigram"), text) for text in ("0", "1")]
    others = [byte_ranges(own, "0", ids=[]), byte_ranges(own, "1")]
    rows, _ = rows_of_texts(*map(joined, (mine, others)), b"01", vocabulary)
    alone = text_positions(mine[1], others[1], "1", vocabulary)
    assert rows[:, 2:].tolist() == alone[:, 2:].tolist()
    assert len(rows) == len(alone) > 0


def test_texts_without_tokens_take_no_part():
    empty = np.zeros(0, np.int64)
    nothing = TextTokens(empty, empty, empty, empty.astype(bool), np.zeros(2, np.int64), np.array([0, 3]))
    rows, reasons = rows_of_texts(nothing, nothing, b"abc", mapped("byte_level", "byte_level"))
    assert rows.shape == (0, 9)
    assert reasons == {}
    assert paired_tokens(nothing, nothing).shape == (0, 2)
