"""The default supposition about what is not listed, held against what a language model predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mlot
from problems import BACKENDS, as_numpy

RECORDED = np.load(Path(__file__).parent / "golden" / "predictions.npz")
WIDTH = int(RECORDED["vocab_size"])
MASK = np.ones(RECORDED["ids"].shape[:2], bool)
CONFIG = mlot.MultiLevelOTConfig(matching="rank")


def whole() -> mlot.Traces:
    """Traces of the whole predictions."""
    names = ("columns", "traces", "normalizers", "mass")
    columns, log_probs, normalizers, mass = (RECORDED[name] for name in names)
    return mlot.Traces(columns, log_probs, normalizers, mass, MASK, WIDTH, 1.0, (2.0,))


def listed(k: int, **settings: object) -> mlot.TopKLogprobs:
    return mlot.TopKLogprobs(RECORDED["ids"][:, :, :k], RECORDED["logprobs"][:, :, :k], **settings)


def students() -> dict[str, np.ndarray | mlot.Traces]:
    """One that knows nothing, and one that predicts as the teacher does elsewhere."""
    rng = np.random.default_rng(0)
    return {
        "untrained": 2 * rng.normal(size=(*MASK.shape, 2000)),
        "elsewhere": mlot.Traces(
            *(np.roll(x, 1, axis=0) for x in (whole().columns, whole().log_probs)),
            *(np.roll(x, 1, axis=0) for x in (whole().log_normalizers, whole().column_mass)),
            MASK,
            WIDTH,
            1.0,
            (2.0,),
        ),
    }


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("k", [5, 20, 100])
@pytest.mark.parametrize("student", ["untrained", "elsewhere"])
def test_fitted_tail_on_a_real_teacher(student: str, k: int, known: bool) -> None:
    """SD is near that of the whole teacher; with the least possible tail it is not."""
    given, width = students()[student], WIDTH if known else None
    want, got, least = (
        mlot.multi_level_ot(given, teacher, config=CONFIG).sd
        for teacher in (whole(), listed(k, vocab_size=width), listed(k, vocab_size=width, tail="zero"))
    )
    assert abs(got - want) <= 0.1 * want  # measured: at most 9 %
    assert least > 1.2 * want


@pytest.mark.parametrize("temperature", [0.5, 1.5, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_it_is_among_what_is_possible(k: int, temperature: float) -> None:
    source = listed(k, vocab_size=WIDTH)
    low, high = source.probability_bounds(temperature)
    traces = mlot.select(source, k=WIDTH, temperature=temperature)
    place = np.argsort(traces.columns, axis=1)
    for n in range(len(MASK)):
        probs = np.exp(traces.log_probs[n])
        got = np.take_along_axis(probs, place[n][source.ids[n]], axis=1)
        assert (got >= low[n] - 1e-9).all()
        assert (got <= high[n] + 1e-9).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tail_that_is_a_power_of_the_rank_is_found_again(backend: str) -> None:
    """Zipf's law itself: the sums at other temperatures are those of the law, up to sums being integrals."""
    for exponent, k in ((0.7, 3), (1.0, 20), (1.0, 50), (1.8, 20), (3.0, 5)):
        logs = -exponent * np.log(np.arange(1, 20_001))
        logs -= np.logaddexp.reduce(logs)
        arrays = np.arange(k)[None, None], logs[None, None, :k]
        if backend == "torch":
            arrays = tuple(map(torch.from_numpy, arrays))
        source = mlot.TopKLogprobs(*arrays, 20_000)
        for temperature in (0.7, 2.0, 3.0):
            got = as_numpy(mlot.select(source, k=k, temperature=temperature).log_probs)[0, 0]
            want = logs / temperature - np.logaddexp.reduce(logs / temperature)
            np.testing.assert_allclose(got, want[:k], atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tails_at_the_ends_of_what_is_possible(backend: str) -> None:
    """Flat, nothing but rounding, a mass far below the least kept, one token listed, more than 65,536."""
    for probs, width in (
        ([0.2, 0.2], 5),
        ([0.5, 0.5 - 1e-6], 100_000),
        ([0.5, 0.4999], 100_000),
        ([1e-5], 100_000),
        ([0.9], 2),
        ([2e-5] * 3, None),
        ([1e-6] * 70_000, None),
        ([1.0], None),
    ):
        arrays = np.arange(len(probs))[None, None], np.log([[probs]])
        if backend == "torch":
            arrays = tuple(map(torch.from_numpy, arrays))
        source = mlot.TopKLogprobs(*arrays, width)
        for temperature in (0.5, 2.0):
            low, high = source.probability_bounds(temperature)
            got = np.exp(as_numpy(mlot.select(source, k=len(probs), temperature=temperature).log_probs)[0, 0])
            assert np.isfinite(got).all()
            assert (got <= high[0, 0].max() * (1 + 1e-9)).all()
            if width is not None or temperature < 1:
                assert (got >= low[0, 0].min() * (1 - 1e-9)).all()
