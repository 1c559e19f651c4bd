r"""Three gradients of the value of Sinkhorn after N rounds, and central differences to judge them by.

The value is :math:`\langle P_N, C \rangle`, with uniform weights; all in float64.
"""

from __future__ import annotations

import numpy as np
import torch

import mlot


def exact_gradient(cost: np.ndarray, epsilon: float, n_iter: int) -> np.ndarray:
    """Reverse mode through every round: what `mlot.sinkhorn` returns to autograd."""
    leaf = torch.from_numpy(cost).requires_grad_()
    mlot.sinkhorn(leaf, epsilon=epsilon, n_iter=n_iter).value.backward()
    assert leaf.grad is not None
    return leaf.grad.numpy()


def plan_gradient(cost: np.ndarray, epsilon: float, n_iter: int) -> np.ndarray:
    """The plan as a constant: the envelope gradient, which belongs to the regularised optimum."""
    return mlot.sinkhorn(cost, epsilon=epsilon, n_iter=n_iter).plan


def implicit_gradient(cost: np.ndarray, epsilon: float, n_iter: int) -> np.ndarray:
    """The gradient of the limit by the implicit function theorem, evaluated at the plan after N rounds."""
    plan = mlot.sinkhorn(cost, epsilon=epsilon, n_iter=n_iter).plan
    rows = len(plan)
    system = np.block([[np.diag(plan.sum(1)), plan], [plan.T, np.diag(plan.sum(0))]])
    spent = plan * cost
    solution = np.linalg.lstsq(system, np.concatenate([spent.sum(1), spent.sum(0)]), rcond=None)[0]
    x, y = solution[:rows, None], solution[None, rows:]
    return plan * (1 + (x + y - cost) / epsilon)


def finite_differences(cost: np.ndarray, epsilon: float, n_iter: int, step: float = 1e-5) -> np.ndarray:
    """Central differences of the value, entry by entry."""
    moves = step * np.eye(cost.size).reshape(-1, *cost.shape)
    both = torch.from_numpy(np.concatenate([cost + moves, cost - moves]))
    values = mlot.sinkhorn(both, epsilon=epsilon, n_iter=n_iter).value.numpy()
    up, down = np.split(values, 2)
    return ((up - down) / (2 * step)).reshape(cost.shape)
