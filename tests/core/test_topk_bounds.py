"""Bounds on truncation: they hold against the whole distribution, and they are not vacuous."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

import mlot
from mlot import _intervals
from mlot.backends.numpy import equations as eq
from mlot.bounds._transport import contraction, potential_bounds, value_bounds
from mlot.divergences import sequence_transport
from problems import random_mask, random_pairs

XP = mlot.get_backend("numpy")
TERMS = ("had", "sl", "sd")


class Case(NamedTuple):
    student: np.ndarray
    logits: np.ndarray  # of the teacher, whole
    teacher: mlot.TopKLogprobs
    student_mask: np.ndarray | None
    teacher_mask: np.ndarray | None
    pairs: np.ndarray | None

    def arguments(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("student_mask", "teacher_mask", "pairs")}


def truncated(
    logits: np.ndarray,
    k: np.ndarray | int,
    tail: str = "fitted",
    known: bool = True,
    temperature: float = 1.0,
) -> mlot.TopKLogprobs:
    """The k likeliest tokens of each position, k differing by position if it is an array."""
    logs = logits / temperature - np.logaddexp.reduce(logits / temperature, axis=2, keepdims=True)
    k = np.broadcast_to(k, logits.shape[:2])
    ids = np.argsort(-logs, axis=2, kind="stable")[:, :, : int(k.max())]
    logprobs = np.take_along_axis(logs, ids, axis=2)
    ids = np.where(np.arange(ids.shape[2]) < k[:, :, None], ids, -1)
    return mlot.TopKLogprobs(ids, logprobs, logits.shape[2] if known else None, tail, temperature)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, t_s, t_t = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    v_s, v_t = draw(st.sampled_from([3, 9, 20])), draw(st.sampled_from([2, 6, 15, 40]))
    spread = draw(st.sampled_from([0.0, 0.3, 2.0, 8.0]))
    logits = spread * rng.normal(size=(batch, t_t, v_t))
    if draw(st.booleans()):
        logits[:, :, 0] += 5.0  # one column that is heavy everywhere
    k = rng.integers(1, v_t + 1, size=(batch, t_t)) if draw(st.booleans()) else draw(st.integers(1, v_t))
    known = draw(st.booleans())
    tail = draw(st.sampled_from(["fitted", "zero", "renormalize"] + (["uniform"] if known else [])))
    teacher = truncated(logits, k, tail, known, draw(st.sampled_from([1.0, 1.0, 0.5, 2.0])))
    student = draw(st.sampled_from([0.5, 4.0])) * rng.normal(size=(batch, t_s, v_s))
    masks = [random_mask(rng, batch, t, draw(st.sampled_from(["none", "gaps", "right"]))) for t in (t_s, t_t)]
    pairs = random_pairs(rng, batch, t_s, t_t) if draw(st.booleans()) else None
    return Case(student, logits, teacher, *masks, pairs)


@st.composite
def configs(draw: st.DrawFn) -> mlot.MultiLevelOTConfig:
    return mlot.MultiLevelOTConfig(
        k=draw(st.sampled_from([1, 4, 50])),
        matching=draw(st.sampled_from(["optimal", "rank", "greedy"])),
        temperature=draw(st.sampled_from([1.0, 1.0, 2.0, 0.7])),
        sequence_temperature=draw(st.sampled_from([2.0, 1.0, 0.5])),
        epsilon=draw(st.sampled_from([0.1, 1.0])),
        n_iter=draw(st.sampled_from([1, 2, 20])),
        tol=draw(st.sampled_from([None, None, 1e-2])),
        token_cost=draw(st.sampled_from(["l1", "l1", "log"])),
        sequence_cost=draw(st.sampled_from(["l1", "l1", "log"])),
    )


def from_the_whole(
    case: Case, got: mlot.MultiLevelOTResult, config: mlot.MultiLevelOTConfig, rematch: bool
) -> dict[str, np.ndarray]:
    """The terms from the whole distribution, on the columns that the truncated one selected."""
    masks = [
        np.ones(source.shape[:2], dtype=bool) if mask is None else mask
        for source, mask in ((case.student, case.student_mask), (case.logits, case.teacher_mask))
    ]
    settings = {
        "temperature": config.temperature,
        "extra_temperatures": tuple({config.sequence_temperature} - {config.temperature}),
        "standardize": False,
    }
    teacher = XP.take(case.logits, got.teacher_columns, masks[1], **settings)
    columns = got.student_columns
    pairs = XP.index_pairs(*masks) if case.pairs is None else XP.restrict_pairs(case.pairs, *masks)
    if rematch:
        everything = np.tile(np.arange(case.student.shape[2]), (len(columns), 1))
        pooled = XP.take(case.student, everything, masks[0], **settings)
        cost = XP.token_cost(pooled, teacher, pairs, kind="l1", temperature=None)
        columns = XP.assign(cost, method="optimal")
    student = XP.take(case.student, columns, masks[0], **settings)
    sd, _ = sequence_transport(
        XP,
        student,
        teacher,
        temperature=config.sequence_temperature,
        kind=config.sequence_cost,
        epsilon=config.epsilon,
        n_iter=config.n_iter,
        tol=config.tol,
    )
    return {"had": XP.had(student, teacher, pairs), "sl": XP.sl(student, teacher, pairs), "sd": sd}


def test_a_tolerance_may_stop_at_another_round() -> None:
    """Then the value that was got is not that of all rounds, and any two of the range can be apart."""
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 2, size=(3, 2))
    low, high = cost - 0.3, cost + 0.2
    value, bottom, top = value_bounds(cost, low, high, epsilon=0.1, n_iter=2, tol=1e-2)
    assert (bottom, top) == pytest.approx((low.min(axis=0).mean(), high.max(axis=0).mean()))
    assert max(top - value, value - bottom) == top - bottom


@settings(max_examples=150)
@given(cases(), configs())
def test_bounds_hold(case: Case, config: mlot.MultiLevelOTConfig) -> None:
    given = case.arguments() | {"config": config, "reduction": "none"}
    got = mlot.multi_level_ot(case.student, case.teacher, **given)
    bounds = mlot.truncation_bounds(case.student, case.teacher, **given)
    held = from_the_whole(case, got, config, rematch=False)
    for term in TERMS:
        error, bound = np.abs(getattr(got, term) - held[term]), getattr(bounds, term)
        assert (error <= bound + 1e-9 * (1 + np.abs(held[term]))).all(), (term, error, bound)
    if config.matching == "optimal" and config.token_cost == "l1":
        matched_again = from_the_whole(case, got, config, rematch=True)["had"]
        assert (np.abs(got.had - matched_again) <= bounds.had + 1e-9).all()
    want = bounds.had + 0.1 * bounds.sl + 0.1 * bounds.sd
    np.testing.assert_allclose(bounds.loss, want, rtol=1e-12)


@settings(max_examples=60)
@given(cases(), configs())
def test_certain_columns_are_those_of_the_whole(case: Case, config: mlot.MultiLevelOTConfig) -> None:
    given = case.arguments() | {"config": config}
    got = mlot.multi_level_ot(case.student, case.teacher, **given)
    certain = mlot.truncation_bounds(case.student, case.teacher, **given).certain_columns
    mask = np.ones(case.logits.shape[:2], dtype=bool) if case.teacher_mask is None else case.teacher_mask
    whole = mlot.select(case.logits, mask, k=got.teacher_columns.shape[1], temperature=config.temperature)
    for n, count in enumerate(certain):
        assert count <= len(set(got.teacher_columns[n]) & set(whole.columns[n]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["fitted", "zero", "renormalize", "uniform"])
def test_bounds_vanish_where_every_token_is_listed(tail: str, temperature: float) -> None:
    """And on the way they fall: each doubling of K leaves less."""
    rng = np.random.default_rng(0)
    logits, student = 3 * rng.normal(size=(2, 6, 64)), 2 * rng.normal(size=(2, 5, 30))
    config = mlot.MultiLevelOTConfig(k=6, sequence_temperature=temperature)
    found = [
        mlot.truncation_bounds(student, truncated(logits, k, tail), config=config, reduction="none")
        for k in (4, 8, 16, 32, 63, 64)
    ]
    for term in TERMS:
        sizes = np.array([getattr(each, term) for each in found])
        assert (np.diff(sizes, axis=0) <= 1e-12).all(), term
        assert (sizes[-1] <= 1e-10).all(), term
        assert (sizes[-2] < 0.02 * sizes[0]).all(), (term, sizes)
    assert (found[-1].certain_columns == 6).all()
    assert (found[-1].missing_mass < 1e-12).all()


@given(cases(), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_probabilities_at_another_temperature_are_where_they_are_said_to_be(
    case: Case, temperature: float
) -> None:
    """Those of the whole distribution, and what each policy supposes."""
    source = case.teacher
    low, high = source.probability_bounds(temperature)
    whole = case.logits / temperature
    whole = np.exp(whole - np.logaddexp.reduce(whole, axis=2, keepdims=True))
    here = source.ids >= 0
    true = np.where(here, np.take_along_axis(whole, source.ids.clip(0), axis=2), 0.0)
    assert (low <= true + 1e-9).all()
    assert (true <= high + 1e-9).all()
    if source.tail != "renormalize" and source.temperature != temperature:
        traces = mlot.select(source, k=None, temperature=temperature)
        supposed = np.zeros(source.shape)
        np.put_along_axis(supposed, traces.columns[:, None, :], np.exp(traces.log_probs), axis=2)
        supposed = np.where(here, np.take_along_axis(supposed, source.ids.clip(0), axis=2), 0.0)
        assert (low <= supposed + 1e-9).all()
        assert (supposed <= high + 1e-9).all()


def test_bounds_are_near_what_can_happen() -> None:
    """At the temperature of the log-probabilities, all the missing mass on one selected column attains HAD's."""
    student = np.log(np.array([[[0.9, 0.06, 0.02, 0.02], [0.9, 0.06, 0.02, 0.02]]]))
    whole = np.log(np.array([[[0.6, 0.2 + 1e-9, 0.2 - 2e-9, 1e-9], [0.6, 0.2, 1e-9, 0.2 - 1e-9]]]))
    teacher = truncated(whole, 2)
    config = mlot.MultiLevelOTConfig(k=2, matching="rank")
    bounds = mlot.truncation_bounds(student, teacher, config=config, reduction="none")
    got = mlot.multi_level_ot(student, teacher, config=config, reduction="none").had
    true = mlot.multi_level_ot(student, whole, config=config, reduction="none").had
    np.testing.assert_allclose(bounds.had, np.abs(got - true), rtol=1e-6)


def test_without_the_vocabulary_a_long_tail_may_hold_anything() -> None:
    rng = np.random.default_rng(0)
    logits, student = 3 * rng.normal(size=(1, 6, 64)), rng.normal(size=(1, 6, 30))
    known, unknown = (
        mlot.truncation_bounds(student, truncated(logits, 32, known=known)).sd for known in (True, False)
    )
    assert known < 0.85 * unknown


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_reductions_and_backends(reduction: str) -> None:
    rng = np.random.default_rng(0)
    logits, student = 3 * rng.normal(size=(3, 6, 20)), rng.normal(size=(3, 5, 12))
    mask = rng.random((3, 5)) < 0.6
    mask[1] = False
    teacher = truncated(logits, 5)
    want = mlot.truncation_bounds(student, teacher, student_mask=mask, reduction=reduction)
    got = mlot.truncation_bounds(
        torch.from_numpy(student),
        teacher.map(torch.from_numpy),
        student_mask=torch.from_numpy(mask),
        reduction=reduction,
    )
    each = mlot.truncation_bounds(student, teacher, student_mask=mask, reduction="none")
    assert each.had[1] == each.sl[1] == each.sd[1] == 0
    for term in ("loss", *TERMS, "certain_columns", "missing_mass"):
        np.testing.assert_allclose(getattr(got, term), getattr(want, term), rtol=1e-9, err_msg=term)
    if reduction == "mean":
        np.testing.assert_allclose(want.had, each.had.sum() / mask.sum(), rtol=1e-12)
        twice = mlot.truncation_bounds(student, teacher, student_mask=mask, num_items=2.0)
        np.testing.assert_allclose(twice.sd, each.sd.sum() / 2, rtol=1e-12)


def test_an_impossible_student_column_has_no_bound() -> None:
    student = np.log(
        [[[0.5, 0.5, 0.0]]] + np.zeros((1, 2, 3)) + 0.0,
        where=[True, True, False],
        out=np.full((1, 2, 3), -np.inf),
    )
    logits = np.log([[[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]]])
    config = mlot.MultiLevelOTConfig(k=3, matching="rank")
    bounds = mlot.truncation_bounds(student, truncated(logits, 2), config=config)
    assert np.isinf(bounds.sl)
    assert np.isfinite(bounds.had)


# -- what the bounds are made of -------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.7, 2.0, 3.0]), st.integers(1, 6))
def test_intervals_hold_for_every_tail(seed: int, ratio: float, k: int) -> None:
    """For tails that are random, uniform, as concentrated as can be, and between."""
    rng = np.random.default_rng(seed)
    whole = np.sort(rng.dirichlet(np.full(7, rng.choice([0.2, 1.0, 20.0]))))[::-1]
    source = mlot.TopKLogprobs(np.arange(k)[None, None], np.log(whole[:k])[None, None], 7, temperature=1.0)
    found = _intervals.position(source, 0, 0, 1 / ratio)
    mass, cap, absent = whole[k:].sum(), whole[k - 1], 7 - k
    concentrated = np.array([min(cap, max(mass - j * cap, 0)) for j in range(absent)])
    tails = [whole[k:], np.full(absent, mass / absent), concentrated, (concentrated + mass / absent) / 2]
    for tail in itertools.chain(tails, (rng.permutation(each) for each in tails)):
        probs = np.concatenate([whole[:k], tail]) ** ratio
        probs /= probs.sum()
        assert (found.low - 1e-9 <= probs[:k]).all()
        assert (probs[:k] <= found.high + 1e-9).all()
        assert (found.absent_low - 1e-9 <= probs[k:]).all()
        assert (probs[k:] <= found.absent_high + 1e-9).all()
        assert probs[k:].sum() <= found.absent_mass + 1e-9


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    width=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0]),
    epsilon=st.sampled_from([0.05, 0.1, 1.0, 5.0]),
    n_iter=st.sampled_from([1, 2, 7, 20]),
)
def test_transport_between_two_costs(
    seed: int, shape: tuple[int, int], width: float, epsilon: float, n_iter: int
) -> None:
    rng = np.random.default_rng(seed)
    cost = 2 * rng.random(shape)
    low, high = cost - width * rng.random(shape), cost + width * rng.random(shape)
    value, bottom, top = value_bounds(cost, low, high, epsilon=epsilon, n_iter=n_iter, tol=None)
    weights = [np.full(n, 1 / n) for n in shape]
    for _ in range(8):
        inside = np.where(rng.random(shape) < rng.random(), low, high) if rng.random() < 0.7 else cost
        plan, _ = eq.sinkhorn(inside, *weights, epsilon, n_iter, None)
        found = float((plan * inside).sum())
        assert bottom - 1e-9 <= found <= top + 1e-9
        if inside is cost:
            np.testing.assert_allclose(found, value, rtol=1e-9)
    assert top - bottom <= high.max() - low.min() + 1e-9
    if width <= 1e-6:
        assert top - bottom < 1e-3


@pytest.mark.parametrize("n_iter", [1, 2, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0, 5.0])
def test_potentials_at_every_corner_of_small_intervals(n_iter: int, epsilon: float) -> None:
    """Both bounds on potentials hold at all extreme costs, and the worst of these come near."""
    rng = np.random.default_rng(0)
    shares = []
    for shape, width in itertools.product([(2, 2), (2, 3), (3, 2)], [0.01, 0.3] * 6):
        cost = 2 * rng.random(shape)
        low, high = cost - width * rng.random(shape), cost + width * rng.random(shape)
        potentials, least, most, spread = potential_bounds(cost, low, high, epsilon=epsilon, n_iter=n_iter)
        for corner in itertools.product([False, True], repeat=cost.size):
            inside = np.where(np.reshape(corner, shape), high, low)
            found = _row_potentials(inside, epsilon, n_iter)
            assert (least - 1e-9 <= found).all()
            assert (found <= most + 1e-9).all()
            assert np.ptp(found - potentials) <= spread + 1e-9
            shares.append(np.ptp(found - potentials) / spread)
    assert epsilon < 1 or max(shares) > 0.7


def _row_potentials(cost: np.ndarray, epsilon: float, n_iter: int) -> np.ndarray:
    """Logarithms of the rows' scalings after N rounds, from the kernel itself."""
    kernel = np.exp(-cost / epsilon)
    columns = np.ones(cost.shape[1])
    for n in range(n_iter):
        rows = 1 / (cost.shape[0] * (kernel @ columns))
        if n < n_iter - 1:
            columns = 1 / (cost.shape[1] * (kernel.T @ rows))
    return np.log(rows)


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    epsilon=st.sampled_from([0.05, 0.3, 1.0, 5.0]),
    size=st.sampled_from([1e-3, 1.0, 10.0]),
)
def test_a_half_round_contracts(seed: int, shape: tuple[int, int], epsilon: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    cost = 2 * rng.random(shape)
    first = size * rng.normal(size=shape[1])
    second = first + size * rng.normal(size=shape[1])
    after = logsumexp(first - cost / epsilon, axis=1) - logsumexp(second - cost / epsilon, axis=1)
    assert np.ptp(after) <= contraction(cost, epsilon) * np.ptp(second - first) + 1e-9


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_no_half_round_contracts_more_than_is_said(epsilon: float) -> None:
    """Between two symmetric points, about the origin, the coefficient is attained."""
    cost = 0.7 * (1 - np.eye(2))
    nearby = np.array([1e-4, -1e-4])
    after = logsumexp(nearby - cost / epsilon, axis=1) - logsumexp(-nearby - cost / epsilon, axis=1)
    np.testing.assert_allclose(np.ptp(after), contraction(cost, epsilon) * np.ptp(2 * nearby), rtol=1e-5)


def test_contraction_beats_intervals_where_the_regularisation_is_strong() -> None:
    rng = np.random.default_rng(0)
    cost = rng.random((12, 12))
    widths = []
    for n_iter in (1, 20):
        _, bottom, top = value_bounds(cost, cost - 1e-3, cost + 1e-3, epsilon=2.0, n_iter=n_iter, tol=None)
        widths.append(top - bottom)
    assert widths[1] < 2 * widths[0]  # intervals alone would grow by a factor of about 39


def test_a_tolerance_leaves_the_range() -> None:
    rng = np.random.default_rng(0)
    cost = rng.random((5, 6))
    _, bottom, top = value_bounds(cost, cost - 0.01, cost + 0.01, epsilon=0.1, n_iter=9, tol=1e-3)
    np.testing.assert_allclose(top, (cost + 0.01).max(axis=0).mean())
    np.testing.assert_allclose(bottom, (cost - 0.01).min(axis=0).mean())


# -- bad input -------------------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    student, logits = np.zeros((1, 3, 5)), np.zeros((1, 4, 6))
    teacher = truncated(logits, 3)
    with pytest.raises(TypeError, match="^teacher: expected TopKLogprobs, got ndarray"):
        mlot.truncation_bounds(student, logits)
    with pytest.raises(TypeError, match="^student: expected logits"):
        mlot.truncation_bounds(teacher, teacher)
    with pytest.raises(ValueError, match="^config: expected a matching of columns"):
        mlot.truncation_bounds(student, teacher, config=mlot.MultiLevelOTConfig(matching="sinkhorn"))
    with pytest.raises(TypeError, match="^config: expected a MultiLevelOTConfig"):
        mlot.truncation_bounds(student, teacher, config="paper")
