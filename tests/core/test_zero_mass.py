"""A teacher's probability of 0, also one that its type cannot hold, asks nothing of an impossible token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mlot

STUDENT = [[[0.0, 0.0, -np.inf]] * 6]
TEACHER = [[[0.0, -150.0, -200.0]] * 6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank"])
@pytest.mark.parametrize("head", [False, True])
def test_sl_is_finite_where_the_mass_underflows(matching: str, dtype: torch.dtype, head: bool) -> None:
    student = torch.tensor(STUDENT, dtype=dtype)
    if head:  # logits of minus infinity come from the bias
        bias = student[0, 0].clone().requires_grad_()
        source = mlot.LinearHead(torch.zeros(1, 6, 2, dtype=dtype), torch.zeros(3, 2, dtype=dtype), bias)
    else:
        source = bias = student.requires_grad_()
    config = mlot.MultiLevelOTConfig(k=3, matching=matching)
    result = mlot.multi_level_ot(source, torch.tensor(TEACHER, dtype=dtype), config=config)
    result.sl.backward()
    assert result.sl.item() == pytest.approx(np.log(2), rel=1e-2)
    assert bias.grad is not None
    assert torch.isfinite(bias.grad).all()


def test_zero_mass_of_saved_traces_asks_nothing() -> None:
    for dtype in (np.float32, np.float64):
        teacher = mlot.select(np.array([[[0.0, 0.0, -np.inf]]], dtype), k=3)
        student = mlot.select(np.array([[[0.0, 0.0, -np.inf]]], dtype), k=3)
        assert mlot.sl(student, teacher) == pytest.approx(np.log(2))
        ours = [traces.map(torch.from_numpy) for traces in (student, teacher)]
        assert mlot.sl(*ours).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("cost", [mlot.token_cost, mlot.sequence_cost])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_logarithmic_costs_of_the_impossible(cost: Any, backend: str) -> None:
    """Infinite where the teacher has any mass, however little, on what the student cannot say; else finite."""
    student = np.log([[[0.5, 0.3, 0.2], [0.6, 0.4, 1.0]]])
    student[0, 1, 2] = -np.inf
    teacher = np.log([[[0.8, 0.15, 0.05], [0.7, 0.2, 0.1]]])
    sure = np.array([[[0.0, 0.0, -np.inf], [0.0, 0.5, -np.inf]]])
    with np.errstate(invalid="ignore"):
        for logits in (teacher, sure):
            s, t = (mlot.select(x, k=3) for x in (student, logits))
            p, q = np.exp(t.log_probs[0]), s.log_probs[0]
            product = np.where(p[:, :, None, None] == 0, 0.0, p[:, :, None, None] * q)  # (i, l, j, m)
            if cost is mlot.token_cost:
                want = -np.einsum("ilim->lm", product)
            else:
                want = -np.einsum("iljl->ij", product)
            if backend == "torch":
                s, t = (traces.map(torch.from_numpy) for traces in (s, t))
            got = cost(s, t, "log", temperature=1.0)[0]
            np.testing.assert_allclose(np.asarray(got), want, rtol=1e-12, atol=1e-15)
            assert np.isfinite(want).any()
            assert np.isinf(want).any() or logits is sure
