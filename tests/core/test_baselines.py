"""Baselines against their definitions as loops over vocabularies; both backends, gradients, errors."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlot
from byte_cases import bytewise
from mlot import baselines
from mlot.align import TokenBytes, VocabularyMap, pairs, text_positions
from text_cases import ROLES, text_problems

PROBLEMS = text_problems(framed=False)


def log_softmax(z):
    return z - np.logaddexp.reduce(z, axis=-1, keepdims=True)


def student_of(problem, seed=0):
    return np.random.default_rng(seed).normal(size=(*problem.mask.shape, len(problem.mine)))


def predictions(problem, temperature=1.0):
    """Log-probabilities of the student and probabilities of the teacher at each shared position."""
    log_s = log_softmax(student_of(problem)[0] / temperature)
    t = np.exp(log_softmax(problem.logits[0] / temperature))
    return [(log_s[i], t[j]) for i, j in pairs(problem.student, problem.teacher).tolist()]


def counterparts(words, others):
    """``{token: token of the other vocabulary with its bytes, or its role}``."""
    result = dict(ROLES)
    for token, word in enumerate(words):
        copies = [u for u, other in enumerate(others) if word and other == word]
        if copies:
            result[token] = copies[min(sum(w == word for w in words[:token]), len(copies) - 1)]
    return result


def kl(t, s):
    return sum(p * np.log(p / q) for p, q in zip(t, s, strict=True) if p > 0)


def on_torch(text):
    return mlot.TextPositions(torch.tensor(text.rows), torch.tensor(text.teacher_ids), text.plan)


def projection_of(problem, decay=0.3, known=True):
    tokenize = bytewise(problem.others) if known else None
    exchanged = VocabularyMap.from_bytes(problem.others, problem.mine, tokenize=tokenize, roles=ROLES)
    return baselines.string_projection(exchanged.plan(), decay=decay)


def every_loss(problem):
    projection = projection_of(problem)
    return {
        "equal": baselines.equal_strings,
        "sorted": lambda *a, **k: baselines.equal_strings(*a, rest="sorted", **k),
        "projected": lambda *a, **k: baselines.projected_kl(*a, projection, **k),
        "prefix": baselines.byte_prefix,
        "spans": baselines.span_likelihood,
    }


@given(problem=PROBLEMS, temperature=st.sampled_from([1.0, 2.0]))
def test_equal_strings_by_their_definition(problem, temperature):
    match = counterparts(problem.others, problem.mine)
    one = in_order = 0.0
    for log_s, t in predictions(problem, temperature):
        carried = np.zeros(len(problem.mine))
        for v, u in match.items():
            carried[u] += t[v]
        known = sorted(set(match.values()))
        rest_s = np.delete(np.exp(log_s), known)
        rest_t = np.delete(t, list(match))
        both = kl(carried[known], np.exp(log_s[known]))
        one += both + (kl([rest_t.sum()], [rest_s.sum()]) if len(rest_s) else 0)
        width = max(len(rest_s), len(rest_t))
        s, t = (np.sort(np.pad(x, (0, width - len(x)))) for x in (rest_s, rest_t))
        in_order += both + np.abs(t - s).sum()
    for rest, expected in (("one", one), ("sorted", in_order)):
        value = baselines.equal_strings(
            student_of(problem),
            problem.logits,
            problem.positions,
            rest=rest,
            temperature=temperature,
            reduction="none",
        )
        np.testing.assert_allclose(value, [expected], atol=1e-11)


@given(problem=PROBLEMS, known=st.booleans())
def test_projection_by_its_string_rules(problem, known):
    match, tokenize = counterparts(problem.mine, problem.others), bytewise(problem.others)
    expected = np.zeros((len(problem.mine), len(problem.others)))
    for u, word in enumerate(problem.mine):
        if u in match:
            expected[u, match[u]] = 1
        elif word:
            pieces = tokenize(word) if known else ()
            if not pieces:
                begins = [w for w in problem.others if w and word.startswith(w)]
                pieces = [problem.others.index(max(begins, key=len))] if begins else []
            for m, v in enumerate(pieces):
                expected[u, v] += 0.3**m / sum(0.3**n for n in range(len(pieces)))
    made = projection_of(problem, known=known)
    dense = np.zeros_like(expected)
    np.add.at(dense, (made.student, made.teacher), made.weights)
    np.testing.assert_allclose(dense, expected, atol=1e-15)


@given(problem=PROBLEMS)
def test_projected_kl_by_its_definition(problem):
    projection = projection_of(problem)
    w = np.zeros((len(problem.mine), len(problem.others)))
    np.add.at(w, (projection.student, projection.teacher), projection.weights)
    reached = w.sum(0) > 0
    expected = sum(
        kl(t[reached] / t[reached].sum(), (np.exp(log_s) @ w)[reached]) for log_s, t in predictions(problem)
    )
    value = baselines.projected_kl(
        student_of(problem), problem.logits, problem.positions, projection, reduction="sum"
    )
    assert value == pytest.approx(expected, abs=1e-11)
    assert value > -1e-12


@given(problem=PROBLEMS)
def test_byte_prefix_by_its_definition(problem):
    """Whatever the plan's reading is."""
    match = counterparts(problem.others, problem.mine)
    expected, count = 0.0, 0
    for log_s, t in predictions(problem):
        q = np.zeros(len(problem.mine))
        for v, word in enumerate(problem.others):
            begins = [w for w in problem.mine if w and word and word.startswith(w)]
            u = match.get(v, problem.mine.index(max(begins, key=len)) if begins else None)
            if u is not None:
                q[u] += t[v]
        there = sum(t[v] for v, word in enumerate(problem.others) if word or v in dict(ROLES))
        if q.sum() >= 0.01 * there:
            expected, count = expected + kl(q / q.sum(), np.exp(log_s)), count + 1
    arguments = student_of(problem), problem.logits, problem.positions
    value = baselines.byte_prefix(*arguments, reduction="none")
    np.testing.assert_allclose(value, [expected], atol=1e-11)
    assert baselines.byte_prefix(*arguments) == pytest.approx(expected / max(count, 1), abs=1e-11)


@given(problem=PROBLEMS, temperature=st.sampled_from([1.0, 100.0]))
def test_span_likelihood_by_its_definition(problem, temperature):
    log_s, log_t = log_softmax(student_of(problem)[0]), log_softmax(problem.logits[0])
    expected = count = 0
    for (i, j), (i_next, j_next) in pairwise(pairs(problem.student, problem.teacher).tolist()):
        mine = sum(log_s[n, problem.student.ids[n + 1]] for n in range(i, i_next))
        theirs = sum(log_t[n, problem.teacher.ids[n + 1]] for n in range(j, j_next))
        a, b = np.exp(theirs / temperature), np.exp(mine / temperature)
        expected, count = expected + kl([a, 1 - a], [b, 1 - b]), count + 1
    arguments = student_of(problem), problem.logits, problem.positions
    value = baselines.span_likelihood(*arguments, temperature=temperature)
    assert value == pytest.approx(expected / max(count, 1), rel=1e-9, abs=1e-12)


@given(problem=PROBLEMS)
@settings(max_examples=40)
def test_both_backends_agree_and_gradients_are_those_of_finite_differences(problem):
    student = torch.from_numpy(student_of(problem)).requires_grad_()
    teacher, text = torch.from_numpy(problem.logits).requires_grad_(), on_torch(problem.positions)
    for name, loss in every_loss(problem).items():
        value = loss(student, teacher, text, reduction="none")
        reference = loss(student.detach().numpy(), problem.logits, problem.positions, reduction="none")
        np.testing.assert_allclose(value.detach(), reference, rtol=1e-9, atol=1e-11, err_msg=name)
        if not value.requires_grad:
            assert not value.any(), name
            continue
        own, none = torch.autograd.grad(value.sum(), (student, teacher), allow_unused=True)
        assert none is None, name
        direction = torch.from_numpy(np.random.default_rng(1).normal(size=student.shape))
        with torch.no_grad():
            high, low = (
                loss(student + step * direction, teacher, text, reduction="sum") for step in (1e-5, -1e-5)
            )
        slope = float(high - low) / 2e-5
        assert float((own * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@given(problem=PROBLEMS, left=st.integers(0, 2))
@settings(max_examples=30)
def test_padding_and_other_sequences_change_nothing(problem, left):
    student, teacher, text = student_of(problem), problem.logits, problem.positions
    rows = np.concatenate([text.rows, np.full_like(text.rows, -1)])
    rows[..., :2] += np.where(rows[..., :1] >= 0, left, 0)
    padded = [np.pad(x, [(0, 1), (left, 1), (0, 0)], constant_values=1.0) for x in (student, teacher)]
    masks = [np.pad(np.ones(x.shape[:2], bool), [(0, 1), (left, 1)]) for x in (student, teacher)]
    batch = mlot.TextPositions(rows, np.pad(text.teacher_ids, [(0, 1), (left, 1)]), text.plan)
    for name, loss in every_loss(problem).items():
        alone = loss(student, teacher, text, reduction="none")
        value = loss(*padded, batch, student_mask=masks[0], teacher_mask=masks[1], reduction="none")
        np.testing.assert_allclose(value, [alone[0], 0], atol=1e-11, err_msg=name)


def _problem():
    vocabulary = VocabularyMap.from_bytes([b"a", b"b", None], [b"ab", b"a", b"b", None], roles=[(3, 2)])
    student = TokenBytes([2, 0, 1, 2], [0, 0, 1, 2], [0, 1, 2, 2], [True, False, False, True], 2)
    teacher = TokenBytes([3, 0, 3], [0, 0, 2], [0, 2, 2], [True, False, True], 2)
    rows = text_positions(student, teacher, "ab", vocabulary)[None]
    text = mlot.TextPositions(rows, teacher.ids[None], vocabulary.plan())
    return np.zeros((1, 4, 3)), np.zeros((1, 3, 4)), text


def test_a_masked_position_leaves_its_span_out():
    student, teacher, text = _problem()
    mask = np.array([[True, False, True, True]])
    assert baselines.span_likelihood(student, teacher, text) > 0
    assert baselines.span_likelihood(student, teacher, text, student_mask=mask) == 0


def test_equal_models_have_no_loss():
    vocabulary = VocabularyMap.from_bytes([b"a", b"b", None], [b"a", b"b", None], roles=[(2, 2)])
    tokens = TokenBytes([2, 0, 1, 2], [0, 0, 1, 2], [0, 1, 2, 2], [True, False, False, True], 2)
    rows = text_positions(tokens, tokens, "ab", vocabulary)[None]
    text = mlot.TextPositions(rows, tokens.ids[None], vocabulary.plan())
    z = np.random.default_rng(0).normal(size=(1, 4, 3))
    projection = baselines.string_projection(vocabulary.plan())
    losses = (
        baselines.equal_strings(z, z, text),
        baselines.equal_strings(z, z, text, rest="sorted"),
        baselines.projected_kl(z, z, text, projection),
        baselines.byte_prefix(z, z, text),
        baselines.span_likelihood(z, z, text),
    )
    np.testing.assert_allclose(losses, 0, atol=1e-14)


@pytest.mark.parametrize("name", ["equal", "sorted", "projected", "prefix", "spans"])
def test_lower_precisions_and_heads(name):
    """Low-precision logits are computed in float32; a head is taken where its logits need not be whole."""
    student, teacher, text = _problem()
    exchanged = VocabularyMap.from_bytes([b"ab", b"a", b"b", None], [b"a", b"b", None], roles=[(2, 3)])
    projection = baselines.string_projection(exchanged.plan())
    loss = {
        "equal": baselines.equal_strings,
        "sorted": lambda *a: baselines.equal_strings(*a, rest="sorted"),
        "projected": lambda *a: baselines.projected_kl(*a, projection),
        "prefix": baselines.byte_prefix,
        "spans": baselines.span_likelihood,
    }[name]
    rng = np.random.default_rng(0)
    low = [
        torch.from_numpy(rng.integers(-2, 3, x.shape)).to(torch.bfloat16).requires_grad_()
        for x in (student, teacher)
    ]
    value = loss(*low, on_torch(text))
    assert value.dtype == torch.float32
    exact = loss(*(x.detach().double() for x in low), on_torch(text))
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    value.backward()
    assert low[0].grad.dtype == torch.bfloat16
    head = mlot.LinearHead(torch.ones(1, 4, 2), torch.ones(3, 2))
    if name == "prefix":
        assert torch.isfinite(loss(head, low[1].float(), on_torch(text)))
    else:
        with pytest.raises(TypeError, match="student: expected logits, got"):
            loss(head, low[1], on_torch(text))


def test_what_is_wrong_is_named():
    student, teacher, text = _problem()
    projection = baselines.string_projection(
        VocabularyMap.from_bytes([b"ab", b"a", b"b", None], [b"a", b"b", None]).plan()
    )
    with pytest.raises(ValueError, match=r"rest: expected one of \('one', 'sorted'\)"):
        baselines.equal_strings(student, teacher, text, rest="two")
    with pytest.raises(TypeError, match="text: expected TextPositions, got int"):
        baselines.equal_strings(student, teacher, 3)
    with pytest.raises(TypeError, match="text: expected TextPositions, got int"):
        baselines.byte_prefix(student, teacher, 3)
    with pytest.raises(ValueError, match="temperature: expected"):
        baselines.span_likelihood(student, teacher, text, temperature=0)
    with pytest.raises(ValueError, match="num_items: expected None unless"):
        baselines.byte_prefix(student, teacher, text, reduction="sum", num_items=3)
    with pytest.raises(ValueError, match="student: expected the 3 tokens of the plan at least, got 2"):
        baselines.equal_strings(student[..., :2], teacher, text)
    with pytest.raises(ValueError, match=r"text\.plan: expected a teacher of at least 4 tokens, got 3"):
        baselines.equal_strings(student, teacher[..., :3], text)
    with pytest.raises(TypeError, match="projection: expected a StringProjection, got"):
        baselines.projected_kl(student, teacher, text, np.eye(3))
    wide = baselines.StringProjection(projection.student, projection.teacher, projection.weights, 3, 5)
    with pytest.raises(
        ValueError, match="projection: expected one of at most 4 tokens of the teacher, got 5"
    ):
        baselines.projected_kl(student, teacher, text, wide)
    with pytest.raises(TypeError, match="plan: expected a TextPlan"):
        baselines.string_projection(projection)
    for decay in (0, 1.5):
        with pytest.raises(ValueError, match="decay: expected"):
            baselines.string_projection(text.plan, decay=decay)
    rows = mlot.TextPositions(text.rows.astype(float), text.teacher_ids, text.plan)
    with pytest.raises(TypeError, match=r"text\.rows: expected integers"):
        baselines.byte_prefix(student, teacher, rows)
    assert repr(projection) == "StringProjection(3 to 4 tokens, 2 entries)"
