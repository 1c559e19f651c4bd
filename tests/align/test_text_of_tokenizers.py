"""Rows of the plan from the text for trained tokenizers of every kind and any text, by counting bytes."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given

from mlot.align import VocabularyMap, byte_ranges, text_positions
from tokenizer_cases import TEXTS, TILING, tokenizer

#: Text whose tokens spell it otherwise, or are special.
_SKIPPED = ("▁", "<0x", "<s>", "</s>")
PAIRS = [
    (one, other) for one in TILING for other in ("byte_level", "llama", "unigram_fallback") if one != other
]


@cache
def mapped(student, teacher):
    return VocabularyMap.from_tokenizers(tokenizer(student), tokenizer(teacher))


def _framed(name, text):
    """Tokens after a start token, with the bytes that each of them spells before, and in, the text."""
    own = tokenizer(name)
    ids = [own.token_to_id("<s>"), *own.encode(text, add_special_tokens=False).ids]
    return byte_ranges(own, text, ids=ids)


def _read(tokens, strings, text):
    """Bytes of the text that have been read before each token; a space put before it is not of the text."""
    joined = [strings[int(i)] for i in tokens.ids[1:]]
    added = len(b"".join(joined)) - len(text.encode())
    read, at = [], -added
    for word in joined:
        read.append(at)
        at += len(word)
    return read, added


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@given(text=TEXTS.filter(lambda text: text and not any(mark in text for mark in _SKIPPED)))
def test_rows_are_those_of_counting_bytes(student, teacher, text):
    vocabulary = mapped(student, teacher)
    mine, others = _framed(student, text), _framed(teacher, text)
    for tokens, name in ((mine, student), (others, teacher)):
        if tokenizer(name).token_to_id("<unk>") in tokens.ids:
            return  # what is unknown spells nothing
    data = text.encode()
    own, own_added = _read(mine, vocabulary.student_bytes, text)
    other, other_added = _read(others, vocabulary.teacher_bytes, text)
    expected = []
    for n, at in enumerate(own):
        size = len(vocabulary.student_bytes[int(mine.ids[n + 1])])
        if at + size <= 0:
            continue  # a space put before the text, as a token of its own
        if at < 0 and not (
            own_added
            and other_added
            and other[0] < 0 < other[0] + len(vocabulary.teacher_bytes[int(others.ids[1])])
        ):
            continue  # a token that begins with such a space, where the teacher has none
        e = at if at >= 0 or other_added == 0 else other[0]
        t = max(m for m, begin in enumerate(other) if begin <= max(e, other[0]))
        expected.append([n, t, e - other[t]])
    rows, counts = text_positions(mine, others, data, vocabulary, return_counts=True)
    assert rows[:, :3].tolist() == expected
    assert set(counts) <= {"no_bytes", "student_space"}
    for _, j, depth, start, low, high, *_ in rows.tolist():
        word = vocabulary.teacher_bytes[int(others.ids[j + 1])]
        same = [vocabulary.teacher_bytes[int(i)] for i in vocabulary.order[start:high]]
        assert all(each.startswith(word[:depth]) for each in same)
        assert [each == word[:depth] for each in same] == [True] * (low - start) + [False] * (high - low)
        assert sum(each.startswith(word[:depth]) for each in vocabulary.teacher_bytes.all() if each) == len(
            same
        )
