"""Every row of the paper's ablations as a configuration or a call, against the equations written out."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, logsumexp

import mlot
from problems import BACKENDS, as_numpy, make_problem

backends = pytest.mark.parametrize("backend", BACKENDS)
K = 6


class Written:
    """The equations for one sequence with every position valid, in plain NumPy."""

    def __init__(self, student: np.ndarray, teacher: np.ndarray, k: int | None = K) -> None:
        self.rows = min(len(student), len(teacher))
        self.student, self.teacher = student, teacher
        s, t = np.exp(log_softmax(student, -1)), np.exp(log_softmax(teacher, -1))
        width = min(s.shape[1], t.shape[1])
        self.t_columns = np.argsort(-t.sum(0), kind="stable")[: k or width]
        self.s_ranked = np.argsort(-s.sum(0), kind="stable")
        self.s, self.t = s, t

    def match(self, columns: np.ndarray) -> None:
        log_s, log_t = (
            log_softmax(self.student, -1)[:, columns],
            log_softmax(self.teacher, -1)[:, self.t_columns],
        )
        n = self.rows
        self.had = np.abs(np.exp(log_t[:n]) - np.exp(log_s[:n])).sum()
        self.sl = -(np.exp(log_t[:n]) * log_s[:n]).sum()
        soft_s = np.exp(log_softmax(self.student / 2, -1))[:, columns]
        soft_t = np.exp(log_softmax(self.teacher / 2, -1))[:, self.t_columns]
        self.sd = self.distance(soft_s, soft_t)

    def distance(self, soft_s: np.ndarray, soft_t: np.ndarray) -> float:
        cost = np.abs(soft_t[:, None] - soft_s[None]).sum(-1)
        plan = literal_sinkhorn(cost, 0.1, 20)
        return len(self.student) * (plan * cost).sum()

    def optimal(self) -> np.ndarray:
        n = self.rows
        cost = np.abs(self.t[:n, self.t_columns][:, :, None] - self.s[:n][:, None, :]).sum(0)
        return linear_sum_assignment(cost)[1]


def literal_sinkhorn(cost: np.ndarray, epsilon: float, rounds: int) -> np.ndarray:
    plan = np.exp(-cost / epsilon)
    for _ in range(rounds):
        plan = plan / plan.sum(1, keepdims=True) / cost.shape[0]
        plan = plan / plan.sum(0, keepdims=True) / cost.shape[1]
    return plan


@pytest.fixture
def problem() -> object:
    return make_problem(8, batch=1, t_s=6, t_t=7, v_s=23, v_t=31)


def run(problem: object, backend: str, **settings: object) -> mlot.MultiLevelOTResult:
    config = mlot.MultiLevelOTConfig(**{"k": K, **settings})
    return mlot.multi_level_ot(**problem.to(backend).arguments(), config=config, reduction="none")


def check(result: mlot.MultiLevelOTResult, want: Written, weights: tuple[float, float, float]) -> None:
    for name in ("had", "sl", "sd"):
        np.testing.assert_allclose(as_numpy(getattr(result, name)), [getattr(want, name)], rtol=1e-9)
    total = weights[0] * want.had + weights[1] * want.sl + weights[2] * want.sd
    np.testing.assert_allclose(as_numpy(result.loss), [total], rtol=1e-9)


@backends
@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, (1.0, 0.1, 0.1)),
        ({"had_weight": 0.0}, (0.0, 0.1, 0.1)),
        ({"sl_weight": 0.0}, (1.0, 0.0, 0.1)),
        ({"sd_weight": 0.0}, (1.0, 0.1, 0.0)),
        ({"sl_weight": 0.0, "sd_weight": 0.0}, (1.0, 0.0, 0.0)),
        ({"had_weight": 0.0, "sd_weight": 0.0, "sl_weight": 1.0}, (0.0, 1.0, 0.0)),
        ({"had_weight": 0.0, "sl_weight": 0.0, "sd_weight": 1.0}, (0.0, 0.0, 1.0)),
    ],
    ids=["full", "without HAD", "without SL", "without SD", "only HAD", "only SL", "only SD"],
)
def test_terms(backend: str, problem: object, settings: dict, weights: tuple[float, float, float]) -> None:
    want = Written(problem.student[0], problem.teacher[0])
    want.match(want.optimal())
    check(run(problem, backend, **settings), want, weights)


@backends
def test_no_truncation(backend: str, problem: object) -> None:
    """All columns, matched by rank, as many as the narrower vocabulary has."""
    want = Written(problem.student[0], problem.teacher[0], k=None)
    want.t_columns = want.t_columns[:23]
    want.match(want.s_ranked[:23])
    result = run(problem, backend, k=None, matching="rank")
    assert as_numpy(result.student_columns).shape == (1, 23)
    check(result, want, (1.0, 0.1, 0.1))


@backends
@pytest.mark.parametrize("k", [1, 3, 12])
def test_number_of_columns(backend: str, problem: object, k: int) -> None:
    want = Written(problem.student[0], problem.teacher[0], k=k)
    want.match(want.optimal())
    check(run(problem, backend, k=k), want, (1.0, 0.1, 0.1))


@backends
def test_rank_matching(backend: str, problem: object) -> None:
    want = Written(problem.student[0], problem.teacher[0])
    want.match(want.s_ranked[:K])
    check(run(problem, backend, matching="rank"), want, (1.0, 0.1, 0.1))


@backends
def test_token_level_sinkhorn(backend: str, problem: object) -> None:
    """A soft plan between the heaviest columns in place of the map."""
    want = Written(problem.student[0], problem.teacher[0])
    n = want.rows
    s, t = want.s[:, want.s_ranked[:K]], want.t[:, want.t_columns]
    log_s = log_softmax(problem.student[0], -1)[:, want.s_ranked[:K]]
    cost = np.abs(t[:n, :, None] - s[:n, None, :]).sum(0)
    coupling = K * literal_sinkhorn(cost, 0.1, 20)
    want.had = (coupling * cost).sum()
    want.sl = (coupling * -(t[:n, :, None] * log_s[:n, None, :]).sum(0)).sum()
    soft_s = np.exp(log_softmax(problem.student[0] / 2, -1))[:, want.s_ranked[:K]]
    soft_t = np.exp(log_softmax(problem.teacher[0] / 2, -1))[:, want.t_columns]
    want.sd = want.distance(soft_s @ coupling.T, soft_t)
    result = run(problem, backend, matching="sinkhorn")
    np.testing.assert_allclose(as_numpy(result.coupling), [coupling], rtol=1e-9, atol=1e-14)
    check(result, want, (1.0, 0.1, 0.1))


@backends
def test_soft_matching_hardens(backend: str, problem: object) -> None:
    """As the regularisation falls, the coupling becomes the optimal map among the heaviest columns."""
    soft = run(problem, backend, matching="sinkhorn", epsilon=1e-3, n_iter=5000)
    hard = run(problem, backend, matching="optimal", pool=K)
    assert (as_numpy(soft.coupling).max(-1) > 0.999).all()
    np.testing.assert_allclose(as_numpy(soft.had), as_numpy(hard.had), rtol=1e-3)


@backends
def test_logarithmic_costs(backend: str, problem: object) -> None:
    """Cost -t log s in the place of |t - s|, for the matching and for the sequence."""
    want = Written(problem.student[0], problem.teacher[0])
    n = want.rows
    log_s = log_softmax(problem.student[0], -1)
    cost = -(want.t[:n, want.t_columns][:, :, None] * log_s[:n][:, None, :]).sum(0)
    want.match(linear_sum_assignment(cost)[1])
    result = run(problem, backend, token_cost="log")
    check(result, want, (1.0, 0.1, 0.1))

    columns = as_numpy(result.student_columns)[0]
    z = problem.student[0] / 2
    soft_log_s = (z - logsumexp(z, axis=1, keepdims=True))[:, columns]
    soft_t = np.exp(log_softmax(problem.teacher[0] / 2, -1))[:, want.t_columns]
    cost = -(soft_t[:, None, :] * soft_log_s[None]).sum(-1)
    want.sd = 6 * (literal_sinkhorn(cost, 0.1, 20) * cost).sum()
    check(run(problem, backend, token_cost="log", sequence_cost="log"), want, (1.0, 0.1, 0.1))


@backends
def test_universal_logit_distillation(backend: str, problem: object) -> None:
    want = Written(problem.student[0], problem.teacher[0])
    s, t = (np.sort(x[: want.rows], axis=1)[:, ::-1] for x in (want.s, want.t))
    s = np.pad(s, ((0, 0), (0, t.shape[1] - s.shape[1])))
    result = mlot.uld(**problem.to(backend).arguments(), reduction="none")
    np.testing.assert_allclose(as_numpy(result), [np.abs(s - t).sum()], rtol=1e-10)


@backends
def test_exact_transport_in_place_of_sinkhorn(backend: str, problem: object) -> None:
    """The sequence level without entropy, from the building blocks."""
    p = problem.to(backend)
    student, teacher = mlot.select(p.student, k=K), mlot.select(p.teacher, k=K)
    cost = mlot.sequence_cost(student, teacher)
    exact = 6 * as_numpy(mlot.emd(cost).value)
    entropic = as_numpy(
        mlot.sinkhorn_distance(student, teacher, epsilon=0.02, n_iter=20000, tol=1e-9, reduction="none")
    )
    assert (exact <= entropic + 1e-7).all()
    np.testing.assert_allclose(entropic, exact, rtol=0.1)
