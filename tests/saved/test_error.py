"""What storing in a narrow type changes in the loss: the reported bounds hold, and are not idle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlot
from mlot.saved import storage_error
from saved_cases import cases, in_dtype, manifest, save, select, together

#: What computing the bound and the terms in float64 may add.
ROUNDING = 1e-12


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["float16", "float32"]),
    matching=st.sampled_from(["optimal", "rank"]),
    spread=st.sampled_from([0.5, 3.0, 30.0]),
    vocabulary=st.sampled_from([3, 12, 40]),
)
def test_bounds_hold_whatever_the_student(
    seed: int, dtype: str, matching: str, spread: float, vocabulary: int
) -> None:
    rng = np.random.default_rng(seed)
    k = min(6, vocabulary)
    teacher = spread * rng.normal(size=(2, 7, vocabulary))
    student = spread * rng.normal(size=(2, 6, vocabulary))
    mask = rng.random((2, 7)) < 0.8
    exact = mlot.select(teacher, mask, k=k)
    error = storage_error(exact, dtype)
    stored = in_dtype(exact, dtype)
    wrong = np.abs(np.exp(stored.log_probs.astype(float)) - np.exp(exact.log_probs))[mask]
    assert error.probability_max == wrong.max(initial=0)
    assert error.had_mean <= error.had_max
    config = mlot.MultiLevelOTConfig(k=k, pool=vocabulary, matching=matching)
    one, two = (
        mlot.multi_level_ot(student, each, config=config, reduction="none") for each in (exact, stored)
    )
    pairs = np.minimum(mask.sum(1), 6)
    assert (np.abs(one.had - two.had) <= pairs * error.had_max + ROUNDING).all()
    if (one.student_columns == two.student_columns).all():
        assert (np.abs(one.sl - two.sl) <= error.sl_relative * one.sl + ROUNDING * (1 + one.sl)).all()
    # The cost of transport, and the value of exact transport, on columns that are matched already.
    narrow = mlot.select(student, k=k)
    costs = [mlot.sequence_cost(narrow, each, temperature=2.0) for each in (exact, stored)]
    assert np.abs(costs[0] - costs[1]).max() <= error.cost_max + ROUNDING
    for n in range(2):
        if mask[n].any():
            values = [mlot.emd(cost[n][mask[n]]).value for cost in costs]  # of unit mass
            alone = storage_error(exact.map(lambda array, n=n: array[n : n + 1]), dtype)
            assert abs(values[0] - values[1]) <= alone.cost_mean + ROUNDING


def test_figures_of_a_whole_set_are_those_of_its_parts(tmp_path: Path) -> None:
    examples = cases(9)
    logits, mask, _ = together(examples)
    want = storage_error(select(logits, mask, manifest()), "float16")
    for per_shard in (1, 4, 100):
        saved = save(examples, tmp_path / str(per_shard), per_shard=per_shard)
        got = saved.storage_error
        assert (
            (got.positions, got.dtype, got.k) == (want.positions, "float16", 6) == (mask.sum(), "float16", 6)
        )
        for name, value in want.as_dict().items():
            if isinstance(value, float):
                assert getattr(got, name) == pytest.approx(value, rel=1e-12), name
        assert got.probability_mean == pytest.approx(want.had_mean / 6)


def test_what_is_kept() -> None:
    logits, mask, _ = together(cases(5))
    whole = mlot.select(logits, mask, k=40)
    assert storage_error(whole, "float32").kept_mass == pytest.approx(1)
    few = mlot.select(logits, mask, k=6)
    share = few.column_mass.sum() / mask.sum()
    assert storage_error(few, "float16").kept_mass == pytest.approx(share)


def test_the_type_of_the_selection_loses_nothing() -> None:
    logits, mask, _ = together(cases(5))
    for traces, dtype in (
        (mlot.select(logits, mask, k=6), "float64"),
        (mlot.select(torch.from_numpy(logits).float(), torch.from_numpy(mask), k=6), "float32"),
    ):
        error = storage_error(traces, dtype)
        assert error.probability_max == error.had_max == error.sl_relative == error.cost_max == 0
        assert storage_error(traces, "float16").had_max > 0


def test_halves_keep_three_digits() -> None:
    """A log-probability in float16 is off by at most 2^-12 of itself: what that does to probabilities is small."""
    rng = np.random.default_rng(0)
    traces = mlot.select(4 * rng.normal(size=(4, 64, 500)), k=50)
    error = storage_error(traces, "float16")
    assert error.probability_max < 2.0**-11 / np.e + 1e-6  # |log p| p is at most 1/e
    assert error.had_max < 1e-3


def test_probabilities_too_small_for_the_type(tmp_path: Path) -> None:
    """Below the smallest float16 they are stored as zero, which they are in float64, too."""
    logits = np.zeros((1, 3, 8))
    logits[:, :, 0] = 1e6
    traces = mlot.select(logits, k=8)
    error = storage_error(traces, "float16")
    assert error.had_max == error.sl_relative == 0
    examples = [replace(cases(1)[0], ids=np.arange(3), mask=np.ones(3, bool), logits=logits[0])]
    saved = save(examples, tmp_path / "t", manifest(vocab_size=8, k=8))
    student = np.random.default_rng(0).normal(size=(1, 3, 8))
    result = mlot.multi_level_ot(student, saved.batch([0]), config=mlot.MultiLevelOTConfig(k=8))
    want = mlot.multi_level_ot(student, logits, config=mlot.MultiLevelOTConfig(k=8))
    assert np.isfinite(result.loss)
    np.testing.assert_allclose(result.loss, want.loss, rtol=1e-6)


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match="^traces: expected Traces"):
        storage_error(np.zeros((1, 2, 3)), "float16")
    with pytest.raises(ValueError, match="^dtype: expected one of"):
        storage_error(mlot.select(np.zeros((1, 2, 3)), k=2), "int8")
