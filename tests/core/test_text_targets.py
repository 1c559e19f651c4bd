"""Targets of the text's plan against their definition, and what must hold of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlot
from mlot.align import TokenBytes, VocabularyMap, text_positions
from mlot.backends.torch import text as torch_text
from text_cases import canonical_problems, check_definition, dense, made, text_problems, two_ended_problems


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(problem=text_problems())
def test_targets_by_their_definition(backend, problem):
    check_definition(backend, problem)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@settings(max_examples=100)
@given(problem=canonical_problems())
def test_targets_inside_tokens_by_their_definition(backend, problem):
    check_definition(backend, problem)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(problem=two_ended_problems())
def test_one_token_that_ends_turns_and_texts_is_what_ends_the_text(backend, problem):
    check_definition(backend, problem)


def test_an_end_that_the_plan_does_not_have_is_refused():
    vocabulary = VocabularyMap.from_bytes([b"a", None, None], [b"a", None], roles=[(1, 1)], ends=[(1, 2)])
    ids, starts, ends, special = [1, 0, 2], [0, 0, 1], [0, 1, 1], [True, False, True]
    student = TokenBytes(ids, starts, ends, special, 1)
    teacher = TokenBytes([1, 0, 1], starts, ends, special, 1)
    rows = text_positions(student, teacher, "a", vocabulary)
    assert rows[:, 6].tolist() == [1, 1]  # before "a", and before the end
    logits = np.log([[[0.75, 0.25]] * 3])
    for number, last in ((0, 1), (1, 2)):
        given_rows = np.where(np.arange(9) == 6, number, rows)[None]
        text = mlot.TextPositions(given_rows, teacher.ids[None], vocabulary.plan())
        targets = mlot.text_targets(logits, text, student_mask=np.ones((1, 3), bool), k=2)
        assert targets.ids[0, 1].tolist() == [0, last]
    text = mlot.TextPositions(given_rows + (np.arange(9) == 6), teacher.ids[None], vocabulary.plan())
    with pytest.raises(ValueError, match=r"^text.rows\[..., 6\]: expected at most 1 at depth 0, got 2"):
        mlot.text_targets(logits, text, student_mask=np.ones((1, 3), bool), k=2)
    for ends_given, message in (
        ([(0, 2)], "^ends: expected teacher ids of roles, got"),
        ([(1, 3)], "^ends: expected student ids 0 to 2, got"),
    ):
        with pytest.raises(ValueError, match=message):
            VocabularyMap.from_bytes([b"a", None, None], [b"a", None], roles=[(1, 1)], ends=ends_given)


@given(problem=canonical_problems())
def test_targets_do_not_depend_on_the_memory_there_is(problem):
    """One teacher position at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_text, "HOST_BLOCK_BYTES", 1)
        check_definition("torch", problem)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(problem=text_problems(), k=st.integers(1, 4))
def test_what_is_not_listed_is_kept_as_a_rest(backend, problem, k):
    whole, cut = made(problem, backend), made(problem, backend, k=k)
    served = whole.served > 0
    np.testing.assert_array_equal(served, cut.served > 0)
    mass = np.exp(cut.log_probs).sum(-1) + cut.rest
    np.testing.assert_allclose(mass[served], 1, atol=1e-12)
    np.testing.assert_allclose(cut.log_probs, whole.log_probs[..., : cut.k], atol=1e-12)
    assert (np.diff(np.exp(cut.log_probs)) <= 1e-15).all()  # likeliest first


@given(problem=text_problems(framed=False), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_both_backends_agree_at_any_temperature(problem, temperature):
    ours, theirs = (made(problem, backend, temperature=temperature) for backend in ("numpy", "torch"))
    np.testing.assert_allclose(dense(ours), dense(theirs), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.served, theirs.served, atol=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(problem=text_problems(framed=False, reading="longest"), k=st.integers(1, 6))
def test_a_served_teacher_bounds_the_whole_one(backend, problem, k):
    """Its missing mass counts as not carried over, and may be anywhere.

    Not so for the canonical reading, in which what is missing may decide whose tokenization is followed.
    """
    log_probs = problem.logits - np.logaddexp.reduce(problem.logits, axis=-1, keepdims=True)
    k = min(k, log_probs.shape[-1])
    ids = np.argsort(-log_probs, axis=-1)[..., :k]
    listed = mlot.TopKLogprobs(ids, np.take_along_axis(log_probs, ids, -1), vocab_size=log_probs.shape[-1])
    if backend == "torch":
        listed = listed.map(torch.from_numpy)
    whole, problem.logits = made(problem), listed
    text = problem.positions
    if backend == "torch":
        text = mlot.TextPositions(torch.from_numpy(text.rows), torch.from_numpy(text.teacher_ids), text.plan)
    mask = problem.mask if backend == "numpy" else torch.from_numpy(problem.mask)
    size = max(len(problem.mine), 1)
    some = mlot.text_targets(listed, text, student_mask=mask, k=size, min_served=0.0)
    some = some if backend == "numpy" else some.map(lambda x: x.numpy())
    assert (some.served[whole.served > 0] <= whole.served[whole.served > 0] + 1e-12).all()
    if k == log_probs.shape[-1]:
        np.testing.assert_allclose(
            dense(some)[whole.served[0] > 0], dense(whole)[whole.served[0] > 0], atol=1e-9
        )


def _characters(text):
    n = len(text)
    return TokenBytes(
        [0, *(1 + b for b in text), 0],
        [0, *range(n), n],
        [0, *range(1, n + 1), n],
        [True, *[False] * n, True],
        n,
    )


@given(problem=text_problems(framed=False))
def test_a_student_of_bytes_gets_the_next_byte(problem):
    """Inside a token of the teacher it is the teacher's exact distribution over what can follow."""
    mine = [None, *(bytes([b]) for b in range(256))]
    vocabulary = VocabularyMap.from_bytes(mine, problem.others, tokenize=lambda word: [1 + b for b in word])
    student = _characters(problem.text)
    rows = text_positions(student, problem.teacher, problem.text, vocabulary)
    text = mlot.TextPositions(rows[None], problem.teacher.ids[None], vocabulary.plan())
    targets = mlot.text_targets(problem.logits, text, student_mask=np.ones((1, len(student)), bool), k=257)
    q = dense(targets)
    t = np.exp(problem.logits[0] - np.logaddexp.reduce(problem.logits[0], axis=1, keepdims=True))
    assert len(rows) >= len(problem.text)
    for i, j, depth, *_ in rows.tolist():
        c = b"" if depth == 0 else problem.others[problem.teacher.ids[j + 1]][:depth]
        byte = np.zeros(257)
        for v, word in enumerate(problem.others):
            if word and word.startswith(c) and word != c:
                byte[1 + word[depth]] += t[j, v]
        if byte.sum() > 0.02:
            np.testing.assert_allclose(q[i], byte / byte.sum(), atol=1e-12)


@given(problem=text_problems(framed=False))
def test_equal_tokenizers_give_the_teacher_itself(problem):
    others, teacher = problem.others, problem.teacher
    vocabulary = VocabularyMap.from_bytes(others, others, roles=[(1, 1)])
    rows = text_positions(teacher, teacher, problem.text, vocabulary)
    text = mlot.TextPositions(rows[None], teacher.ids[None], vocabulary.plan())
    mask = np.ones((1, len(teacher)), bool)
    targets = mlot.text_targets(problem.logits, text, student_mask=mask, k=len(others))
    spells = np.array([bool(word) for word in others])
    spells[1] = True
    t = np.exp(problem.logits[0]) * spells
    t /= t.sum(axis=1, keepdims=True)
    assert rows[:, 0].tolist() == list(range(len(teacher) - 1))
    np.testing.assert_allclose(dense(targets)[:-1], t[:-1], atol=1e-12)
    np.testing.assert_allclose(targets.served[0, :-1], 1)


@pytest.mark.parametrize("width", [5, 64, 1000, 1003])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_largest_values_are_found_group_by_group(width: int, k: int) -> None:
    from mlot.backends.torch.text import _largest

    k = min(k, width)
    values = torch.rand(3, width, generator=torch.Generator().manual_seed(k)).pow(8)
    values[1] = values[1].round(decimals=1)  # ties
    values[2, 2:] = 0
    top, index = _largest(values, k)
    assert torch.equal(top, values.topk(k).values)
    assert torch.equal(values.gather(1, index), top)
    assert all(len(set(row)) == k for row in index.tolist())


@given(problem=text_problems(), width=st.integers(1, 9))
def test_a_vocabulary_may_be_padded(problem, width):
    """Columns of the model beyond its tokenizer spell nothing; without mass they change nothing."""
    narrow = made(problem)
    for fill in (-np.inf, 0.5):
        padding = np.full((*problem.logits.shape[:2], width), fill)
        wide = replaced(problem, np.concatenate([problem.logits, padding], axis=2))
        one, other = made(wide), made(wide, "torch")
        for same in (other, narrow) if fill == -np.inf else (other,):
            np.testing.assert_allclose(dense(same), dense(one), rtol=0, atol=1e-12)
            np.testing.assert_allclose(same.served, one.served, rtol=0, atol=1e-12)


def replaced(problem, logits):
    """The same problem with other logits."""
    other = copy.copy(problem)
    other.logits = logits
    return other
