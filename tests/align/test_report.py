"""Reports on tokenizations and pictures of them."""

from __future__ import annotations

import sys
import warnings

import pytest
from hypothesis import given

from mlot.align import TokenBytes, byte_ranges, draw, pairs, plot, report, vocabulary_overlap
from tokenizer_cases import ALL, SENTENCES, TEXTS, tokenizer


def _tokens(ends, total=None, exact=True):
    starts = [0, *ends][: len(ends)]
    return TokenBytes(
        list(range(len(ends))),
        starts,
        ends,
        [False] * len(ends),
        max([0, *ends]) if total is None else total,
        exact,
    )


def test_shares_by_hand():
    student, teacher = (
        _tokens([2, 4, 6, 10]),
        TokenBytes([9] * 5, [0, 1, 4, 6, 8], [1, 4, 6, 8, 10], [False] * 5, 10),
    )
    found = report(student, teacher)
    # Pairs at bytes 4 and 6, of 3 and 4 positions; they predict bytes 4 to 10, and 4 to 8.
    assert (found.sequences, found.pairs) == (1, 2)
    assert (found.student_positions, found.teacher_positions) == (3, 4)
    assert (found.student_share, found.teacher_share) == (2 / 3, 0.5)
    assert (found.student_bytes, found.teacher_bytes) == (0.6, 0.4)
    assert found.warnings == ()
    assert str(found).splitlines() == [
        "2 pairs in 1 sequence",
        "student: 66.7% of 3 positions paired, predicting 60.0% of the bytes",
        "teacher: 50.0% of 4 positions paired, predicting 40.0% of the bytes",
    ]


def test_several_texts_are_added_up():
    names = ("byte_level", "llama")
    sides = [[byte_ranges(tokenizer(name), text) for text in SENTENCES] for name in names]
    found = report(*sides, student_vocabulary=tokenizer(names[0]), teacher_vocabulary=tokenizer(names[1]))
    assert found.sequences == len(SENTENCES)
    assert found.pairs == sum(len(pairs(*both)) for both in zip(*sides, strict=True))
    assert found.student_positions == sum(len(one) - 1 for one in sides[0])
    assert found.student_share == found.pairs / found.student_positions
    assert (found.student_inexact, found.teacher_inexact) == (0, 0)
    assert 0 < found.student_vocabulary < 1
    assert "of its vocabulary shared" in str(found)


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_reports_of_any_text(name, text):
    found = report(byte_ranges(tokenizer(name), text), byte_ranges(tokenizer("byte_level"), text))
    for share in (found.student_share, found.teacher_share, found.student_bytes, found.teacher_bytes):
        assert 0 <= share <= 1
    assert str(found)


def test_poor_alignments_warn():
    student, teacher = _tokens([1, 3, 5, 7, 10], exact=False), _tokens([2, 4, 6, 7, 10])
    found = report([student, student], [teacher] * 2, student_vocabulary=["a"], teacher_vocabulary=["b"])
    assert found.student_share == 0.25
    expected = [
        "Only 25% of the positions that could be paired are.",
        "The student's tokenizer changes text: in 2 of 2 sequences some bytes are in no token, "
        "or their place is not certain.",
        "The vocabularies share little: at most 0.0% of one is in the other.",
    ]
    assert list(found.warnings) == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found.warn()
    assert {one.category for one in caught} == {UserWarning}
    assert [str(one.message) for one in caught] == expected
    assert all(one.filename == __file__ for one in caught)
    assert str(found).splitlines()[3:] == [f"warning: {text}" for text in expected]
    nothing = report(_tokens([10]), _tokens([5, 10]))
    assert nothing.warnings == ("No position is paired: terms that compare positions are 0.",)
    few = report(_tokens([1, 2, 10]), _tokens([1, 2, 9, 10]))
    assert few.warnings == ()
    little = report(_tokens([1, 2, 4, 100]), _tokens([1, 2, 3, 4, 7, 100], total=100))
    assert little.warnings == ("Paired positions predict only 5% of the text's bytes in teacher tokens.",)


def test_a_good_alignment_does_not_warn(recwarn):
    tokens = byte_ranges(tokenizer("llama"), SENTENCES[0])
    report(tokens, tokens).warn()
    assert not recwarn.list


def test_vocabularies_are_compared_by_what_they_spell():
    assert vocabulary_overlap(["Ġthe", "sÃ¼", "Ċ"], ["▁the", "▁sü", "▁x", "<0x0A>", "<0x00>"]) == (1.0, 0.6)
    assert vocabulary_overlap({"the": 0, "##s": 1, "dog": 2}, ["Ġthe", "s", "Ġcat"]) == (2 / 3, 2 / 3)
    assert vocabulary_overlap(["a</w>", "b"], ["a@@", "c"]) == (0.5, 0.5)
    assert vocabulary_overlap([], ["a"]) == (0.0, 0.0)
    for name in ALL:
        assert vocabulary_overlap(tokenizer(name), tokenizer(name)) == (1.0, 1.0)
    large, small = tokenizer("byte_level_large"), tokenizer("byte_level")
    of_large, of_small = vocabulary_overlap(large, small)
    assert 0 < of_large < of_small
    # The vocabulary alone spells the same as its tokenizer, special tokens aside.
    words = [word for word in small.get_vocab() if word not in ("<s>", "</s>")]
    assert vocabulary_overlap(words, small) == (1.0, 1.0)


def test_bad_reports():
    tokens = _tokens([3, 7])
    with pytest.raises(ValueError, match="teacher: expected 2 sequences, as student, got 1"):
        report([tokens, tokens], tokens)
    with pytest.raises(ValueError, match="teacher: expected tokens of the student's text, 7 bytes, got 3"):
        report(tokens, _tokens([3]))
    with pytest.raises(
        ValueError, match="teacher_vocabulary: expected both vocabularies or neither, got None"
    ):
        report(tokens, tokens, student_vocabulary=["a"])
    with pytest.raises(TypeError, match="student: expected TokenBytes .* got int"):
        report([1], [tokens])
    with pytest.raises(TypeError, match="teacher_vocabulary: expected a tokenizer or token strings, got str"):
        vocabulary_overlap(["a"], "a")
    with pytest.raises(
        TypeError, match="student_vocabulary: expected a tokenizer or token strings, got list"
    ):
        vocabulary_overlap([1], ["a"])


def test_pictures_by_hand():
    student, teacher = (
        _tokens([3, 5, 9, 12, 13]),
        TokenBytes([0] * 5, [0, 0, 3, 6, 12], [0, 3, 6, 12, 13], [False] * 5, 13),
    )
    text = "the dog\n\u00fc日"
    assert len(text.encode()) == 13
    assert draw(student, teacher, text).splitlines() == [
        "student the  │␣d·og↵\\xc3·\\xbc\\xe6\\x97│\\xa5│",
        "teacher ∅·the│␣do·g↵ü\\xe6\\x97        │\\xa5│",
    ]
    wrapped = draw(student, teacher, text, width=12).splitlines()
    assert wrapped[:3] == ["student the  │", "teacher ∅·the│", ""]
    assert [line[:7] for line in wrapped] == [
        "student",
        "teacher",
        "",
        "student",
        "teacher",
        "",
        "student",
        "teacher",
    ]


def test_wide_characters_keep_columns_straight():
    text = "日本 a"
    lines = draw(_tokens([3, 6, 8]), _tokens([6, 7, 8]), text).splitlines()
    assert lines == ["student 日·本│␣a │", "teacher 日本 │␣·a│"]


@given(text=TEXTS)
def test_pictures_of_any_text(text):
    student, teacher = byte_ranges(tokenizer("llama"), text), byte_ranges(tokenizer("byte_level_nfkc"), text)
    lines = draw(student, teacher, text, width=40).split("\n")
    bars = len(pairs(student, teacher)) + 1
    for name in ("student", "teacher"):
        drawn = "".join(line.removeprefix(name) for line in lines if line.startswith(name))
        assert drawn.count("│") == bars + text.count("│")


def test_plots(tmp_path):
    text = "the $x$ 日本 fox 😀 and the lazy dog " * 3
    student, teacher = byte_ranges(tokenizer("llama"), text), byte_ranges(tokenizer("byte_level"), text)
    one, rows, empty = tmp_path / "one.png", tmp_path / "rows.svg", tmp_path / "empty.png"
    plot(student, teacher, text, one, bytes_per_row=200)
    plot(student, teacher, text, rows, bytes_per_row=30)
    plot(_tokens([]), _tokens([]), "", empty)
    assert one.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in rows.read_text()
    assert empty.stat().st_size > 0


def test_bad_pictures(tmp_path, monkeypatch):
    tokens = _tokens([3, 7])
    with pytest.raises(ValueError, match="text: expected the one that was tokenized, 7 bytes, got 3 bytes"):
        draw(tokens, tokens, "abc")
    with pytest.raises(TypeError, match="text: expected a string, got bytes"):
        plot(tokens, tokens, b"abcdefg", tmp_path / "x.png")
    with pytest.raises(ValueError, match="width: expected an integer >= 1, got 0"):
        draw(tokens, tokens, "abcdefg", width=0)
    with pytest.raises(TypeError, match="bytes_per_row: expected an integer >= 1, got float"):
        plot(tokens, tokens, "abcdefg", tmp_path / "x.png", bytes_per_row=1.5)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot needs matplotlib"):
        plot(tokens, tokens, "abcdefg", tmp_path / "x.png")
