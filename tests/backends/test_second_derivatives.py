"""A second derivative is refused in every operation, also where the incoming gradient is a constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mlot
import mlot.nn
from mlot.backends.torch.ops import log_probs_at

TEACHER = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1))
CONFIG = mlot.MultiLevelOTConfig(k=5)
MASK = torch.ones(1, 5, dtype=torch.bool)


def loss_with(**settings: object) -> Callable[[Tensor], Tensor]:
    config = mlot.MultiLevelOTConfig(k=5, **settings)  # type: ignore[arg-type]
    return lambda s: mlot.multi_level_ot(s, TEACHER, config=config).loss


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": loss_with(),
    "had": loss_with(sl_weight=0.0, sd_weight=0.0),
    "sl": loss_with(had_weight=0.0, sd_weight=0.0),
    "sd": loss_with(had_weight=0.0, sl_weight=0.0),
    "soft": loss_with(matching="sinkhorn"),
    "uld": lambda s: mlot.uld(s, TEACHER),
    "select": lambda s: mlot.select(s, k=4).log_probs.sum(),
    "normalizers": lambda s: mlot.select(s, k=4).log_normalizers.sum(),
    "listed": lambda s: log_probs_at(s, torch.zeros(1, 5, 1, dtype=torch.long), MASK, 1.0).sum(),
    "cross_entropy": lambda s: mlot.nn.MultiLevelOTLoss(CONFIG, alpha=0.0)(
        s, TEACHER, torch.ones(1, 5, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)
    ),
    "sinkhorn": lambda s: mlot.sinkhorn(s[:, :4, :5].abs()).value.sum(),
    "emd_cost": lambda s: mlot.sequence_cost(mlot.select(s, k=3), mlot.select(TEACHER, k=3)).sum(),
}


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_second_derivative_is_refused(name: str, head: bool) -> None:
    operation = OPERATIONS[name]
    if head and name == "sinkhorn":
        pytest.skip("takes a cost, not a source")
    s = torch.randn(1, 5, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    source = mlot.LinearHead(s, torch.eye(9)) if head else s
    value = operation(source)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(value, s, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (value + 100 * gradient.pow(2).sum()).backward()


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_a_first_derivative_is_not(name: str) -> None:
    s = torch.randn(1, 5, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (plain,) = torch.autograd.grad(OPERATIONS[name](s), s)
    (graphed,) = torch.autograd.grad(OPERATIONS[name](s), s, create_graph=True)
    torch.testing.assert_close(plain, graphed.detach())


@pytest.mark.parametrize("kind", ["l1", "log"])
@pytest.mark.parametrize("cost", [mlot.token_cost, mlot.sequence_cost])
def test_costs_of_traces_alone(cost: Callable[..., Tensor], kind: str) -> None:
    """Refused where a cost is not twice differentiable, right where it is: no part is dropped."""
    student, teacher = mlot.select(torch.randn(1, 4, 9).double(), k=4), mlot.select(TEACHER.double(), k=4)

    def penalised(log_probs: Tensor) -> Tensor:
        value = cost(replace(student, log_probs=log_probs), teacher, kind, temperature=1.0).square().sum()
        (gradient,) = torch.autograd.grad(value, log_probs, create_graph=True)
        return value + gradient.square().sum()

    leaf = student.log_probs.clone().requires_grad_()
    if kind == "l1":
        with pytest.raises(RuntimeError, match="once_differentiable"):
            penalised(leaf).backward()
    else:
        assert torch.autograd.gradcheck(penalised, (leaf,))
