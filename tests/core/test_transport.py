"""Sinkhorn and exact transport against POT, SciPy and each other."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import mlot
from problems import BACKENDS, as_numpy

backends = pytest.mark.parametrize("backend", BACKENDS)


def to(backend: str, array: np.ndarray | None) -> object:
    return array if array is None or backend == "numpy" else torch.from_numpy(array)


@st.composite
def transports(
    draw: st.DrawFn, spread: float = 2.0
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    cost = rng.uniform(0, spread, size=(2, rows, columns))
    if draw(st.booleans()):
        return cost, None, None
    a, b = rng.dirichlet(np.ones(rows), size=2), rng.dirichlet(np.ones(columns), size=2)
    if draw(st.booleans()) and rows > 1:  # a row without weight
        a[:, 0] = 0
        a /= a.sum(-1, keepdims=True)
    return cost, a, b


@backends
@given(problem=transports())
def test_exact_transport(
    backend: str, problem: tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
) -> None:
    cost, a, b = problem
    found = mlot.emd(*(to(backend, x) for x in problem))
    for n in range(2):
        weights = [
            np.full(size, 1 / size) if w is None else w[n]
            for w, size in ((a, cost.shape[1]), (b, cost.shape[2]))
        ]
        np.testing.assert_allclose(
            as_numpy(found.value)[n], ot.emd2(*weights, cost[n]), rtol=1e-9, atol=1e-12
        )
        plan = as_numpy(found.plan)[n]
        assert (plan >= 0).all()
        np.testing.assert_allclose(plan.sum(1), weights[0], atol=1e-12)
        np.testing.assert_allclose(plan.sum(0), weights[1], atol=1e-12)
    assert (as_numpy(found.marginal_error) < 1e-12).all()
    assert (as_numpy(found.n_iter) == 0).all()


@backends
def test_exact_transport_of_a_square_problem_is_an_assignment(backend: str) -> None:
    cost = np.random.default_rng(0).uniform(size=(9, 9))
    rows, columns = linear_sum_assignment(cost)
    found = mlot.emd(to(backend, cost))
    np.testing.assert_allclose(as_numpy(found.value), cost[rows, columns].mean(), rtol=1e-12)


@backends
@given(
    problem=transports(),
    epsilon=st.sampled_from([0.05, 0.1, 1.0]),
    n_iter=st.sampled_from([1, 2, 7, 20]),
)
def test_sinkhorn_is_the_plan_after_n_rounds(
    backend: str,
    problem: tuple[np.ndarray, np.ndarray | None, np.ndarray | None],
    epsilon: float,
    n_iter: int,
) -> None:
    """Rows, then columns, N times, written literally."""
    cost, a, b = problem
    found = mlot.sinkhorn(*(to(backend, x) for x in problem), epsilon=epsilon, n_iter=n_iter)
    for n in range(2):
        weights = [
            np.full(size, 1 / size) if w is None else w[n]
            for w, size in ((a, cost.shape[1]), (b, cost.shape[2]))
        ]
        plan = np.exp(-cost[n] / epsilon)
        for _ in range(n_iter):
            plan = plan * (weights[0] / plan.sum(1).clip(1e-300))[:, None]
            plan = plan * (weights[1] / plan.sum(0).clip(1e-300))[None, :]
        np.testing.assert_allclose(as_numpy(found.plan)[n], plan, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(as_numpy(found.value)[n], (plan * cost[n]).sum(), rtol=1e-9, atol=1e-14)
        error = np.abs(plan.sum(1) - weights[0]).sum() + np.abs(plan.sum(0) - weights[1]).sum()
        np.testing.assert_allclose(as_numpy(found.marginal_error)[n], error, rtol=1e-7, atol=1e-12)
        assert as_numpy(found.n_iter)[n] == n_iter


@backends
@pytest.mark.parametrize("epsilon", [0.1, 0.5])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (1, 5)])
def test_converged_sinkhorn_is_that_of_pot(backend: str, epsilon: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 1, size=shape)
    a, b = (rng.dirichlet(5 * np.ones(n)) for n in shape)
    want = ot.sinkhorn(a, b, cost, reg=epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-14)
    found = mlot.sinkhorn(to(backend, cost), to(backend, a), to(backend, b), epsilon=epsilon, n_iter=3000)
    np.testing.assert_allclose(as_numpy(found.plan), want, rtol=1e-8, atol=1e-12)
    assert float(found.marginal_error) < 1e-10


@backends
@given(problem=transports(spread=1.0))
def test_sinkhorn_falls_towards_exact_transport(
    backend: str, problem: tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
) -> None:
    """Once converged, the cost of the plan is at least the exact one, and falls with the regularisation."""
    arrays = [to(backend, x) for x in problem]
    exact = as_numpy(mlot.emd(*arrays).value)
    before = None
    for epsilon in (1.0, 0.5, 0.2):
        found = mlot.sinkhorn(*arrays, epsilon=epsilon, n_iter=2000, tol=1e-9)
        slack = 2 * as_numpy(found.marginal_error) + 1e-12  # costs lie between 0 and 1
        value = as_numpy(found.value)
        assert (value >= exact - slack).all()
        if before is not None:
            assert (value <= before + slack).all()
        before = value


@backends
@given(problem=transports(), n_iter=st.sampled_from([1, 3, 20]))
def test_plans_are_non_negative_with_exact_columns(
    backend: str, problem: tuple[np.ndarray, np.ndarray | None, np.ndarray | None], n_iter: int
) -> None:
    cost, _, b = problem
    found = mlot.sinkhorn(*(to(backend, x) for x in problem), n_iter=n_iter)
    plan = as_numpy(found.plan)
    assert (plan >= 0).all()
    columns = np.full(cost.shape[::2], 1 / cost.shape[2]) if b is None else b
    np.testing.assert_allclose(plan.sum(1), columns, atol=1e-12)


@backends
@pytest.mark.parametrize(
    "cost",
    [[[np.inf, 1000.0], [1000.0, 0.0]], [[np.inf, 10.0], [10.0, -1000.0]], [[0.0, -np.inf], [0.0, -9.0]]],
)
def test_exact_transport_avoids_an_infinite_cost_whatever_that_takes(backend: str, cost: list) -> None:
    plan = as_numpy(mlot.emd(to(backend, np.array(cost))).plan)
    np.testing.assert_allclose(plan, [[0.0, 0.5], [0.5, 0.0]], atol=1e-12)


@backends
def test_weights_of_another_total(backend: str) -> None:
    a, b = np.array([1.0, 2.0]), np.array([0.5, 1.5, 1.0])
    cost = np.random.default_rng(0).uniform(size=(2, 3))
    for solve in (mlot.emd, mlot.sinkhorn):
        found = solve(*(to(backend, each) for each in (cost, a, b)))
        whole = solve(*(to(backend, each) for each in (cost, a / 3, b / 3)))
        np.testing.assert_allclose(as_numpy(found.plan), 3 * as_numpy(whole.plan), rtol=1e-12)


@backends
def test_exact_transport_of_totals_that_rounding_sets_apart(backend: str) -> None:
    a, b = np.array([0.5, 0.5]), np.array([0.5, 0.49997])
    plan = as_numpy(mlot.emd(*(to(backend, each) for each in (np.eye(2), a, b))).plan)
    np.testing.assert_allclose(plan.sum(1), a, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(0), b / b.sum(), rtol=1e-12)


@backends
def test_no_tolerance_is_met_by_a_plan_that_is_exact(backend: str) -> None:
    found = mlot.sinkhorn(to(backend, np.zeros((1, 1))), tol=0.0)
    assert float(found.marginal_error) == 0.0
    assert int(found.n_iter) == 1


@backends
def test_a_tolerance_stops_each_sequence_by_itself(backend: str) -> None:
    rng = np.random.default_rng(0)
    cost = np.stack([rng.uniform(0, 0.01, size=(5, 6)), rng.uniform(0, 2.0, size=(5, 6))])
    found = mlot.sinkhorn(to(backend, cost), tol=1e-4, n_iter=500)
    rounds = as_numpy(found.n_iter)
    assert rounds[0] < rounds[1] < 500
    assert (as_numpy(found.marginal_error) <= 1e-4).all()
    for n in range(2):
        alone = mlot.sinkhorn(to(backend, cost[n]), tol=1e-4, n_iter=500)
        np.testing.assert_allclose(as_numpy(found.plan)[n], as_numpy(alone.plan), rtol=1e-12)
        fewer = mlot.sinkhorn(to(backend, cost[n]), n_iter=int(rounds[n]) - 1)
        assert float(fewer.marginal_error) > 1e-4


@backends
def test_a_small_regularisation_does_not_underflow(backend: str) -> None:
    cost = np.random.default_rng(0).uniform(0, 2, size=(2, 7, 5))
    found = mlot.sinkhorn(to(backend, cost), epsilon=1e-3, n_iter=50)
    assert np.isfinite(as_numpy(found.plan)).all()
    np.testing.assert_allclose(as_numpy(found.plan).sum(1), 0.2, atol=1e-12)
    if backend == "torch":
        single = mlot.sinkhorn(torch.from_numpy(cost).float(), epsilon=1e-3, n_iter=50)
        np.testing.assert_allclose(as_numpy(single.value), as_numpy(found.value), rtol=1e-3)


@backends
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1)])
def test_only_one_plan_is_possible(backend: str, shape: tuple[int, int]) -> None:
    """With a single row or column the plan is the product of the marginals, whatever the cost."""
    cost = np.random.default_rng(0).uniform(0, 2, size=shape)
    for solve in (mlot.emd, mlot.sinkhorn):
        found = solve(to(backend, cost))
        np.testing.assert_allclose(as_numpy(found.plan), np.full(shape, 1 / max(shape)), rtol=1e-12)
        np.testing.assert_allclose(as_numpy(found.value), cost.mean(), rtol=1e-12)


@backends
def test_the_sequence_term_is_above_exact_transport(backend: str) -> None:
    """SD is T_s times the cost of a plan, so at least T_s times the exact one once converged."""
    rng = np.random.default_rng(2)
    student, teacher = (to(backend, rng.normal(size=(2, t, 20))) for t in (6, 8))
    config = mlot.MultiLevelOTConfig(k=5, n_iter=2000, tol=1e-10, epsilon=0.2)
    result = mlot.multi_level_ot(student, teacher, config=config, reduction="none", return_plan=True)
    s, t = mlot.select(student, k=20), mlot.select(teacher, k=5)
    for n in range(2):
        index = [list(as_numpy(s.columns)[n]).index(c) for c in as_numpy(result.student_columns)[n]]
        x, y = np.exp(as_numpy(t.at(2.0))[n]), np.exp(as_numpy(s.at(2.0))[n][:, index])
        cost = np.abs(x[:, None] - y[None]).sum(-1)
        exact = 6 * ot.emd2(np.full(8, 1 / 8), np.full(6, 1 / 6), cost)
        assert as_numpy(result.sd)[n] >= exact - 1e-8
        np.testing.assert_allclose(
            as_numpy(result.sd)[n], 6 * (as_numpy(result.plan)[n] * cost).sum(), rtol=1e-9
        )


def test_what_is_reported_has_no_gradient() -> None:
    cost = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    for epsilon in (0.1, 1e-3):
        found = mlot.sinkhorn(cost, epsilon=epsilon)
        assert found.value.requires_grad
        assert not found.marginal_error.requires_grad
        assert not found.n_iter.requires_grad


@backends
def test_the_sequence_term_where_a_position_cannot_be_reached(backend: str) -> None:
    """A cost that is infinite takes no mass, and no mass costs nothing."""
    student, teacher = (np.random.default_rng(n).normal(np.arange(6), 0.1, size=(1, 4, 6)) for n in range(2))
    student[0, 1, 0] = teacher[0, 1:, 0] = -np.inf  # the lightest of both, which are matched
    config = mlot.MultiLevelOTConfig(k=6, matching="rank", sequence_cost="log", had_weight=0.0, sl_weight=0.0)
    result = mlot.multi_level_ot(to(backend, student), to(backend, teacher), config=config, return_plan=True)
    plan = as_numpy(result.plan)[0]
    assert np.isfinite(float(result.sd))
    assert (plan == 0).tolist() == [[False, True, False, False], *[[False] * 4] * 3]


@pytest.mark.parametrize("epsilon", [0.5, 0.004])
def test_gradients_of_cost_and_weights(epsilon: float) -> None:
    """On both ways of computing it: with the kernel, and with its logarithm where that would underflow."""
    g = torch.Generator().manual_seed(0)
    cost, a, b = (
        torch.rand(*shape, generator=g, dtype=torch.float64) for shape in ((1, 3, 4), (1, 3), (1, 4))
    )

    def value(cost: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = mlot.sinkhorn(cost, a / a.sum(), b / b.sum(), epsilon=epsilon, n_iter=4)
        return found.value + found.plan[..., 1].square().sum()

    leaves = [(x + 0.1).requires_grad_() for x in (cost, a, b)]
    assert torch.autograd.gradcheck(value, leaves, eps=1e-7, rtol=1e-4)
