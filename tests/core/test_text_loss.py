"""The loss with the plan from the text: both backends, the definition, gradients, invariance, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlot
from text_cases import text_problems

ALL = mlot.MultiLevelOTConfig(
    k=6, matching="text", had_weight=0.7, sl_weight=0.4, sd_weight=0.3, n_iter=5, temperature=1.0
)


def student_of(problem, seed=0):
    shape = (*problem.mask.shape, max(len(problem.mine), 1))
    return np.random.default_rng(seed).normal(size=shape)


def on_torch(text):
    return mlot.TextPositions(torch.from_numpy(text.rows), torch.from_numpy(text.teacher_ids), text.plan)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@given(problem=text_problems(framed=False), k=st.integers(1, 6), temperature=st.sampled_from([1.0, 1.5]))
def test_both_backends_agree(problem, k, temperature):
    config = mlot.MultiLevelOTConfig(k=k, matching="text", temperature=temperature, n_iter=4)
    student, teacher = student_of(problem), problem.logits
    reference = mlot.multi_level_ot(student, teacher, text=problem.positions, config=config, reduction="none")
    ours = mlot.multi_level_ot(
        torch.from_numpy(student),
        torch.from_numpy(teacher),
        text=on_torch(problem.positions),
        config=config,
        reduction="none",
    )
    for name in ("had", "sl", "loss"):
        np.testing.assert_allclose(getattr(ours, name), getattr(reference, name), rtol=1e-10, atol=1e-10)
    if np.array_equal(ours.teacher_columns, reference.teacher_columns):  # near-ties of mass may differ
        np.testing.assert_allclose(ours.sd, reference.sd, rtol=1e-9, atol=1e-10)


@given(problem=text_problems(framed=False))
def test_terms_by_their_definition(problem):
    """With every token listed HAD and SL are those of whole distributions."""
    student = student_of(problem)
    expected = problem.targets()
    config = mlot.MultiLevelOTConfig(k=len(problem.mine), matching="text", sd_weight=0)
    result = mlot.multi_level_ot(
        student, problem.logits, text=problem.positions, config=config, reduction="none"
    )
    log_s = log_softmax(student[0])
    had = sum(np.abs(q - np.exp(log_s[i])).sum() for i, (q, _) in expected.items())
    sl = sum(-(q * log_s[i]).sum() for i, (q, _) in expected.items())
    np.testing.assert_allclose(result.had, [had], atol=1e-11)
    np.testing.assert_allclose(result.sl, [sl], atol=1e-11)
    assert np.isnan(result.sd).all()
    numbers = result.diagnostics()
    assert numbers.pairs.tolist() == [len(expected)]
    if expected:
        mean = np.mean([served for _, served in expected.values()])
        assert numbers.served_mass[0] == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(problem=text_problems(framed=False), k=st.integers(1, 4))
def test_a_rest_changes_the_terms_within_its_bound(backend, problem, k):
    student = student_of(problem)
    whole, cut = (
        mlot.text_targets(problem.logits, problem.positions, student_mask=problem.mask, k=size)
        for size in (len(problem.mine), k)
    )
    config = mlot.MultiLevelOTConfig(k=k, matching="text", sd_weight=0)
    convert = (lambda x: x) if backend == "numpy" else torch.from_numpy
    values = [
        mlot.multi_level_ot(convert(student), targets.map(convert), config=config, reduction="none")
        for targets in (whole, cut)
    ]
    s = np.exp(log_softmax(student[0]))
    bound = 0.0
    for i in np.flatnonzero(cut.served[0] > 0):
        rest_s = 1 - s[i, cut.ids[0, i][cut.ids[0, i] >= 0]].sum()
        bound += 2 * min(cut.rest[0, i], max(rest_s, 0))
    assert abs(float(values[0].had[0]) - float(values[1].had[0])) <= bound + 1e-10
    assert float(values[1].sl[0]) <= float(values[0].sl[0]) + 1e-10  # one token for many is never worse


@pytest.mark.slow
@given(problem=text_problems(framed=False))
@settings(max_examples=30)
def test_gradient_by_finite_differences(problem):
    student = torch.from_numpy(student_of(problem)).requires_grad_()
    text, teacher = on_torch(problem.positions), torch.from_numpy(problem.logits)
    targets = mlot.text_targets(teacher, text, student_mask=torch.from_numpy(problem.mask), k=3)

    def loss(z, config=ALL):
        return mlot.multi_level_ot(z, targets, config=config, reduction="sum").loss

    smooth = mlot.MultiLevelOTConfig(k=6, matching="text", had_weight=0, sl_weight=1, sd_weight=0.5, n_iter=3)
    assert torch.autograd.gradcheck(lambda z: loss(z, smooth), student, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss(student), student)
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=student.shape))
    step = 1e-6
    with torch.no_grad():
        slope = (loss(student + step * direction) - loss(student - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_listed_log_probabilities(temperature):
    from mlot.backends.torch.ops import log_probs_at

    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(2, 3, 7))).requires_grad_()
    ids = torch.tensor([[[0, 6, -1], [1, 1, 2], [3, -1, -1]], [[5, 4, 3], [-1, -1, -1], [0, 1, 2]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def listed(x):
        return log_probs_at(x, ids, mask, temperature).masked_fill(~mask[..., None] | (ids < 0), 0)

    expected = (z / temperature).log_softmax(-1).gather(2, ids.clamp(min=0))
    torch.testing.assert_close(listed(z), expected.masked_fill(~mask[..., None] | (ids < 0), 0))
    assert torch.autograd.gradcheck(listed, z)


@given(problem=text_problems(framed=False), data=st.data())
def test_a_loss_does_not_depend_on_padding_or_the_batch(problem, data):
    """A sequence alone, and padded on both sides beside another one."""
    left, right = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    student, teacher, text = student_of(problem), problem.logits, problem.positions
    alone = mlot.multi_level_ot(student, teacher, text=text, config=ALL, reduction="none")

    def padded(array, fill):
        return np.pad(array, [(0, 1), (left, right), (0, 0)], constant_values=fill)

    rows = np.where(text.rows[..., :1] >= 0, text.rows, -1)
    rows = np.concatenate([rows, np.full_like(rows, -1)])
    rows[..., :2] += np.where(rows[..., :1] >= 0, left, 0)
    ids = np.pad(text.teacher_ids, [(0, 1), (left, right)])
    masks = [np.pad(np.ones(x.shape[:2], bool), [(0, 1), (left, right)]) for x in (student, teacher)]
    batch = mlot.multi_level_ot(
        padded(student, 3.0),
        padded(teacher, -2.0),
        text=mlot.TextPositions(rows, ids, text.plan),
        student_mask=masks[0],
        teacher_mask=masks[1],
        config=ALL,
        reduction="none",
    )
    for name in ("had", "sl", "sd"):
        value = getattr(batch, name)
        np.testing.assert_allclose(value[0], getattr(alone, name)[0], atol=1e-12)
        assert value[1] == 0


@given(problem=text_problems(framed=False, reading="longest"), seed=st.integers(0, 99))
def test_a_loss_does_not_depend_on_the_order_of_either_vocabulary(problem, seed):
    from mlot.align import TokenBytes, VocabularyMap, text_positions

    if len({w for w in problem.mine if w}) < sum(bool(w) for w in problem.mine):
        return  # copies are told apart by their ids
    if len({w for w in problem.others if w}) < sum(bool(w) for w in problem.others):
        return
    rng = np.random.default_rng(seed)
    student = student_of(problem)
    first = mlot.multi_level_ot(student, problem.logits, text=problem.positions, config=ALL, reduction="none")
    new, logits, sides = [], [], []
    for words, tokens, z in (
        (problem.mine, problem.student, student),
        (problem.others, problem.teacher, problem.logits),
    ):
        order = rng.permutation(len(words))
        place = np.argsort(order)
        new.append([words[n] for n in order])
        logits.append(z[..., order])
        sides.append(
            TokenBytes(place[tokens.ids], tokens.starts, tokens.ends, tokens.special, len(problem.text))
        )
        roles = place[1]
        new.append(roles)
    vocabulary = VocabularyMap.from_bytes(new[0], new[2], roles=[(new[3], new[1])])
    rows = text_positions(*sides, problem.text, vocabulary)[None]
    text = mlot.TextPositions(rows, sides[1].ids[None], vocabulary.plan("longest"))
    second = mlot.multi_level_ot(logits[0], logits[1], text=text, config=ALL, reduction="none")
    np.testing.assert_allclose(second.had, first.had, atol=1e-11)
    np.testing.assert_allclose(second.sl, first.sl, atol=1e-11)


@given(problem=text_problems(framed=False))
@settings(max_examples=25)
def test_heads_give_what_their_logits_give(problem):
    rng = np.random.default_rng(3)
    heads = [
        mlot.LinearHead(
            torch.from_numpy(rng.normal(size=(*shape, 4))),
            torch.from_numpy(rng.normal(size=(size, 4))).requires_grad_(),
        )
        for shape, size in (
            (problem.mask.shape, len(problem.mine)),
            (problem.logits.shape[:2], len(problem.others)),
        )
    ]
    dense = [head.hidden @ head.weight.T for head in heads]
    text = on_torch(problem.positions)
    results = [mlot.multi_level_ot(*pair, text=text, config=ALL, reduction="sum") for pair in (heads, dense)]
    torch.testing.assert_close(results[0].loss, results[1].loss)
    grads = [torch.autograd.grad(result.loss, heads[0].weight, allow_unused=True)[0] for result in results]
    torch.testing.assert_close(grads[0], grads[1])


def _problem():
    """Two positions with targets: "ab" for a student of letters."""
    from mlot.align import TokenBytes, VocabularyMap, text_positions

    vocabulary = VocabularyMap.from_bytes([b"a", b"b", None], [b"ab", b"a", b"b", None])
    student = TokenBytes([2, 0, 1], [0, 0, 1], [0, 1, 2], [True, False, False], 2)
    teacher = TokenBytes([3, 0], [0, 0], [0, 2], [True, False], 2)
    rows = text_positions(student, teacher, "ab", vocabulary)[None]
    text = mlot.TextPositions(rows, teacher.ids[None], vocabulary.plan())
    return np.zeros((1, 3, 3)), np.zeros((1, 2, 4)), text


def test_what_is_wrong_is_named():
    student, teacher, text = _problem()
    config = mlot.MultiLevelOTConfig.text()
    call = mlot.multi_level_ot
    with pytest.raises(ValueError, match="text: expected TextPositions with matching='text'"):
        call(student, teacher, config=config)
    with pytest.raises(ValueError, match="text: expected None unless matching"):
        call(student, teacher, text=text)
    with pytest.raises(TypeError, match="text: expected TextPositions, got int"):
        call(student, teacher, text=3, config=config)
    with pytest.raises(ValueError, match="pairs: expected None with matching='text'"):
        call(student, teacher, text=text, pairs=np.zeros((1, 1, 2), int), config=config)
    with pytest.raises(ValueError, match=r"text\.plan: expected a teacher of at least 4 tokens, got 3"):
        call(student, teacher[..., :3], text=text, config=config)
    with pytest.raises(ValueError, match="student: expected the 3 tokens of the targets at least, got 2"):
        call(student[..., :2], teacher, text=text, config=config)
    with pytest.raises(ValueError, match=r"text\.teacher_ids: expected \(1, 1\)"):
        call(student, teacher[:, :1], text=text, config=config)
    with pytest.raises(ValueError, match=r"text\.rows\[\.\.\., 0\]: expected numbers below 1"):
        call(student[:, :1], teacher, text=text, config=config)
    with pytest.raises(TypeError, match="teacher: expected logits, a LinearHead or TopKLogprobs"):
        call(student, mlot.select(teacher, k=2), text=text, config=config)
    with pytest.raises(TypeError, match="student: expected logits or a LinearHead"):
        call(mlot.select(student, k=2), teacher, text=text, config=config)
    targets = mlot.text_targets(teacher, text, student_mask=np.ones((1, 3), bool))
    with pytest.raises(TypeError, match="teacher: TextTargets need matching='text'"):
        call(student, targets)
    with pytest.raises(ValueError, match="text: expected None beside targets"):
        call(student, targets, text=text, config=config)
    with pytest.raises(ValueError, match=r"teacher: expected targets at temperature 2\.0, got 1\.0"):
        call(student, targets, config=mlot.MultiLevelOTConfig(matching="text", temperature=2.0))
    with pytest.raises(ValueError, match="standardize: expected False with matching='text'"):
        mlot.MultiLevelOTConfig(matching="text", standardize=True)


def test_presets():
    assert mlot.MultiLevelOTConfig.paper() == mlot.MultiLevelOTConfig()
    text = mlot.MultiLevelOTConfig.text()
    assert (text.matching, text.had_weight, text.sl_weight, text.sd_weight) == ("text", 0, 1, 0)


def test_the_share_on_equal_strings():
    """Identical models in two orders of one vocabulary: the optimal matching finds every string."""
    from mlot.align import VocabularyMap

    words = [b"a", b"b", b"c", b"d", b"e"]
    plan = VocabularyMap.from_bytes(words, words[::-1]).plan()
    student = np.random.default_rng(0).normal(size=(1, 9, 5))
    for matching, expected in (("optimal", 1.0), ("rank", 1.0)):
        config = mlot.MultiLevelOTConfig(k=4, matching=matching)
        result = mlot.multi_level_ot(student, student[..., ::-1].copy(), config=config)
        assert result.diagnostics(plan).same_bytes == pytest.approx([expected])
        assert np.isnan(result.diagnostics().same_bytes).all()
    wrong = VocabularyMap.from_bytes(words[1:] + words[:1], words[::-1]).plan()
    assert result.diagnostics(wrong).same_bytes.tolist() == [0.0]
