"""Reports on the plan from the text, and pictures of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_cases import VOCABULARIES, two_tokenizations
from mlot.align import TextReport, TokenBytes, VocabularyMap, draw, plot, text_positions, text_report

ROLES = [(1, 1)]


@given(student=VOCABULARIES, teacher=VOCABULARIES)
def test_shares_of_a_vocabulary(student, teacher):
    words = [word for word in teacher if word]
    equal = sum(word in student for word in words)
    begun = sum(any(own and word.startswith(own) for own in student) for word in words)
    vocabulary = VocabularyMap.from_bytes(student, teacher)
    shares = [count / max(len(words), 1) for count in (equal, begun - equal, len(words) - begun, 0)]
    assert vocabulary.shares == pytest.approx(shares)
    nothing = TokenBytes([], [], [], [], 0)
    made = text_report(nothing, nothing, "", vocabulary)
    assert (made.equal, made.shorter, made.nothing, made.canonical) == vocabulary.shares
    assert (made.sequences, made.positions, made.served, made.served_share) == (1, 0, 0, 0.0)
    assert made.warnings == ()


def _carried(t, c, mine, others, at_border):
    """Share of a distribution that is carried over, and to an equal string, by loops over the vocabulary."""
    there = [v for v, word in enumerate(others) if word and word.startswith(c)]
    carried = [v for v in there if len(others[v]) > len(c)]
    rests = {v: others[v][len(c) :] for v in carried}
    served = [v for v, rest in rests.items() if any(own and rest.startswith(own) for own in mine)]
    special = t[1] if at_border else 0.0
    whole = t[there].sum() + special
    equal = [v for v in there if others[v] in mine]
    return (
        ((t[served].sum() + special) / whole, (t[equal].sum() + special) / whole) if whole > 0 else (0.0, 0.0)
    )


@given(st.lists(two_tokenizations(), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_positions_and_masses_are_those_of_a_search(cases, seed):
    mine, others = cases[0][:2]
    vocabulary = VocabularyMap.from_bytes(mine, others, roles=ROLES)
    random = np.random.default_rng(seed)
    students, teachers, texts, probabilities = [], [], [], []
    masses, equals, rows = [], [], []
    for *_, text, student, teacher in cases:
        t = random.dirichlet(np.ones(len(others)), size=len(teacher))
        students, teachers = [*students, student], [*teachers, teacher]
        texts, probabilities = [*texts, text], [*probabilities, t]
        found = text_positions(student, teacher, text, vocabulary).tolist()
        rows += found
        for _, j, depth, *_ in found:
            c = (others[teacher.ids[j + 1]] or b"")[:depth] if teacher.ids[j + 1] < len(others) else b""
            carried, equal = _carried(t[j], c, mine, others, depth == 0)
            masses.append(carried)
            equals += [equal] if depth == 0 else []
    made = text_report(students, teachers, texts, vocabulary, teacher_probabilities=probabilities)
    assert made.sequences == len(cases)
    assert made.positions == sum(max(len(student) - 1, 0) for student in students)
    assert made.served == len(rows) == made.positions - sum(made.reasons.values())
    assert made.inside == sum(row[2] > 0 for row in rows)
    assert made.chained == sum(row[8] > 1 for row in rows)
    for value, expected in ((made.served_mass, masses), (made.equal_mass, equals)):
        assert value == (pytest.approx(np.mean(expected), abs=1e-12) if expected else None)
    plain = text_report(students, teachers, texts, vocabulary)
    assert (plain.served_mass, plain.equal_mass, plain.served) == (None, None, made.served)


def _case():
    student = TokenBytes([2, 0, 1, 3], [0, 0, 1, 3], [0, 1, 3, 4], [True, False, False, False], 4)
    teacher = TokenBytes([2, 1, 0], [0, 0, 3], [0, 3, 4], [True, False, False], 4)
    return student, teacher, VocabularyMap.from_bytes([b"t", b"he", None, b"s"], [b"s", b"the", None])


def test_a_report_by_hand():
    student, teacher, vocabulary = _case()
    cut = TokenBytes([2, 1], [0, 0], [0, 3], [True, False], 4)
    t = np.array([[0.5, 0.25, 0.25]] * 3)
    made = text_report(
        [student] * 2, [teacher, cut], ["thes"] * 2, vocabulary, teacher_probabilities=[t, t[:2]]
    )
    assert made == TextReport(2, 6, 5, 2, 0, {"teacher_cut": 1}, 0.5, 0.5, 0.0, 0.0, 1.0, 2 / 3)
    assert str(made).splitlines() == [
        "teacher's vocabulary: 50.0% equal to a token of the student, 50.0% begin with a shorter one, 0.0% with none",
        "positions: 83.33% of 6 served",
        "  2 of these inside of a token of the teacher",
        "  0 of these with a next token over several of the teacher's",
        "  1 not served: the teacher's tokens end before",
        "teacher's mass: 100.00% carried over",
        "teacher's mass at boundaries: 66.67% to an equal string",
        f"warning: {made.warnings[0]}",
    ]
    assert made.warnings == (
        "Only 83.3% of the student's positions have a target; most often the teacher's tokens end before.",
    )


def test_bad_arguments():
    student, teacher, vocabulary = _case()
    with pytest.raises(TypeError, match="teacher: expected one for each text, got TokenBytes"):
        text_report([student], teacher, ["thes"], vocabulary)
    with pytest.raises(TypeError, match="text: expected one for each text, got str"):
        text_report([student], [teacher], "thes", vocabulary)
    with pytest.raises(ValueError, match="text: expected 1 of them, as student, got 2"):
        text_report([student], [teacher], ["thes"] * 2, vocabulary)
    with pytest.raises(
        ValueError, match=r"teacher_probabilities: expected \(3, at least 3\), got shape \(2, 3\)"
    ):
        text_report(student, teacher, "thes", vocabulary, teacher_probabilities=np.ones((2, 3)))


def test_a_picture_says_what_has_been_read():
    student, teacher, vocabulary = _case()
    assert draw(student, teacher, "thes", vocabulary).splitlines() == [
        "student ∅│t·he│s│",
        "teacher ∅│the │s│",
        "read     │∅·t │∅│",
    ]
    cut = TokenBytes([2, 1], [0, 0], [0, 3], [True, False], 4)
    assert draw(student, cut, "thes", vocabulary).splitlines()[-1] == "read     │∅·t·✗ │"


@given(two_tokenizations())
def test_any_picture_has_a_cell_for_each_token(case):
    mine, others, text, student, teacher = case
    vocabulary = VocabularyMap.from_bytes(mine, others, roles=ROLES)
    shown = text.decode("utf-8", "replace").encode()
    if shown != text:  # pictures are of text
        return
    lines = draw(student, teacher, text.decode(), vocabulary, width=10_000).splitlines()
    assert len(lines) == 3
    cells = lines[2].removeprefix("read    ").replace("│", "·").split("·")
    assert len([cell for cell in cells if cell]) >= len(student) > 0 or not len(student)
    served = len(text_positions(student, teacher, text, vocabulary))
    assert lines[2].count("✗") == max(len(student) - 1, 0) - served


def test_a_plot_has_the_colours(tmp_path):
    pytest.importorskip("matplotlib")
    student, _, vocabulary = _case()
    cut = TokenBytes([2, 1], [0, 0], [0, 3], [True, False], 4)
    plot(student, cut, "thes", tmp_path / "a.svg", vocabulary)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count("fill: #cfe2f3") == 1
    assert drawn.count("fill: #f4cccc") == 1
    plot(student, cut, "thes", tmp_path / "b.svg")
    assert "#cfe2f3" not in (tmp_path / "b.svg").read_text()
