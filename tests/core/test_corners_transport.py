"""Corners of transport: sequences that stop alone, costs that are infinite, weights with a gradient of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mlot
from problems import BACKENDS, as_numpy


def weights(n: int, generator: torch.Generator) -> torch.Tensor:
    a = 0.1 + torch.rand(2, n, generator=generator, dtype=torch.float64)
    return a / a.sum(1, keepdim=True)


def functional(result: Any) -> torch.Tensor:
    return result.value.sum() + (result.plan[:, :, 1].square().sum() if result.plan.dim() == 3 else 0)


@pytest.mark.parametrize("epsilon", [0.5, 0.004])
def test_gradients_of_sequences_that_stop_at_different_rounds(epsilon: float) -> None:
    """With a tolerance each has the gradient of as many rounds as it went, whatever the other one does."""
    g = torch.Generator().manual_seed(1)
    cost = torch.rand(2, 4, 5, generator=g, dtype=torch.float64)
    cost[0] *= epsilon / 10  # close to a product of its marginals, so that few rounds are enough
    given = [cost, weights(4, g), weights(5, g)]
    leaves = [x.clone().requires_grad_() for x in given]
    together = mlot.sinkhorn(*leaves, epsilon=epsilon, tol=1e-3, n_iter=60)
    rounds = together.n_iter.tolist()
    assert rounds[0] < rounds[1]
    got = torch.autograd.grad(functional(together), leaves)
    for n, count in enumerate(rounds):
        alone = [x[n : n + 1].clone().requires_grad_() for x in given]
        result = mlot.sinkhorn(*alone, epsilon=epsilon, n_iter=count)
        for one, other in zip(torch.autograd.grad(functional(result), alone), got, strict=True):
            torch.testing.assert_close(other[n : n + 1], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.5, 0.004])
@pytest.mark.parametrize("place", range(3))
def test_gradients_of_one_argument_alone(place: int, epsilon: float) -> None:
    g = torch.Generator().manual_seed(2)
    given = [torch.rand(2, 4, 5, generator=g, dtype=torch.float64), weights(4, g), weights(5, g)]
    all_of_them = [x.clone().requires_grad_() for x in given]
    one = [x.clone().requires_grad_(n == place) for n, x in enumerate(given)]
    want = torch.autograd.grad(functional(mlot.sinkhorn(*all_of_them, epsilon=epsilon)), all_of_them)[place]
    got = torch.autograd.grad(functional(mlot.sinkhorn(*one, epsilon=epsilon)), one[place])[0]
    torch.testing.assert_close(got, want)


def test_the_gradient_beside_an_infinite_cost_is_that_beside_a_prohibitive_one() -> None:
    g = torch.Generator().manual_seed(3)
    cost, a, b = torch.rand(1, 4, 5, generator=g, dtype=torch.float64), *(weights(n, g)[:1] for n in (4, 5))
    gradients = []
    for dear in (torch.inf, 1e3):
        leaves = [x.clone() for x in (cost, a, b)]
        leaves[0][0, 1, 2] = dear
        leaves = [x.requires_grad_() for x in leaves]
        gradients.append(torch.autograd.grad(functional(mlot.sinkhorn(*leaves, epsilon=0.1)), leaves))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solver", ["emd", "sinkhorn"])
def test_a_sequence_without_a_weight_has_an_empty_plan(backend: str, solver: str) -> None:
    """As the marginals of a sequence without a valid position are; the others are as they are alone."""
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    cost = rng.uniform(size=(2, 3, 4))
    masks = np.ones((2, 3), dtype=bool), np.ones((2, 4), dtype=bool)
    masks[0][0] = False
    xp = mlot.get_backend(backend)
    cost, of_teacher, of_student = (x if backend == "numpy" else torch.from_numpy(x) for x in (cost, *masks))
    a, b = xp.marginals(of_student, of_teacher, cost)
    settings: dict[str, Any] = (
        {} if solver == "emd" else {"epsilon": 0.1, "n_iter": 5, "tol": None, "cost_bound": None}
    )
    result = getattr(xp, solver)(cost, a, b, **settings)
    plan = as_numpy(result.plan)
    assert (plan[0] == 0).all()
    assert as_numpy(result.value)[0] == as_numpy(result.marginal_error)[0] == 0
    np.testing.assert_array_equal(as_numpy(result.n_iter), [0, 0 if solver == "emd" else 5])
    np.testing.assert_allclose(plan[1].sum(0), 0.25, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["optimal", "greedy", "rank"])
@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0), (2, 1, 1)])
def test_matchings_of_nothing_and_of_one(backend: str, method: str, shape: tuple[int, int, int]) -> None:
    cost = np.zeros(shape) if backend == "numpy" else torch.zeros(shape, dtype=torch.float64)
    columns = as_numpy(mlot.get_backend(backend).assign(cost, method=method))
    np.testing.assert_array_equal(columns, np.broadcast_to(np.arange(shape[1]), shape[:2]))
