"""What is no number, infinite, or too small: one rule for both backends and both solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mlot
import mlot.nn

CONVERTERS = pytest.mark.parametrize("convert", [np.asarray, torch.tensor], ids=["numpy", "torch"])
SOLVERS = pytest.mark.parametrize("solve", [mlot.emd, mlot.sinkhorn], ids=["emd", "sinkhorn"])
Convert = Callable[[Any], Any]


@CONVERTERS
@SOLVERS
def test_a_cost_that_is_no_number_has_no_value(convert: Convert, solve: Any) -> None:
    result = solve(convert([[[0.0, np.nan], [0.2, 0.3]], [[0.0, 1.0], [1.0, 0.0]]]))
    values = np.asarray(result.value)
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(0, abs=1e-3)


@CONVERTERS
@SOLVERS
def test_an_infinite_cost_takes_no_mass_where_it_need_not(convert: Convert, solve: Any) -> None:
    result = solve(convert([[[0.0, np.inf], [0.2, 0.3]]]))
    assert np.asarray(result.plan)[0, 0, 1] == 0
    assert float(result.value[0]) == pytest.approx(0.15, abs=0.01)


@CONVERTERS
def test_exact_transport_over_infinite_costs_alone_is_infinite(convert: Convert) -> None:
    assert np.isinf(float(mlot.emd(convert([[[np.inf, np.inf], [0.0, 0.0]]])).value[0]))


@CONVERTERS
def test_too_small_to_divide_by(convert: Convert) -> None:
    cost, logits = convert([[[0.0, 1.0], [1.0, 0.0]]]), convert([[[0.0, 1.0], [1.0, 0.0]]])
    with pytest.raises(ValueError, match=r"^epsilon: expected a number >= 1e-06, got 1e-300"):
        mlot.sinkhorn(cost, epsilon=1e-300)
    with pytest.raises(ValueError, match=r"^temperature: expected a number >= 1e-06"):
        mlot.select(logits, k=1, temperature=1e-9)
    with pytest.raises(ValueError, match=r"^sequence_temperature: expected a number >= 1e-06"):
        mlot.MultiLevelOTConfig(sequence_temperature=1e-300)
    least = mlot.MultiLevelOTConfig(k=1, temperature=1e-6, sequence_temperature=1e-6, epsilon=1e-6)
    assert np.isfinite(float(mlot.multi_level_ot(logits, logits, config=least).had))


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
@CONVERTERS
def test_a_count_is_checked_as_an_array_too(convert: Convert, value: float) -> None:
    logits = convert(np.zeros((1, 3, 4)))
    with pytest.raises(ValueError, match=r"^num_items: expected a finite number > 0, got"):
        mlot.multi_level_ot(logits, logits, num_items=convert(value))


def test_labels_of_both_sides_are_tokens() -> None:
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=3))
    student, teacher = torch.randn(1, 4, 9), torch.randn(1, 4, 7)
    labels = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"^teacher_labels: expected -100 or 0 to 6, got 8"):
        criterion(student, teacher, labels, 8 * labels)
    with pytest.raises(ValueError, match=r"^student_labels: expected -100 or 0 to 8, got 9"):
        criterion(student, teacher, 9 * labels, labels)


def test_a_teacher_of_inference_mode_serves_every_loss() -> None:
    student = torch.randn(1, 4, 9, requires_grad=True)
    with torch.inference_mode():
        teacher = torch.randn(1, 4, 7)
    for loss in (mlot.uld(student, teacher), mlot.multi_level_ot(student, teacher).loss):
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()


def test_types_that_nothing_computes_with_are_named() -> None:
    student = torch.randn(1, 4, 9)
    with pytest.raises(TypeError, match=r"^student: expected floating-point numbers, got torch.float8"):
        mlot.multi_level_ot(student.to(torch.float8_e4m3fn), student)


@CONVERTERS
def test_diagnostics_of_a_diverged_model_are_no_numbers(convert: Convert) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 4, 9))
    logits[0, 1, 2] = np.nan
    teacher = np.random.default_rng(1).normal(size=(2, 4, 9))
    result = mlot.multi_level_ot(convert(logits), convert(teacher), config=mlot.MultiLevelOTConfig(k=3))
    gap = result.diagnostics().matching_gap
    assert np.isnan(gap).tolist() == [True, False]
