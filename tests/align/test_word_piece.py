"""WordPiece as student and as teacher: words spell the space before them, by the tokenizer's own tokenization."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlot
from mlot.align import VocabularyMap, batch_text_positions, byte_ranges, text_positions
from tokenizer_cases import tokenizer

BERT, BPE = tokenizer("word_piece_cased"), tokenizer("byte_level_large")
BERTS = VocabularyMap.from_tokenizers(BERT, BPE)
BPES = VocabularyMap.from_tokenizers(BPE, BERT)
WORDS = sorted(word for word in BERT.get_vocab() if word.isalpha() and word.isascii())
#: Words one space apart.
LINES = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map("".join), min_size=1, max_size=6
).map(" ".join)
LINES = LINES.filter(lambda text: "[UNK]" not in BERT.encode(text).tokens)


def _ranges(own, text):
    start = own.token_to_id("[CLS]" if own is BERT else "<s>")
    return byte_ranges(own, text, ids=[start, *own.encode(text, add_special_tokens=False).ids])


def _ids(text):
    return BERT.encode(text, add_special_tokens=False).ids


def test_what_begins_a_word_spells_the_space_before_it():
    for token, i in BERT.get_vocab().items():
        if token.startswith("["):
            continue
        if token.startswith("##"):
            assert BERTS.student_bytes[i] == token[2:].encode()
        elif token[0].isalnum() and token[0].isascii():
            assert BERTS.student_bytes[i] == b" " + token.encode()
        elif token.isascii():
            assert BERTS.student_bytes[i] == token.encode()


@settings(max_examples=50)
@given(text=LINES)
def test_a_student_is_given_what_its_tokenizer_makes_of_the_text_so_far_and_a_token(text):
    """At boundaries of both; tokens after which the student had read the text in other tokens are left out."""
    mine, others = _ranges(BERT, text), _ranges(BPE, text)
    rows, reasons = text_positions(mine, others, text, BERTS, return_counts=True)
    assert set(reasons) <= {"student_space"}
    assert sum(reasons.values()) <= 1  # the first word, before which there is no space
    plan, data = BERTS.plan(), text.encode()
    for i, j, depth, *_ in rows.tolist():
        if depth:
            continue
        before = data[: others.ends[j]].decode()
        read = mine.ids[1 : i + 1].tolist()
        assert _ids(before) == read
        if not before:
            continue
        for n, v in enumerate(plan.order.tolist()):
            piece = BERTS.teacher_bytes[v].decode("utf-8", "replace")
            own = _ids(before + piece)
            if BERT.token_to_id("[UNK]") in own:
                continue
            if (
                not piece.isprintable()
                or "\ufffd" in piece
                or own[: len(read)] != read
                or len(own) == len(read)
            ):
                continue
            entry = plan.offsets[n]
            follows = plan.canonical[entry] if plan.canonical[entry] >= 0 else plan.longest[entry]
            assert follows == own[len(read)], (before, piece, BERT.id_to_token(own[len(read)]))


@settings(max_examples=50)
@given(text=LINES)
def test_a_teacher_is_read_in_front_of_the_spaces_that_it_does_not_show(text):
    mine, others = _ranges(BPE, text), _ranges(BERT, text)
    rows, reasons = text_positions(mine, others, text, BPES, return_counts=True)
    assert not reasons
    data = text.encode()
    for i, j, depth, *_ in rows.tolist():
        spelled = b"".join(BPES.teacher_bytes[int(v)] for v in others.ids[1 : j + 1])
        assert spelled[1:] == data[: max(len(spelled) - 1, 0)]
        assert len(spelled) + depth == mine.starts[i + 1] + 1  # the first word's space is not in the text


def test_of_a_token_before_a_space_the_space_is_predicted():
    """Of a student: the mass of words that begin after a space goes to them, that of others to their pieces."""
    a, b = WORDS[0], WORDS[-1]
    text = f"{a} {b}"
    mine, others = _ranges(BERT, text), _ranges(BPE, text)
    rows = text_positions(mine, others, text, BERTS)
    position = int(np.flatnonzero(mine.starts == len(a) + 1)[0]) - 1
    (row,) = rows[rows[:, 0] == position]
    assert row[2] == 0
    words = {word: BPE.token_to_id(word) for word in ("Ġ" + "the", "s", ".")}
    given = {word: i for word, i in words.items() if i is not None}
    logits = np.full((1, len(others), BPE.get_vocab_size()), -np.inf)
    logits[..., list(given.values())] = 0
    side = mlot.TextPositions(batch_text_positions([rows]), others.ids[None], BERTS.plan())
    targets = mlot.text_targets(logits, side, student_mask=np.ones((1, len(mine)), bool), k=8)
    listed = {BERT.id_to_token(int(i)) for i in targets.ids[0, position] if i >= 0}
    assert listed <= {*(t for t in BERT.get_vocab() if "the".startswith(t) or t.startswith("##")), "."}
    assert any(token.startswith("##") for token in listed) == ("s" in given)
    assert targets.served[0, position] == pytest.approx(1)


def test_equal_tokenizers_give_the_teacher_itself():
    own = VocabularyMap.from_tokenizers(BERT, BERT)
    text = "(the cat), the hen; an end"
    tokens = _ranges(BERT, text)
    rows = text_positions(tokens, tokens, text, own)
    assert len(rows) == len(tokens) - 1
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows[:, 2] == 0).all()
