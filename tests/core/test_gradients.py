"""Every gradient against finite differences in float64."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import mlot
import mlot.nn
from problems import make_problem, random_pairs

MATCHINGS = ("optimal", "greedy", "rank", "sinkhorn")


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).requires_grad_()


def mask(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape) < 0.75)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    ("temperature", "extra"), [(1.0, (2.0,)), (1.5, (3.0,)), (0.7, (2.0, 5.0)), (1.0, ())]
)
def test_select(standardize: bool, temperature: float, extra: tuple[float, ...]) -> None:
    valid = mask(0, 2, 4)

    def kept(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        traces = mlot.select(
            x, valid, k=5, temperature=temperature, extra_temperatures=extra, standardize=standardize
        )
        finite = traces.log_probs.masked_fill(~valid[..., None], 0)
        return (finite, traces.log_normalizers) if extra else (finite,)

    assert gradcheck(kept, (logits(1, 2, 4, 9),))


@pytest.mark.parametrize("settings", [{}, {"softcap": 2.0}, {"scale": 0.3, "softcap": 1.5}, {"scale": -1.2}])
@pytest.mark.parametrize("standardize", [False, True])
def test_select_from_a_linear_head(settings: dict, standardize: bool) -> None:
    valid = mask(0, 2, 4)

    def kept(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = mlot.LinearHead(h, w, b, **settings)
        traces = mlot.select(head, valid, k=5, standardize=standardize)
        return traces.log_probs.masked_fill(~valid[..., None], 0), traces.log_normalizers

    assert gradcheck(kept, (logits(1, 2, 4, 3), logits(2, 9, 3), logits(3, 9)))


@pytest.mark.parametrize("kind", ["l1", "log"])
@pytest.mark.parametrize("given_pairs", [False, True])
def test_costs(kind: str, given_pairs: bool) -> None:
    pairs = torch.from_numpy(random_pairs(np.random.default_rng(4), 2, 4, 5)) if given_pairs else None
    student_mask, teacher_mask = mask(5, 2, 4), mask(6, 2, 5)

    def costs(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        student = mlot.select(s, student_mask, k=4)
        teacher = mlot.select(t, teacher_mask, k=4)
        return (
            mlot.token_cost(student, teacher, kind, pairs=pairs),
            mlot.sequence_cost(student, teacher, kind),
        )

    assert gradcheck(costs, (logits(1, 2, 4, 7), logits(2, 2, 5, 8)))


@pytest.mark.parametrize("epsilon", [0.02, 0.1, 1.0])
@pytest.mark.parametrize(("n_iter", "tol"), [(1, None), (2, None), (20, None), (200, 1e-2)])
@pytest.mark.parametrize("uniform", [True, False])
def test_sinkhorn_through_every_round(epsilon: float, n_iter: int, tol: float | None, uniform: bool) -> None:
    """Plan and value after N rounds, by the cost and by both marginals: no envelope, no limit."""
    rng = np.random.default_rng(7)
    cost = torch.from_numpy(rng.uniform(0, 0.5, size=(2, 4, 3))).requires_grad_()
    a = torch.from_numpy(rng.dirichlet(np.ones(4), size=2)).requires_grad_()
    b = torch.from_numpy(rng.dirichlet(np.ones(3), size=2)).requires_grad_()

    def transport(c: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Weights are checked to have equal totals, so they are normalised after being moved.
        w = [x / x.sum(-1, keepdim=True) for x in weights]
        result = mlot.sinkhorn(c, *w, epsilon=epsilon, n_iter=n_iter, tol=tol)
        return result.plan, result.value

    assert gradcheck(transport, (cost,) if uniform else (cost, a, b), atol=1e-7)


def test_truncated_sinkhorn_gradient_is_not_that_of_the_limit() -> None:
    """The two differ where few rounds were done: what gradcheck passes above is no accident of convergence."""
    cost = torch.from_numpy(np.random.default_rng(0).uniform(0, 2, size=(6, 5))).requires_grad_()
    result = mlot.sinkhorn(cost, epsilon=0.1, n_iter=2)
    (exact,) = torch.autograd.grad(result.value, cost)
    assert float((exact - result.plan.detach()).abs().max()) > 0.05  # the envelope's gradient is the plan


def test_exact_transport_by_the_cost() -> None:
    cost = torch.from_numpy(np.random.default_rng(0).uniform(0, 2, size=(2, 4, 5))).requires_grad_()
    assert gradcheck(lambda c: mlot.emd(c).value, (cost,))


def test_divergences() -> None:
    student_mask, teacher_mask = mask(5, 2, 4), mask(6, 2, 5)

    def terms(s: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        student, teacher = mlot.select(s, student_mask, k=4), mlot.select(t, teacher_mask, k=4)
        return (
            mlot.had(student, teacher, reduction="none"),
            mlot.sl(student, teacher, reduction="none"),
            mlot.sinkhorn_distance(student, teacher, reduction="none"),
        )

    assert gradcheck(terms, (logits(1, 2, 4, 7), logits(2, 2, 5, 8)))


@pytest.mark.parametrize("widths", [(9, 6), (6, 9), (7, 7), (1, 4)])
def test_uld(widths: tuple[int, int]) -> None:
    student_mask, teacher_mask = mask(5, 2, 4), mask(6, 2, 5)

    def distance(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return mlot.uld(s, t, student_mask=student_mask, teacher_mask=teacher_mask, reduction="none")

    assert gradcheck(distance, (logits(1, 2, 4, widths[0]), logits(2, 2, 5, widths[1])))


def test_uld_from_a_linear_head() -> None:
    teacher = logits(4, 2, 5, 6).detach()

    def distance(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return mlot.uld(mlot.LinearHead(h, w, b, softcap=3.0), teacher, reduction="none")

    assert gradcheck(distance, (logits(1, 2, 4, 3), logits(2, 9, 3), logits(3, 9)))


@pytest.mark.slow
@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("sequence_cost", ["l1", "log"])
def test_whole_loss(matching: str, standardize: bool, sequence_cost: str) -> None:
    """By the logits of both models, with masks, unequal lengths and settings away from the defaults."""
    problem = make_problem(11, batch=2, t_s=4, t_t=5, v_s=7, v_t=9, spread=1.0, masks="gaps").to("torch")
    config = mlot.MultiLevelOTConfig(
        k=4,
        matching=matching,
        standardize=standardize,
        temperature=1.3,
        sequence_cost=sequence_cost,
        sl_weight=0.7,
        sd_weight=1.1,
        epsilon=0.3,
    )

    def loss(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        p = problem.with_(student=s, teacher=t)
        return mlot.multi_level_ot(**p.arguments(), config=config, reduction="mean").loss

    assert gradcheck(loss, (problem.student.requires_grad_(), problem.teacher.requires_grad_()))


def test_whole_loss_without_truncation() -> None:
    config = mlot.MultiLevelOTConfig(k=None, matching="rank")

    def loss(s: torch.Tensor) -> torch.Tensor:
        return mlot.multi_level_ot(s, logits(2, 2, 5, 9).detach(), config=config).loss

    assert gradcheck(loss, (logits(1, 2, 4, 7),))


def test_whole_loss_with_a_tolerance() -> None:
    config = mlot.MultiLevelOTConfig(k=4, tol=1e-2, n_iter=100, sd_weight=1.0)

    def loss(s: torch.Tensor) -> torch.Tensor:
        return mlot.multi_level_ot(s, logits(2, 2, 5, 9).detach(), config=config).loss

    assert gradcheck(loss, (logits(1, 2, 4, 7),))


@pytest.mark.parametrize(
    "criterion", [mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=4)), mlot.nn.ULDLoss()]
)
@pytest.mark.parametrize("head", [False, True])
def test_modules(criterion: torch.nn.Module, head: bool) -> None:
    labels = torch.tensor([[-100, 3, 2, -100], [1, 0, -100, 4]])
    teacher_labels = torch.tensor([[-100, 3, 2, 8, 1], [1, 0, 5, 4, -100]])
    teacher = logits(4, 2, 5, 9).detach()

    def from_logits(s: torch.Tensor) -> torch.Tensor:
        return criterion(s, teacher, labels, teacher_labels)

    def from_head(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return criterion(mlot.LinearHead(h, w), teacher, labels, teacher_labels)

    if head:
        assert gradcheck(from_head, (logits(1, 2, 4, 3), logits(2, 7, 3)))
    else:
        assert gradcheck(from_logits, (logits(1, 2, 4, 7),))


def test_second_derivatives_are_refused() -> None:
    """They would be wrong, so they are an error, not a number."""
    student = logits(1, 1, 4, 7)
    result = mlot.multi_level_ot(student, logits(2, 1, 5, 9).detach())
    (gradient,) = torch.autograd.grad(result.loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
