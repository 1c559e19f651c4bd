"""text_positions against the definition as loops over tokens and bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_cases import VOCABULARIES, two_tokenizations
from mlot.align import (
    TEXT_POSITION_FIELDS,
    UNSERVED_REASONS,
    TokenBytes,
    VocabularyMap,
    batch_text_positions,
    pairs,
    text_positions,
)

ROLES = [(1, 1)]


def _spelling(tokens, n, vocabulary, text):
    """Bytes before the text that a token spells, or None where it does not spell the text."""
    word = vocabulary[tokens.ids[n]]
    covered = text[tokens.starts[n] : tokens.ends[n]]
    return None if not word else {covered: b"", b" " + covered: b" "}.get(word)


def _covering(tokens, byte):
    """Number of the token over a byte, or why there is none."""
    for n in range(len(tokens)):
        if tokens.starts[n] <= byte < tokens.ends[n]:
            return n
    return "teacher_gap" if byte < max(tokens.ends, default=0) else "teacher_cut"


def _expected(mine, others, text, student, teacher, i):
    """Row of one position by the definition, or the reason why it has none."""
    n = i + 1
    if student.starts[n] == student.ends[n]:
        return _end(student, teacher, others, i)
    spelled = _spelling(student, n, mine, text)
    if spelled is None:
        return "student_changed"
    e = int(student.starts[n])
    t = _covering(teacher, e)
    begun = isinstance(t, int) and teacher.starts[t] == e and _spelling(teacher, t, others, text) == b" "
    if spelled and not begun:
        return "student_space"
    if isinstance(t, str):
        return t
    before = _spelling(teacher, t, others, text)
    if before is None:
        return "teacher_changed"
    if t == 0:
        return "teacher_first"
    a = int(teacher.starts[t])
    c = b"" if spelled else before + text[a:e]
    words = sorted((word, number) for number, word in enumerate(others) if word)
    equal = [m for m, (word, _) in enumerate(words) if word == c]
    longer = [m for m, (word, _) in enumerate(words) if word.startswith(c) and word != c]
    return [
        i,
        t - 1,
        len(c),
        equal[0] if equal else longer[0],
        longer[0],
        longer[-1] + 1,
        _bits(student, mine, text, a, before, c),
        int(student.ids[n]),
        _chain(teacher, others, text, t, int(student.ends[n])),
    ]


def _bits(student, mine, text, a, before, c):
    """Places in c at which a token of the student begins, or -1 if none begins at its start."""
    begins = [
        (int(student.starts[n]), _spelling(student, n, mine, text))
        for n in range(len(student))
        if student.ends[n] > student.starts[n]
    ]
    opened = (a, b" ") in begins if before else any(start == a for start, _ in begins)
    if not opened:
        return -1
    return sum(
        1 << place
        for place in {start - a + len(before) for start, _ in begins if start > a}
        if 1 <= place <= len(c)
    )


def _chain(teacher, others, text, t, end):
    """Tokens from t on until a byte before the end is covered, each right after the one before."""
    count, n = 1, t
    while teacher.ends[n] < end:
        after = n + 1
        fits = (
            after < len(teacher)
            and teacher.starts[after] == teacher.ends[n]
            and teacher.ends[after] > teacher.starts[after]
            and _spelling(teacher, after, others, text) == b""
        )
        if not fits:
            return 1
        count, n = count + 1, after
    return count


def _end(student, teacher, others, i):
    """Row of a position whose next token covers nothing: the last one before the special tokens that close."""

    def final(tokens, n):
        reached = [0, *tokens.ends.tolist()]
        empty = [bool(tokens.special[m]) and tokens.ends[m] == reached[m] for m in range(len(tokens))]
        rest = empty[n + 1 :]
        return bool(rest) and all(rest) and (not empty[n] or n == 0)

    if not final(student, i):
        return "no_bytes"
    for j in range(len(teacher) - 1):
        role = (int(teacher.ids[j + 1]), int(student.ids[i + 1]))
        if final(teacher, j) and student.ends[i] == teacher.ends[j] and role in ROLES:
            count = sum(bool(word) for word in others)
            return [i, j, 0, 0, 0, count, 0, role[1], 1]
    return "end"


@given(two_tokenizations())
def test_rows_and_reasons_are_those_of_the_definition(case):
    mine, others, text, student, teacher = case
    made = VocabularyMap.from_bytes(mine, others, roles=ROLES)
    rows, counts = text_positions(student, teacher, text, made, return_counts=True)
    expected = [_expected(mine, others, text, student, teacher, i) for i in range(len(student) - 1)]
    assert rows.tolist() == [row for row in expected if not isinstance(row, str)]
    reasons = [row for row in expected if isinstance(row, str)]
    assert counts == {name: reasons.count(name) for name in UNSERVED_REASONS if name in reasons}
    assert rows.shape == (len(rows), len(TEXT_POSITION_FIELDS))
    assert np.array_equal(rows, text_positions(student, teacher, text, made))


@given(two_tokenizations(framed=False))
def test_every_position_inside_a_kept_text_has_a_row(case):
    mine, others, text, student, teacher = case
    made = VocabularyMap.from_bytes(mine, others, roles=ROLES)
    rows, counts = text_positions(student, teacher, text, made, return_counts=True)
    assert counts == {}
    assert rows[:, 0].tolist() == list(range(len(student) - 1))
    boundaries = rows[rows[:, 2] == 0][:, :2]
    if not (np.array_equal(student.ids, teacher.ids) and np.array_equal(student.ends, teacher.ends)):
        assert boundaries.tolist() == pairs(student, teacher).tolist()
    assert (rows[rows[:, 2] == 0][:, 3:7] == [0, 0, len(made), 0]).all()


@given(two_tokenizations(framed=False))
def test_equal_tokens_have_boundaries_alone(case):
    mine, _, text, student, _ = case
    made = VocabularyMap.from_bytes(mine, mine, roles=ROLES)
    rows = text_positions(student, student, text, made)
    assert np.array_equal(rows[:, 0], rows[:, 1])
    assert (rows[:, 2] == 0).all()
    assert (rows[:, 8] == 1).all()
    assert len(rows) == len(student) - 1


@given(vocabulary=VOCABULARIES, case=two_tokenizations())
def test_any_ids_have_rows_or_reasons(vocabulary, case):
    """Ids that the map does not know spell nothing."""
    _, _, text, student, teacher = case
    made = VocabularyMap.from_bytes(vocabulary, vocabulary)
    rows, counts = text_positions(student, teacher, text, made, return_counts=True)
    assert len(rows) + sum(counts.values()) == max(len(student) - 1, 0)


def test_borders_agree_with_the_students_own_tokenization():
    words = [b"a", b"ab", b"b", b"abab", None]
    made = VocabularyMap.from_bytes(words, words, tokenize=lambda data: [1, 1] if data == b"abab" else [0, 2])
    teacher = TokenBytes([4, 3], [0, 0], [0, 4], [True, False], 4)
    for ids, ends, agrees in (
        ([1, 1], [2, 4], True),
        ([1, 0, 2], [2, 3, 4], False),
        ([0, 2, 1], [1, 2, 4], False),
    ):
        student = TokenBytes([4, *ids], [0, 0, *ends[:-1]], [0, *ends], [True] + [False] * len(ids), 4)
        last = text_positions(student, teacher, b"abab", made)[-1].tolist()
        depth, borders = last[2], last[6]
        number = made.rank[3]
        assert (int(made.segmentation[number]) & ((2 << depth) - 2) == borders) is agrees


def test_borders_are_not_told_far_into_a_token():
    text = b"a" * 70
    made = VocabularyMap.from_bytes([b"a", None], [text, None])
    student = TokenBytes([1] + [0] * 70, [0, *range(70)], [0, *range(1, 71)], [True] + [False] * 70, 70)
    teacher = TokenBytes([1, 0], [0, 0], [0, 70], [True, False], 70)
    rows = text_positions(student, teacher, text, made)
    assert rows[:, 2].tolist() == list(range(70))
    assert rows[62, 6] == (1 << 63) - 2
    assert (rows[63:, 6] == -1).all()


@given(
    st.lists(two_tokenizations(), max_size=4),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=4),
)
def test_batches_are_padded_and_shifted(cases, shifts):
    rows = [
        text_positions(student, teacher, text, VocabularyMap.from_bytes(mine, others))
        for mine, others, text, student, teacher in cases
    ]
    mine, others = ([shift[side] for shift in shifts[: len(rows)]] for side in range(2))
    batch = batch_text_positions(rows, student_offset=mine, teacher_offset=others)
    assert batch.shape == (len(rows), max(map(len, rows), default=0), 9)
    for n, row in enumerate(rows):
        moved = row + np.array([mine[n], others[n], *[0] * 7])
        assert np.array_equal(batch[n, : len(row)], moved)
        assert (batch[n, len(row) :] == -1).all()


def test_bad_arguments():
    made = VocabularyMap.from_bytes([b"a"], [b"a"])
    tokens = TokenBytes([0], [0], [1], [False], 1)
    with pytest.raises(TypeError, match="student: expected TokenBytes"):
        text_positions([0], tokens, "a", made)
    with pytest.raises(TypeError, match="text: expected a string or bytes, got list"):
        text_positions(tokens, tokens, ["a"], made)
    with pytest.raises(ValueError, match="text: expected the one that was tokenized, 1 bytes, got 2 bytes"):
        text_positions(tokens, tokens, "ab", made)
    with pytest.raises(TypeError, match="vocabulary: expected a VocabularyMap, got dict"):
        text_positions(tokens, tokens, "a", {})
    with pytest.raises(TypeError, match="return_counts"):
        text_positions(tokens, tokens, "a", made, return_counts="yes")
    with pytest.raises(TypeError, match="positions: expected rows for each sequence, got int"):
        batch_text_positions(3)
    with pytest.raises(
        ValueError, match=r"positions: expected \(P, 9\) for each sequence, got shape \(1, 2\)"
    ):
        batch_text_positions([[[0, 0]]])
    with pytest.raises(TypeError, match="positions: expected integers, got float64"):
        batch_text_positions([np.zeros((1, 9))])
    with pytest.raises(ValueError, match="positions: expected positions >= 0, got -1"):
        batch_text_positions([np.full((1, 9), -1)])
    with pytest.raises(ValueError, match="student_offset: expected integers >= 0, got -1"):
        batch_text_positions([np.zeros((1, 9), int)], student_offset=-1)
