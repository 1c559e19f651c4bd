"""The map of two vocabularies given by bytes, against loops over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_cases import LETTERS, VOCABULARIES, bytewise
from mlot.align import VocabularyMap


def _text(vocabulary):
    return [(word, n) for n, word in enumerate(vocabulary) if word]


def _longest(rest, student):
    """Ids of the longest student tokens that some bytes begin with."""
    fitting = [(len(word), n) for word, n in _text(student) if rest.startswith(word)]
    size = max((size for size, _ in fitting), default=0)
    return [n for length, n in fitting if length == size]


@given(student=VOCABULARIES, teacher=VOCABULARIES)
def test_longest_is_that_of_a_search_through_the_vocabulary(student, teacher):
    made = VocabularyMap.from_bytes(student, teacher)
    words = sorted(_text(teacher))
    assert made.order.tolist() == [n for _, n in words]
    assert made.offsets.tolist() == np.cumsum([0, *(len(word) for word, _ in words)]).tolist()
    for place, (word, _) in enumerate(words):
        for depth in range(len(word)):
            found = int(made.longest[made.offsets[place] + depth])
            fitting = _longest(word[depth:], student)
            if depth or not fitting or student[fitting[0]] != word:
                assert found == (fitting[0] if fitting else -1)
            else:  # whole tokens: the first teacher token of these bytes is given the first student token, ...
                same = [n for other, n in _text(teacher) if other == word]
                assert found == fitting[min(same.index(words[place][1]), len(fitting) - 1)]
    assert (made.canonical == -1).all()
    assert (made.segmentation == 0).all()


@given(student=VOCABULARIES, teacher=VOCABULARIES)
def test_canonical_is_the_students_own_tokenization(student, teacher):
    tokenize = bytewise(student)
    made = VocabularyMap.from_bytes(student, teacher, tokenize=tokenize)
    plain = VocabularyMap.from_bytes(student, teacher)
    for place, (word, _) in enumerate(sorted(_text(teacher))):
        ids = tokenize(word)
        expected = dict(zip(np.cumsum([0, *(len(student[n]) for n in ids)]).tolist(), ids, strict=False))
        if len(ids) == 1:  # the choice among tokens of the same bytes is that of the longest reading
            expected[0] = int(plain.longest[made.offsets[place]])
        low, high = made.offsets[place : place + 2]
        assert made.canonical[low:high].tolist() == [expected.get(d, -1) for d in range(len(word))]
        bits = sum(1 << d for d in expected if d)
        assert int(made.segmentation[place]) == bits
    assert np.array_equal(made.longest, plain.longest)


@given(teacher=VOCABULARIES, prefixes=st.lists(st.lists(st.sampled_from(LETTERS), max_size=3).map(b"".join)))
def test_ranges_are_those_of_a_search(teacher, prefixes):
    made = VocabularyMap.from_bytes([b"a"], teacher)
    words = [word for word, _ in sorted(_text(teacher))]
    start, low, high = made.prefix_ranges(prefixes)
    for n, prefix in enumerate(prefixes):
        equal = [m for m, word in enumerate(words) if word == prefix]
        longer = [m for m, word in enumerate(words) if word.startswith(prefix) and word != prefix]
        assert list(range(start[n], low[n])) == equal
        assert list(range(low[n], high[n])) == longer
    for n, word in enumerate(words):
        for depth in range(len(word)):
            rows = made.prefix_ranges([word[:depth]])
            assert made.ranges[:, made.offsets[n] + depth].tolist() == [int(row[0]) for row in rows]


@given(VOCABULARIES)
def test_a_vocabulary_is_mapped_to_itself(vocabulary):
    made = VocabularyMap.from_bytes(vocabulary, vocabulary)
    assert made.longest[made.offsets[:-1]].tolist() == made.order.tolist()


@given(student=VOCABULARIES, teacher=VOCABULARIES, data=st.data())
def test_ids_may_be_numbered_in_any_way(student, teacher, data):
    """A new numbering of distinct tokens is found again in the map."""
    student, teacher = list(dict.fromkeys(student)), list(dict.fromkeys(teacher))
    mine, others = (data.draw(st.permutations(range(len(side)))) for side in (student, teacher))
    one = VocabularyMap.from_bytes(student, teacher)
    other = VocabularyMap.from_bytes([student[n] for n in mine], [teacher[n] for n in others])
    assert [others[n] for n in other.order.tolist()] == one.order.tolist()
    assert [mine[n] if n >= 0 else -1 for n in other.longest.tolist()] == one.longest.tolist()


def test_borders_far_into_a_token():
    made = VocabularyMap.from_bytes([b"a"], [b"a" * 70], tokenize=lambda data: [0] * len(data))
    assert int(made.segmentation[0]) == (1 << 63) - 2
    assert (made.canonical == 0).all()


def test_tokenizations_that_spell_something_else_are_not_taken():
    student, teacher = [b"a", b"b", None], [b"ab", b"ba"]
    for tokens in ([0], [0, 0], [0, 1, 0], [2, 0, 1], [0, 9], [-1, 1], []):
        made = VocabularyMap.from_bytes(student, teacher, tokenize=lambda data, tokens=tokens: tokens)
        assert (made.canonical == -1).all()
        assert (made.segmentation == 0).all()


def test_roles_and_sizes():
    made = VocabularyMap.from_bytes([b"a", None], [None, b"a", b"b"], roles=[(0, 1)])
    assert made.roles.tolist() == [[0, 1]]
    assert (made.student_vocab_size, made.teacher_vocab_size, len(made)) == (2, 3, 2)
    assert repr(made) == "VocabularyMap(2 student ids, 3 teacher ids, 2 with text)"


@pytest.mark.parametrize(
    ("arguments", "roles", "error", "message"),
    [
        ((b"ab", [b"a"]), (), TypeError, "student_bytes: expected a sequence of byte strings, got bytes"),
        ((["a"], [b"a"]), (), TypeError, "student_bytes: expected bytes or None, got str for id 0"),
        (([b"a"], [b"a", 3]), (), TypeError, "teacher_bytes: expected bytes or None, got int for id 1"),
        (([b"a"], [b"a"]), [(0, 1)], ValueError, r"roles: expected student ids 0 to 0, got \[1\]"),
        (([b"a"], [b"a"]), [(-1, 0)], ValueError, r"roles: expected teacher ids 0 to 0, got \[-1\]"),
        (([b"a"], [b"a"]), [(0, 0), (0, 0)], ValueError, "roles: expected each teacher id once"),
        (([b"a"], [b"a"]), [0], ValueError, r"roles: expected \[teacher id, student id\] rows, got shape"),
        (([b"a"], [b"a"]), [(0.0, 0.0)], TypeError, "roles: expected integers, got float64"),
    ],
)
def test_bad_arguments(arguments, roles, error, message):
    with pytest.raises(error, match=message):
        VocabularyMap.from_bytes(*arguments, roles=roles)
