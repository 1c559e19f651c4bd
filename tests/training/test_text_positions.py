"""Rows of the plan from the text in the positions of examples: conversations, frames, what is cut, batches."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st

from mlot._hf.pairs import Pairs
from mlot._hf.render import render
from mlot._hf.tokens import tokenize
from mlot.align import VocabularyMap, batch_text_positions
from mlot.training import DistillationCollator
from training_cases import bytes_of, chat_tokenizers

STUDENT, TEACHER = chat_tokenizers()
SIDES = (STUDENT, TEACHER)
VOCABULARY = VocabularyMap.from_tokenizers(STUDENT, TEACHER)
#: What ends texts and turns on both sides; the teacher has one token for both.
CLOSING = [*VOCABULARY.roles.tolist(), *VOCABULARY.ends.tolist()]
WORDS = st.lists(st.sampled_from("the end hen ☃ an in — at\n".split(" ")), min_size=1, max_size=8).map(
    " ".join
)
#: Chat templates strip what the assistant says.
SAID = WORDS.map(str.strip).filter(bool)


@st.composite
def examples(draw):
    if draw(st.booleans()):
        return draw(st.one_of(WORDS.map(lambda text: {"text": text}), st.builds(_completion, WORDS, WORDS)))
    turns = draw(st.lists(st.tuples(WORDS, SAID), min_size=1, max_size=3))
    roles = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a, b in turns]
    return {"messages": [message for pair in roles for message in pair]}


def _completion(prompt, completion):
    return {"prompt": prompt, "completion": completion}


def _sides(example, start=True):
    found = []
    for tokenizer, rendered in zip(SIDES, render(example, SIDES, {}), strict=True):
        first = tokenizer.bos_token_id if start else None
        found.append(tokenize(tokenizer, [rendered], first, tokenizer.eos_token_id))
    return found


def _runs(tokenizer, tokens):
    """Of each target: bytes read before each of its tokens, by the position that predicts it; their number."""
    targets = zip(tokens.first, tokens.last, tokens.closing, tokens.texts, strict=True)
    for first, last, closing, text in targets:
        ids = tokens.ids[first:last].tolist()
        # a space that a template puts before the text is in the first token, and comes before byte 0
        space = len(bytes_of(tokenizer, ids)) - len(text)
        read = {int(first) - 1 + n: len(bytes_of(tokenizer, ids[:n])) - space for n in range(len(ids))}
        yield read, len(text), (int(last), int(closing))


def _expected(sides):
    """Student, teacher, depth: by counting the bytes before each token of the targets."""
    found = []
    runs = [list(_runs(tokenizer, tokens)) for tokenizer, tokens in zip(SIDES, sides, strict=True)]
    for (mine, _, own_end), (others, total, other_end) in zip(*runs, strict=True):
        ends = [*list(others.values())[1:], total]
        found += [
            [i, j, e - a]
            for i, e in mine.items()
            for (j, a), b in zip(others.items(), ends, strict=True)
            if a <= e < b and i >= 0 and j >= 0
        ]
        both = zip(sides, (own_end, other_end), strict=True)
        closed = [int(tokens.ids[last]) for tokens, (last, closing) in both if closing > last]
        if closed[::-1] in CLOSING:
            found.append([own_end[0] - 1, other_end[0] - 1, 0])
    return found


@given(example=examples(), start=st.booleans())
def test_rows_are_those_of_counting_bytes(example, start):
    sides = _sides(example, start)
    (rows,), reasons = Pairs.of(*sides, None, None).text_positions(VOCABULARY)
    assert rows[:, :3].tolist() == _expected(sides)
    assert set(reasons) <= {"end", "teacher_first"}
    for i, j, depth, *_, following, chain in rows.tolist():
        assert sides[0].ids[i + 1] == following
        others = sides[1].ids[j + 1 : j + 1 + chain]
        if [others[0], following] in CLOSING:
            continue
        rest, own = bytes_of(TEACHER, others)[depth:], bytes_of(STUDENT, [following])
        assert rest.startswith(own)  # the chain reaches to the end of the student's token, ...
        assert len(bytes_of(TEACHER, others[:-1])) - depth < len(own)  # and no further


@settings(max_examples=200)
@given(example=examples(), limit=st.integers(2, 24), teacher_limit=st.integers(2, 24))
def test_what_is_cut_leaves_the_rows_before(example, limit, teacher_limit):
    sides = _sides(example)
    (whole,), _ = Pairs.of(*sides, None, None).text_positions(VOCABULARY)
    pairs = Pairs.of(*sides, limit, teacher_limit)
    (rows,), _ = pairs.text_positions(VOCABULARY)
    assert rows.tolist() == whole[whole[:, 0] + 1 < pairs.lengths].tolist()
    # All that a row refers to is there: the student's next token, and the teacher's tokens of the chain.
    assert (rows[:, 0] + 1 < pairs.lengths).all()
    assert (rows[:, 1] + rows[:, 8] < pairs.teacher_lengths).all()
    labels = sides[0].labels[: pairs.lengths[0]]
    predicted = {n - 1 for n, label in enumerate(labels) if label != -100}
    assert set(rows[:, 0].tolist()) <= predicted
    missing = predicted - set(rows[:, 0].tolist())
    assert all(labels[n + 1] in STUDENT.all_special_ids for n in missing)


@given(st.lists(examples(), min_size=1, max_size=4), st.sampled_from(["left", "right"]))
def test_rows_of_a_batch_point_at_its_tokens(batch, side):
    made = DistillationCollator(STUDENT, TEACHER, padding_side=side, pairs="index")(batch)
    rows = [Pairs.of(*_sides(example), None, None).text_positions(VOCABULARY)[0][0] for example in batch]
    masks = made["attention_mask"].numpy(), made["teacher_attention_mask"].numpy()
    shifts = [mask.shape[1] - mask.sum(axis=1) if side == "left" else 0 for mask in masks]
    positions = batch_text_positions(rows, student_offset=shifts[0], teacher_offset=shifts[1])
    for n, each in enumerate(positions):
        kept = each[each[:, 0] >= 0]
        assert len(kept) == len(rows[n])
        assert np.array_equal(made["input_ids"].numpy()[n, kept[:, 0] + 1], kept[:, 7])
        assert np.array_equal(made["labels"].numpy()[n, kept[:, 0] + 1], kept[:, 7])
        predicted = made["teacher_labels"].numpy()[n, kept[:, 1] + 1]
        assert (predicted != -100).all()
