"""Matching against exhaustive search, and the certificate of a pooled matching against the whole vocabulary."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import mlot
from mlot.matching import default_pool
from problems import BACKENDS, as_numpy, make_problem

backends = pytest.mark.parametrize("backend", BACKENDS)


def to(backend: str, array: np.ndarray) -> object:
    return torch.from_numpy(array) if backend == "torch" else array


@st.composite
def costs(draw: st.DrawFn) -> np.ndarray:
    rows = draw(st.integers(1, 4))
    columns = draw(st.integers(rows, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cost = rng.uniform(-1, 1, size=(2, rows, columns))
    if draw(st.booleans()):
        cost = np.round(cost, 1)  # with ties
    return cost


@backends
@given(cost=costs())
def test_optimal_beats_every_injective_map(backend: str, cost: np.ndarray) -> None:
    found = as_numpy(mlot.assign(to(backend, cost)))
    for n, matrix in enumerate(cost):
        rows = np.arange(matrix.shape[0])
        assert len(set(found[n])) == len(rows)
        best = min(matrix[rows, list(q)].sum() for q in permutations(range(matrix.shape[1]), len(rows)))
        assert matrix[rows, found[n]].sum() <= best + 1e-9


@backends
@given(cost=costs())
def test_greedy_takes_the_cheapest_column_left(backend: str, cost: np.ndarray) -> None:
    found = as_numpy(mlot.assign(to(backend, cost), "greedy"))
    for n, matrix in enumerate(cost):
        taken: list[int] = []
        for row in matrix:
            left = [m for m in range(len(row)) if m not in taken]
            taken.append(min(left, key=lambda m: (row[m], m)))
        assert list(found[n]) == taken


@backends
@given(cost=costs())
def test_rank_keeps_the_order(backend: str, cost: np.ndarray) -> None:
    found = as_numpy(mlot.assign(to(backend, cost), "rank"))
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(cost.shape[1]), cost.shape[:2]))


@backends
def test_ties_go_to_the_order_of_columns(backend: str) -> None:
    """Equally cheap matchings exist on whole regions; rounding must not choose among them."""
    t, s = np.array([0.3, 0.2, 0.1]), np.array([0.9, 0.8, 0.7])  # any matching costs 1.8
    cost = np.abs(t[:, None] - s[None, :])[None]
    for noise in range(20):
        shaken = cost + 1e-16 * np.random.default_rng(noise).normal(size=cost.shape)
        for signed in (shaken, -shaken):
            np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, signed))), [[0, 1, 2]])


@backends
def test_infinite_costs_are_avoided(backend: str) -> None:
    cost = np.array([[[np.inf, 1.0, 5.0], [0.0, 0.5, np.inf]]])
    for method in ("optimal", "greedy"):
        np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, cost), method)), [[1, 0]])


@backends
def test_infinite_costs_are_avoided_whatever_the_others_are(backend: str) -> None:
    """Dearer than all others together, also where these are 0, or negative; ties keep the order there, too."""
    for finite in (0.0, -1.0, -300.0):
        cost = np.array([[[np.inf, finite], [finite, np.inf]]])
        for method in ("optimal", "greedy"):
            np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, cost), method)), [[1, 0]])
    cost = np.array([[[np.inf, 3.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, cost))), [[2, 1, 0]])
    np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, np.full((1, 3, 4), -2.0)))), [[0, 1, 2]])


@backends
def test_what_breaks_ties_is_of_the_size_of_the_cost(backend: str) -> None:
    cost = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    for size in (1e-200, 1e-14, 1.0, 1e200):
        np.testing.assert_array_equal(as_numpy(mlot.assign(to(backend, size * cost))), [[1, 0]])


@backends
@pytest.mark.parametrize("seed", range(4))
def test_equation_11_by_exhaustive_search(backend: str, seed: int) -> None:
    """The matched HAD is the least over all injective maps of the teacher's columns into the vocabulary."""
    problem = make_problem(seed, batch=1, t_s=3, t_t=3, v_s=7, v_t=8)
    s, t = (np.exp(x[0]) / np.exp(x[0]).sum(-1, keepdims=True) for x in (problem.student, problem.teacher))
    heaviest = np.argsort(-t.sum(0), kind="stable")[:4]
    best = min(np.abs(t[:, heaviest] - s[:, list(q)]).sum() for q in permutations(range(7), 4))
    result = mlot.multi_level_ot(
        **problem.to(backend).arguments(), config=mlot.MultiLevelOTConfig(k=4), reduction="none"
    )
    np.testing.assert_array_equal(as_numpy(result.teacher_columns), [heaviest])
    np.testing.assert_allclose(as_numpy(result.had), [best], rtol=1e-12)
    assert result.diagnostics().matching_gap == 0  # the default pool holds the whole vocabulary


@backends
@given(
    seed=st.integers(0, 2**32 - 1),
    pool=st.integers(3, 12),
    spread=st.sampled_from([0.3, 2.0, 6.0]),
    gaps=st.booleans(),
)
def test_the_certificate_holds(backend: str, seed: int, pool: int, spread: float, gaps: bool) -> None:
    """What a pool loses against the whole vocabulary is at most the gap that is reported."""
    problem = make_problem(
        seed, batch=2, t_s=6, t_t=5, v_s=30, v_t=20, spread=spread, masks="gaps" if gaps else "none"
    )
    arguments = problem.to(backend).arguments()
    pooled = mlot.multi_level_ot(
        **arguments, config=mlot.MultiLevelOTConfig(k=3, pool=pool), reduction="none"
    )
    whole = mlot.multi_level_ot(**arguments, config=mlot.MultiLevelOTConfig(k=3, pool=30), reduction="none")
    lost = as_numpy(pooled.had) - as_numpy(whole.had)
    gap = pooled.diagnostics().matching_gap
    assert (lost >= -1e-12).all()
    assert (lost <= gap + 1e-12).all()
    assert (whole.diagnostics().matching_gap == 0).all()


@backends
@given(seed=st.integers(0, 2**32 - 1), pool=st.integers(2, 6), times=st.integers(2, 5))
@example(seed=1725, pool=3, times=5)  # where mass that counts each position once would be too small a bound
def test_the_certificate_holds_where_positions_are_paired_several_times(
    backend: str, seed: int, pool: int, times: int
) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = 3 * rng.normal(size=(1, 3, 20)), 3 * rng.normal(size=(1, 5, 12))
    pairs = np.stack([np.zeros(times, int), np.arange(times)], axis=1)[None]
    arguments = {
        name: to(backend, x) for name, x in (("student", student), ("teacher", teacher), ("pairs", pairs))
    }
    pooled, whole = (
        mlot.multi_level_ot(**arguments, config=mlot.MultiLevelOTConfig(k=2, pool=size), reduction="none")
        for size in (pool, 20)
    )
    lost = as_numpy(pooled.had) - as_numpy(whole.had)
    assert (lost <= pooled.diagnostics().matching_gap + 1e-12).all()


def test_the_certificate_is_not_vacuous() -> None:
    """It is 0 for the default pool on peaked predictions, and positive where a pool is too small."""
    problem = make_problem(0, batch=2, t_s=16, t_t=16, v_s=2000, v_t=1500, spread=3.0)
    found = mlot.multi_level_ot(**problem.arguments(), config=mlot.MultiLevelOTConfig(k=10))
    assert (found.diagnostics().matching_gap == 0).all()
    small = mlot.multi_level_ot(**problem.arguments(), config=mlot.MultiLevelOTConfig(k=10, pool=10))
    assert (small.diagnostics().matching_gap > 0).all()


def test_other_matchings_have_no_certificate() -> None:
    problem = make_problem(0)
    for matching in ("rank", "greedy", "sinkhorn"):
        found = mlot.multi_level_ot(
            **problem.arguments(), config=mlot.MultiLevelOTConfig(k=4, matching=matching)
        )
        assert np.isnan(found.diagnostics().matching_gap).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros((3, 2)), np.zeros(3, int), np.zeros(3), 0.1),
            r"cost: expected \(k, pool\) with k <= pool, got",
        ),
        (
            (np.zeros((2, 3)), np.zeros(3, int), np.zeros(2), 0.1),
            r"columns: expected shape \(2,\), got \(3,\)",
        ),
        (
            (np.zeros((2, 3)), np.zeros(2, int), np.zeros(4), 0.1),
            r"teacher_mass: expected shape \(2,\), got \(4,\)",
        ),
        ((np.zeros((2, 3)), np.array([0, 3]), np.zeros(2), 0.1), "columns: expected 0 to 2, got 0 to 3"),
    ],
)
def test_bad_input_for_the_certificate(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        mlot.matching_gap(*arguments)


def test_default_pool() -> None:
    assert default_pool(1) == 256
    assert default_pool(50) == 400


@backends
def test_matched_columns_are_distinct_and_in_the_pool(backend: str) -> None:
    problem = make_problem(3, v_s=40, v_t=50)
    config = mlot.MultiLevelOTConfig(k=8, pool=12)
    found = mlot.multi_level_ot(**problem.to(backend).arguments(), config=config)
    pool = as_numpy(mlot.select(problem.to(backend).student, k=12).columns)
    for n, columns in enumerate(as_numpy(found.student_columns)):
        assert len(set(columns)) == 8
        assert set(columns) <= set(pool[n])
