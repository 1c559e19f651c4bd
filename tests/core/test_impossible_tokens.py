"""Standardised logits of which some are minus infinity: as if the vocabulary did not have those tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

import mlot
from mlot.backends.torch.standardize import moments
from problems import TERMS, Problem, as_numpy, assert_close, make_problem

#: With a pool of k, no impossible token is a candidate of the matching (which may take one otherwise: SL infinite).
CONFIG = mlot.MultiLevelOTConfig(k=4, pool=4, standardize=True, sl_weight=1.0, sd_weight=1.0)
#: Columns of 7 that no position may have, of student and teacher.
BANNED = [1, 5]
LEFT = [0, 2, 3, 4, 6]


def _problem(seed: int) -> tuple[Problem, Problem]:
    """A problem with banned columns, and the same without them."""
    whole = make_problem(seed, batch=2, t_s=4, t_t=5, v_s=7, v_t=7, masks="gaps")
    sides = {"student": whole.student[..., LEFT], "teacher": whole.teacher[..., LEFT]}
    for logits in (whole.student, whole.teacher):
        logits[..., BANNED] = -np.inf
    return whole, whole.with_(**sides)


def _scattered(seed: int) -> Problem:
    """A problem in which each position bans other tokens, but never all."""
    rng = np.random.default_rng(seed)
    whole = make_problem(seed, batch=2, t_s=4, t_t=5, v_s=9, v_t=8, masks="right")
    for logits in (whole.student, whole.teacher):
        logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.4] = -np.inf
    return whole


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank", "sinkhorn"])
@given(seed=st.integers(0, 2**32 - 1))
def test_banned_tokens_are_as_if_there_were_none(backend: str, matching: str, seed: int) -> None:
    whole, without = (p.to(backend) for p in _problem(seed))
    config = dataclasses.replace(CONFIG, matching=matching)
    got = mlot.multi_level_ot(**whole.arguments(), config=config)
    want = mlot.multi_level_ot(**without.arguments(), config=config)
    for term in TERMS:
        assert np.isfinite(as_numpy(getattr(got, term)))
        assert_close(getattr(got, term), getattr(want, term), 1e-9, 1e-12, term)


@given(seed=st.integers(0, 2**32 - 1))
def test_both_backends_agree(seed: int) -> None:
    problem = _scattered(seed)
    for source in (problem.student, problem.teacher):
        settings = {"k": 8, "standardize": True, "extra_temperatures": (2.0, 0.7)}
        want = mlot.select(source, **settings)
        for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 2e-4), (torch.bfloat16, 0.2)):
            got = mlot.select(torch.from_numpy(source).to(dtype), **settings)
            assert np.isfinite(as_numpy(got.column_mass)).all()
            assert_close(got.column_mass, want.column_mass, rtol, rtol, f"mass, {dtype}")
        impossible = np.isneginf(np.take_along_axis(source, want.columns[:, None, :], axis=2))
        assert (np.isneginf(want.log_probs) == impossible).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient(temperature: float) -> None:
    """By finite differences of what is possible; exactly 0 by what is not."""
    logits = torch.from_numpy(_scattered(3).student)
    possible = ~logits.isneginf()
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=(*logits.shape[:2], 3)))

    def kept(values: torch.Tensor) -> torch.Tensor:
        filled = torch.full_like(logits, -torch.inf).masked_scatter(possible, values)
        traces = mlot.select(
            filled, k=9, standardize=True, temperature=temperature, extra_temperatures=(2 * temperature, 3.0)
        )
        probs = torch.cat([traces.at(t).exp() for t in (temperature, 2 * temperature, 3.0)], -1)
        return probs.square().sum() + (weights[..., 1:] * traces.log_normalizers).sum()

    assert gradcheck(kept, (logits[possible].requires_grad_(),))
    leaf = logits.clone().requires_grad_()
    mlot.select(leaf, k=9, standardize=True).log_probs.masked_fill(~possible, 0).sum().backward()
    traces = mlot.select(leaf, k=9, standardize=True)
    leaf.grad = None
    traces.log_probs.exp().square().sum().backward()
    assert not leaf.grad[~possible].any()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_heads_whose_bias_bans_tokens(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 4, 3, generator=g).to(dtype), torch.randn(7, 3, generator=g).to(dtype)
    bias = torch.zeros(7, dtype=dtype)
    bias[BANNED] = -torch.inf
    teacher = torch.randn(2, 4, 6, generator=g).to(dtype)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    result = mlot.multi_level_ot(mlot.LinearHead(*leaves), teacher, config=CONFIG)
    result.loss.backward()
    fewer = [x.clone().requires_grad_() for x in (hidden, weight[LEFT])]
    want = mlot.multi_level_ot(mlot.LinearHead(*fewer), teacher, config=CONFIG)
    want.loss.backward()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype != torch.bfloat16 else {"rtol": 0.05, "atol": 1e-2}
    torch.testing.assert_close(result.loss, want.loss, **tolerance)
    torch.testing.assert_close(leaves[0].grad, fewer[0].grad, **tolerance)
    torch.testing.assert_close(leaves[1].grad[LEFT], fewer[1].grad, **tolerance)
    assert not leaves[1].grad[BANNED].any()
    assert not leaves[2].grad[BANNED].any()


@pytest.mark.parametrize("width", [1, 5])
def test_one_token_left_is_certain(width: int) -> None:
    logits = np.full((1, 2, width), -np.inf)
    logits[..., width // 2] = 3.0
    for source in (logits, torch.from_numpy(logits).requires_grad_()):
        traces = mlot.select(source, k=1, standardize=True)
        assert as_numpy(traces.columns).item() == width // 2
        assert not as_numpy(traces.log_probs).any()
    traces.log_probs.sum().backward()
    assert not source.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_left_is_as_without_standardising(dtype: torch.dtype) -> None:
    """No number, in every place where there is none without it."""
    logits = np.random.default_rng(0).normal(size=(1, 3, 4))
    logits[0, 1] = -np.inf
    for backend in ("numpy", "torch"):
        outcomes = []
        for standardize in (False, True):
            source = logits if backend == "numpy" else torch.from_numpy(logits).to(dtype).requires_grad_()
            with np.errstate(invalid="ignore"):
                traces = mlot.select(source, k=2, standardize=standardize)
            outcomes.append([np.isnan(as_numpy(traces.log_probs))])
            if backend == "torch":
                traces.log_probs.sum().backward()
                outcomes[-1].append(np.isnan(as_numpy(source.grad)))
        for plain, standardized in zip(*outcomes, strict=True):
            assert plain.any()
            assert (plain == standardized).all()


def test_equal_logits_have_no_deviation() -> None:
    """Where all are equal the derivative of the deviation is taken as 0, and nothing is divided by it."""
    logits = torch.full((1, 2, 5), 3.0, dtype=torch.float64)
    logits[0, 1, 2:] = -torch.inf
    leaf = logits.clone().requires_grad_()
    traces = mlot.select(leaf, k=5, standardize=True)
    traces.log_probs[0, 0, 1].add(traces.log_probs[0, 1, 0]).backward()
    want = (
        torch.tensor([[-0.2, 0.8, -0.2, -0.2, -0.2], [0.5, -0.5, 0.0, 0.0, 0.0]], dtype=torch.float64) / 1e-4
    )
    torch.testing.assert_close(leaf.grad[0], want)


def test_moments_of_what_is_possible() -> None:
    """Also of rows, or parts of rows that several processes share, with one possible token, or none."""
    logits = torch.tensor(
        [[1.0, 2.0, 6.0], [1.0, -torch.inf, 5.0], [-torch.inf, 4.0, -torch.inf], [-torch.inf] * 3]
    )
    mean, squares, count = (each.squeeze(-1) for each in moments(logits))
    assert mean.tolist() == [3.0, 3.0, 4.0, 0.0]
    assert squares.tolist() == [14.0, 8.0, 0.0, 0.0]
    assert count.tolist() == [3.0, 2.0, 1.0, 0.0]


def test_gradient_of_two_possible_tokens() -> None:
    """The least number that has a deviation."""
    filled = torch.full((1, 1, 4), -torch.inf, dtype=torch.float64)

    def first(values: torch.Tensor) -> torch.Tensor:
        logits = torch.cat([values[None, None], filled[..., 2:]], -1)
        return mlot.select(logits, k=2, standardize=True, extra_temperatures=(3.0,)).at(3.0)[..., 1]

    assert gradcheck(first, (torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True),))
