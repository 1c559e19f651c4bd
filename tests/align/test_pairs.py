"""pairs against a literal search over all positions, and what a loss makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

import mlot
from mlot.align import TokenBytes, batch_pairs, byte_ranges, pairs
from tokenizer_cases import ALL, TEXTS, tokenizer

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _tokens(ends, *, starts=None, special=None, ids=None, total=None):
    starts = [0, *ends][: len(ends)] if starts is None else starts
    special = [False] * len(ends) if special is None else special
    ids = range(len(ends)) if ids is None else ids
    return TokenBytes(list(ids), starts, ends, special, max([0, *ends]) if total is None else total)


@st.composite
def two_tokenizations(draw, special=True):
    """Any cuts of one text, with empty tokens, gaps and special tokens."""
    total = draw(st.integers(0, 12))
    sides = []
    for first in (0, 1000):
        count = draw(st.integers(0, 10))
        cuts = sorted(draw(st.lists(st.integers(0, total), min_size=2 * count, max_size=2 * count)))
        starts, ends = cuts[0::2], cuts[1::2]
        marks = draw(st.lists(st.booleans(), min_size=count, max_size=count)) if special else [False] * count
        sides.append(
            _tokens(ends, starts=starts, special=marks, ids=range(first, first + count), total=total)
        )
    return sides


def _searched(student, teacher):
    """Every two positions, by the definition."""
    found = []
    for i in range(len(student)):
        for j in range(len(teacher)):
            same = student.ends[i] == teacher.ends[j]
            if same and all(_predicts_text(side, n) for side, n in ((student, i), (teacher, j))):
                found.append([i, j])
            if same and all(_predicts_the_end(side, n) for side, n in ((student, i), (teacher, j))):
                found.append([i, j])
    return found


def _predicts_text(tokens, n):
    return n + 1 < len(tokens) and tokens.ends[n + 1] > tokens.ends[n]


def _predicts_the_end(tokens, n):
    """Whether only empty special tokens follow, at least one, and position n is no such token itself."""
    reached = [0, *tokens.ends.tolist()]
    empty = [bool(tokens.special[m]) and tokens.ends[m] == reached[m] for m in range(len(tokens))]
    follow = empty[n + 1 :]
    return len(follow) > 0 and all(follow) and (not empty[n] or n == 0)


@given(two_tokenizations())
def test_pairs_are_those_of_a_search_over_all_positions(sides):
    assert pairs(*sides).tolist() == _searched(*sides)


@given(two_tokenizations(special=False))
def test_without_special_tokens_pairs_are_equal_prefix_ends(sides):
    """All (i, j) whose prefixes end at one byte and that are not final, the last of each run of empty tokens."""
    student, teacher = sides
    expected = {}
    for i in range(len(student) - 1):
        for j in range(len(teacher) - 1):
            further = student.ends[i] < student.ends[-1] and teacher.ends[j] < teacher.ends[-1]
            if student.ends[i] == teacher.ends[j] and further:
                expected[int(student.ends[i])] = [i, j]
    assert pairs(student, teacher).tolist() == list(expected.values())


@pytest.mark.parametrize(
    "teacher", ["llama", "unigram", "byte_level_nfkc", "word_piece", "byte_level_prefix"]
)
@pytest.mark.parametrize("student", ["byte_level_large", "unigram_fallback", "word_piece_cased"])
@given(text=TEXTS)
def test_pairs_of_trained_tokenizers(student, teacher, text):
    one, other = byte_ranges(tokenizer(student), text), byte_ranges(tokenizer(teacher), text)
    found = pairs(one, other)
    assert found.dtype == np.int64
    assert found.tolist() == _searched(one, other)
    assert (np.diff(found, axis=0) > 0).all()
    assert (found < [len(one) - 1, len(other) - 1]).all()
    assert pairs(other, one).tolist() == found[:, ::-1].tolist()


@given(text=TEXTS.map(lambda text: text.replace("<s>", "").replace("</s>", "")))
def test_byte_level_pairs_are_equal_prefixes_of_bytes(text):
    """Prefixes compared as bytes, decoded here; every position of either side is considered."""
    one, other = tokenizer("byte_level").encode(text), tokenizer("byte_level_large").encode(text)
    read = [
        [
            sum(len(token) if token not in ("<s>", "</s>") else 0 for token in side.tokens[: n + 1])
            for n in range(len(side))
        ]
        for side in (one, other)
    ]  # each character of a byte-level token is one byte
    data = text.encode()
    for side, reached in zip((one, other), read, strict=True):
        spelled = b"".join(
            bytes(BYTE_OF[c] for c in token) for token in side.tokens if token not in ("<s>", "</s>")
        )
        assert spelled == data
        assert (max(reached, default=0)) == len(data)
    expected = [
        [i, j]
        for i in range(len(one) - 1)
        for j in range(len(other) - 1)
        if data[: read[0][i]] == data[: read[1][j]] and read[0][i] < len(data)
    ]
    student, teacher = (
        byte_ranges(tokenizer("byte_level"), text),
        byte_ranges(tokenizer("byte_level_large"), text),
    )
    assert pairs(student, teacher).tolist() == expected


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_a_tokenizer_pairs_with_itself_everywhere(name, text):
    tokens = byte_ranges(tokenizer(name), text)
    positions = list(range(max(len(tokens) - 1, 0)))
    assert pairs(tokens, byte_ranges(tokenizer(name), text)).tolist() == [[n, n] for n in positions]


@pytest.mark.parametrize("name", ["llama", "unigram", "word_piece", "byte_level_large"])
@given(text=TEXTS)
def test_a_frame_on_one_side_only(name, text):
    """BOS pairs with nothing where the other side has read nothing; all further text is paired."""
    framed = byte_ranges(tokenizer(name), text)
    plain = byte_ranges(tokenizer(name), text, add_special_tokens=False)
    shift = int(plain.ends[:1].tolist() != framed.ends[:1].tolist() or len(framed) - len(plain) == 2)
    expected = [[n + shift, n] for n in range(len(plain) - 1) if plain.ends[n] < plain.ends[n + 1]]
    assert pairs(framed, plain).tolist() == expected


def test_pairs_by_hand():
    bos = [True, False, False]
    student = _tokens([0, 3, 7], special=bos)
    assert pairs(student, _tokens([3, 7])).tolist() == [[1, 0]]
    assert pairs(student, _tokens([0, 7], special=bos[:2])).tolist() == [[0, 0]]
    # Of two positions at byte 0, the one that predicts text.
    assert pairs(student, _tokens([0, 0, 7], special=bos)).tolist() == [[0, 1]]
    # Both predict the end; padding behind it does not count.
    closed = _tokens([3, 7, 7, 7], special=[False, False, True, True])
    assert pairs(closed, _tokens([7, 7], special=[False, True])).tolist() == [[1, 0]]
    # One predicts further text that the other one drops.
    assert pairs(_tokens([5, 6], total=6), _tokens([5, 5], special=[False, True], total=6)).tolist() == []
    # Nothing to predict from, or nothing to predict.
    assert pairs(_tokens([7]), _tokens([7])).shape == (0, 2)
    assert pairs(_tokens([], total=7), _tokens([3, 7])).shape == (0, 2)
    assert pairs(_tokens([0, 0], special=[True, True]), _tokens([0, 0, 0], special=[True] * 3)).tolist() == [
        [0, 0]
    ]


def test_pairs_serve_the_loss():
    """Left padding moves positions, pairs move with them, and the loss does not change."""
    rng = np.random.default_rng(0)
    texts = ["the quick brown fox", "naïve 東京 dog"]
    sides = [[byte_ranges(tokenizer(name), text) for text in texts] for name in ("llama", "byte_level")]
    logits = [rng.normal(size=(2, max(map(len, side)), 40)) for side in sides]
    masks = [
        np.array([[n < len(one) - 1 for n in range(z.shape[1])] for one in side])
        for side, z in zip(sides, logits, strict=True)
    ]
    found = [pairs(student, teacher) for student, teacher in zip(*sides, strict=True)]
    assert min(map(len, found)) >= 2
    config = mlot.MultiLevelOTConfig(k=5)
    straight = mlot.multi_level_ot(
        *logits, student_mask=masks[0], teacher_mask=masks[1], pairs=batch_pairs(found), config=config
    )
    pad = [4, 2]
    for side, count in enumerate(pad):
        logits[side] = np.concatenate([rng.normal(size=(2, count, 40)), logits[side]], axis=1)
        masks[side] = np.concatenate([np.zeros((2, count), bool), masks[side]], axis=1)
    moved = batch_pairs(found, student_offset=pad[0], teacher_offset=[pad[1]] * 2)
    padded = mlot.multi_level_ot(
        *logits, student_mask=masks[0], teacher_mask=masks[1], pairs=moved, config=config
    )
    assert padded.diagnostics().pairs.tolist() == list(map(len, found))
    np.testing.assert_allclose(padded.loss, straight.loss, rtol=1e-12)


def test_batches_of_pairs():
    batch = batch_pairs(
        [[[0, 1], [2, 3]], np.zeros((0, 2), int), [[5, 5]]], student_offset=[1, 2, 3], teacher_offset=10
    )
    assert batch.tolist() == [[[1, 11], [3, 13]], [[-1, -1]] * 2, [[8, 15], [-1, -1]]]
    assert batch.dtype == np.int64
    assert batch_pairs([]).shape == (0, 0, 2)
    assert batch_pairs([[], []]).shape == (2, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            [[[1, 2, 3]]],
            {},
            ValueError,
            r"pairs: expected \(P, 2\) for each sequence, got shape \(3,\) for number 0",
        ),
        ([[[[1.5, 2]]]], {}, TypeError, "pairs: expected integers, got float64 for number 0"),
        ([[[[1, -1]]]], {}, ValueError, "pairs: expected positions >= 0, got -1 for number 0"),
        (
            [[[[1, 1]]]],
            {"student_offset": [1, 2]},
            ValueError,
            "student_offset: expected one integer or 1 of them",
        ),
        ([[[[1, 1]]]], {"teacher_offset": -1}, ValueError, "teacher_offset: expected integers >= 0, got -1"),
        ([[[[1, 1]]]], {"teacher_offset": 0.5}, TypeError, "teacher_offset: expected integers, got float64"),
    ],
)
def test_bad_batches(arguments, options, error, message):
    with pytest.raises(error, match=message):
        batch_pairs(*arguments, **options)


def test_bad_pairs():
    tokens = _tokens([3, 7])
    with pytest.raises(TypeError, match="student: expected TokenBytes .* got list"):
        pairs([1], tokens)
    with pytest.raises(TypeError, match="teacher: expected TokenBytes .* got ndarray"):
        pairs(tokens, np.zeros(3))
    with pytest.raises(ValueError, match="teacher: expected tokens of the student's text, 7 bytes, got 8"):
        pairs(tokens, _tokens([3, 8]))


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            ([1], [0], [2], [False], 1),
            ValueError,
            "starts, ends: expected ranges in order and within 1 bytes",
        ),
        (([1, 2], [0, 1], [2, 3], [False] * 2, 3), ValueError, "starts, ends: expected ranges in order"),
        (([1], [-1], [1], [False], 1), ValueError, "starts, ends: expected ranges in order"),
        (([1], [1], [0], [False], 1), ValueError, "starts, ends: expected ranges in order"),
        (([1], [0, 1], [1], [False], 1), ValueError, r"starts: expected shape \(1,\), as ids, got \(2,\)"),
        (([1], [0], [1], [0], 1), TypeError, "special: expected booleans, got int64"),
        (([1], [0.0], [1], [False], 1), TypeError, "starts: expected integers, got float64"),
        (([1], [0], [1], [False], 1.0), TypeError, "total: expected an integer >= 0, got float 1.0"),
        (([], [], [], [], -1), ValueError, "starts, ends: expected ranges"),
    ],
)
def test_bad_token_bytes(values, error, message):
    with pytest.raises(error, match=message):
        TokenBytes(*values)


def test_token_bytes_cannot_be_changed():
    ends = np.array([3, 7])
    tokens = _tokens(ends)
    ends[0] = 5
    assert tokens.ends.tolist() == [3, 7]
    with pytest.raises(ValueError, match="read-only"):
        tokens.ends[0] = 4
    with pytest.raises(AttributeError):
        tokens.total = 3
    assert repr(tokens) == "TokenBytes(2 tokens, 7 bytes, exact=True)"
    assert len(tokens) == 2
