"""Corners of what teachers say: tails with a closed form, masked positions, no mass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mlot
from problems import BACKENDS, as_numpy
from text_cases import greedy, made, problem_of


def served(backend: str, ids: np.ndarray, logs: np.ndarray, *settings: object) -> mlot.TopKLogprobs:
    source = mlot.TopKLogprobs(ids, logs, *settings)
    return source if backend == "numpy" else source.map(torch.from_numpy)


def falling(exponent: float, kept: int, absent: int) -> float:
    """Integral over x of (x / kept) ** -exponent, from kept + 1/2 to kept + absent + 1/2."""
    low, high = (kept + 0.5) / kept, (kept + absent + 0.5) / kept
    if abs(exponent - 1) < 1e-9:
        return float(kept * np.log(high / low))
    return float(
        kept * low ** (1 - exponent) * np.expm1((1 - exponent) * np.log(high / low)) / (1 - exponent)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exponent", [0.2, 0.9, 0.99999, 1.0, 1.00001, 1.3, 2.0])
@pytest.mark.parametrize("kept, absent", [(3, 500), (20, 30_000)])
def test_the_fitted_tail_is_the_power_that_has_the_missing_mass(
    backend: str, exponent: float, kept: int, absent: int
) -> None:
    """As many tokens as are kept, all as likely; below them the power law, whose sums are known."""
    each = 1 / (kept + falling(exponent, kept, absent))
    ids, logs = np.arange(kept)[None, None], np.full((1, 1, kept), np.log(each))
    source = served(backend, ids, logs, kept + absent, "fitted")
    for temperature in (0.8, 1.25, 2.0):
        ratio = 1 / temperature
        total = each**ratio * (kept + falling(ratio * exponent, kept, absent))
        got = as_numpy(mlot.select(source, k=1, temperature=temperature).log_probs)[0, 0, 0]
        assert got == pytest.approx(ratio * np.log(each) - np.log(total), rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_a_uniform_tail_of_one_absent_token(backend: str, temperature: float) -> None:
    source = served(backend, np.array([[[0, 2]]]), np.log([[[0.5, 0.3]]]), 3, "uniform")
    probs = np.exp(as_numpy(mlot.select(source, k=3, temperature=temperature).log_probs))[0, 0]
    powers = np.array([0.5, 0.3, 0.2]) ** (1 / temperature)
    np.testing.assert_allclose(probs, powers / powers.sum(), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_positions_have_log_probabilities_of_minus_infinity(backend: str) -> None:
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 4, 6)), rng.random((2, 4)) < 0.5
    ids = np.argsort(-logits, axis=2)[..., :3]
    logs = np.take_along_axis(logits - np.logaddexp.reduce(logits, axis=2, keepdims=True), ids, 2)
    xp = mlot.get_backend(backend)
    to = (lambda x: x) if backend == "numpy" else torch.from_numpy
    settings = {"k": 3, "temperature": 1.3, "extra_temperatures": (2.0,)}
    for tail in ("fitted", "uniform"):
        traces = xp.select_sparse(served(backend, ids, logs, 6, tail), to(mask), **settings)
        assert (as_numpy(traces.log_probs)[~mask] == -np.inf).all()
        assert (as_numpy(traces.log_normalizers)[~mask] == 0).all()
    traces = xp.select(to(logits), to(mask), standardize=False, **settings)
    taken = xp.take(
        to(logits), traces.columns, to(mask), temperature=1.3, extra_temperatures=(2.0,), standardize=False
    )
    for each in (traces, taken):
        assert (as_numpy(each.log_probs)[~mask] == -np.inf).all()
        assert (as_numpy(each.log_normalizers)[~mask] == 0).all()
        assert (as_numpy(each.log_probs)[mask] <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_mass_are_not_listed(backend: str) -> None:
    mine = [b"a", None, b"b", b"zz"]
    targets = made(problem_of(mine, [b"a", None, b"b", b"ab"], [3, 0], greedy(mine), 1), backend, k=4)
    here = targets.served[0] > 0
    listed = targets.ids[0][here]
    assert here.any()
    assert not (listed == 3).any()
    np.testing.assert_array_equal(listed < 0, np.isneginf(targets.log_probs[0][here]))
    assert (targets.rest[0][here] == 0).all()
