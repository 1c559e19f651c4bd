"""Bad settings, mixed arrays, heads and modules: the error names the argument, what came and what was expected."""

import re

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from error_cases import arrays
from problems import BACKENDS

backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected an integer >= 1 or None, got 0"),
        ({"k": "50"}, TypeError, "k: expected an integer >= 1 or None, got str '50'"),
        (
            {"k": None},
            ValueError,
            "k: expected a number, since only matching='rank' and 'text' take None, got 'optimal'",
        ),
        ({"matching": "hungarian"}, ValueError, "matching: expected one of"),
        ({"pool": 0}, ValueError, "pool: expected an integer >= 1 or None, got 0"),
        ({"pool": 10}, ValueError, "pool: expected at least k = 50 candidates, got 10"),
        ({"temperature": 0}, ValueError, "temperature: expected a finite number > 0, got 0"),
        (
            {"temperature": 10**400},
            ValueError,
            "temperature: expected a finite number > 0, got an integer beyond",
        ),
        ({"temperature": "hot"}, TypeError, "temperature: expected a finite number > 0, got str 'hot'"),
        (
            {"sequence_temperature": -1.0},
            ValueError,
            "sequence_temperature: expected a finite number > 0, got -1.0",
        ),
        ({"standardize": 1}, TypeError, "standardize: expected True or False, got int 1"),
        ({"had_weight": -1}, ValueError, "had_weight: expected a finite number >= 0, got -1"),
        ({"sl_weight": float("nan")}, ValueError, "sl_weight: expected a finite number >= 0, got nan"),
        ({"sd_weight": None}, TypeError, "sd_weight: expected a finite number >= 0, got NoneType None"),
        (
            {"had_weight": 0, "sl_weight": 0, "sd_weight": 0},
            ValueError,
            "had_weight: expected a positive had_weight, sl_weight or sd_weight, got all 0",
        ),
        ({"epsilon": 0.0}, ValueError, "epsilon: expected a finite number > 0, got 0.0"),
        ({"n_iter": 0}, ValueError, "n_iter: expected an integer >= 1, got 0"),
        ({"n_iter": 20.0}, TypeError, "n_iter: expected an integer >= 1, got float 20.0"),
        ({"tol": -1}, ValueError, "tol: expected a finite number >= 0 or None, got -1"),
        ({"token_cost": "l2"}, ValueError, r"token_cost: expected one of \('l1', 'log'\), got 'l2'"),
        ({"sequence_cost": 1}, TypeError, r"sequence_cost: expected one of \('l1', 'log'\), got int 1"),
    ],
)
def test_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        mlot.MultiLevelOTConfig(**settings)


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        mlot.MultiLevelOTConfig().k = 3  # type: ignore[misc]


def test_mixed_kinds_of_array() -> None:
    a, b = arrays("numpy"), arrays("torch")
    expected = re.escape(
        "teacher: array kinds are mixed: student is numpy, teacher is torch; pass arrays of one"
    )
    with pytest.raises(TypeError, match=expected):
        mlot.multi_level_ot(a.student, b.teacher)
    with pytest.raises(
        TypeError, match="^student_mask: array kinds are mixed: student is torch, student_mask is numpy"
    ):
        mlot.multi_level_ot(b.student, b.teacher, student_mask=a.student_mask)
    with pytest.raises(TypeError, match="^pairs: array kinds are mixed"):
        mlot.uld(b.student, b.teacher, pairs=a.pairs)
    with pytest.raises(TypeError, match="^a: array kinds are mixed"):
        mlot.sinkhorn(b.cost, a.cost[:, 0])


def test_devices() -> None:
    b = arrays("torch")
    with pytest.raises(ValueError, match="^teacher: expected the device of student, cpu, got meta"):
        mlot.multi_level_ot(b.student, b.teacher.to("meta"))
    with pytest.raises(ValueError, match="^student_mask: expected the device of student, cpu, got meta"):
        mlot.multi_level_ot(b.student, b.teacher, student_mask=b.student_mask.to("meta"))


def test_the_reference_refuses_to_drop_gradients() -> None:
    b = arrays("torch")
    message = r"^student: the numpy backend has no gradients; pass student.detach\(\)"
    with pytest.raises(TypeError, match=message):
        mlot.multi_level_ot(b.student.requires_grad_(), b.teacher, backend="numpy")


def test_exact_transport_refuses_weights_with_gradients() -> None:
    b = arrays("torch")
    weights = torch.full((3,), 1 / 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(
        TypeError, match=r"^a: exact transport has no gradient for weights; pass a.detach\(\)"
    ):
        mlot.emd(b.cost, weights)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (np.zeros((2, 3)), np.zeros((5, 4))),
            ValueError,
            r"hidden: expected \(B, T, D\), got shape \(2, 3\)",
        ),
        ((np.zeros((1, 2, 3)), np.zeros(5)), ValueError, r"weight: expected \(V, D\), got shape \(5,\)"),
        (
            (np.zeros((1, 2, 3)), np.zeros((5, 4))),
            ValueError,
            r"weight: expected \(V, D\) with the D of hidden, got",
        ),
        (
            (np.zeros((1, 2, 3)), np.zeros((5, 3)), np.zeros(4)),
            ValueError,
            r"bias: expected \(5,\), the V of weight, got \(4,\)",
        ),
        (([[1.0]], np.zeros((5, 3))), TypeError, r"hidden: expected an array \(B, T, D\), got list"),
        (
            (np.zeros((1, 2, 3)), np.zeros((5, 3)), None, 0.0),
            ValueError,
            r"softcap: expected a finite, non-zero number \(softcap > 0\), got 0.0",
        ),
        (
            (np.zeros((1, 2, 3)), np.zeros((5, 3)), None, None, "2"),
            TypeError,
            r"scale: expected a number or None, got str",
        ),
    ],
)
def test_linear_head(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        mlot.LinearHead(*arguments)


def test_integer_heads() -> None:
    head = mlot.LinearHead(np.zeros((1, 2, 3)), np.zeros((5, 3), dtype=int))
    with pytest.raises(TypeError, match=r"^source\.weight: expected floating-point numbers, got int64"):
        mlot.select(head, k=2)


MODULE = [
    (
        {"student_labels": torch.zeros(2, 5, dtype=torch.long)},
        ValueError,
        r"student_labels: expected shape \(2, 4\), as student_logits, got \(2, 5\)",
    ),
    (
        {"teacher_labels": torch.zeros(2, 5)},
        TypeError,
        "teacher_labels: expected integers, got torch.float32",
    ),
    ({"student_labels": [[1, 2]]}, TypeError, "student_labels: expected a torch tensor, got list"),
    (
        {"teacher_labels": None},
        TypeError,
        r"teacher_labels: expected integers \(B, T_t\), got None without traces for a teacher",
    ),
    ({"num_items_in_batch": -1}, ValueError, "num_items: expected a finite number > 0, got -1"),
]


@pytest.mark.parametrize(("change", "error", "message"), MODULE)
@pytest.mark.parametrize("criterion", [mlot.nn.MultiLevelOTLoss(), mlot.nn.ULDLoss()])
def test_modules(criterion: torch.nn.Module, change: dict, error: type[Exception], message: str) -> None:
    b = arrays("torch")
    arguments = {
        "student_logits": b.student,
        "teacher_logits": b.teacher,
        "student_labels": torch.zeros(2, 4, dtype=torch.long),
        "teacher_labels": torch.zeros(2, 5, dtype=torch.long),
    }
    criterion(**arguments)
    with pytest.raises(error, match=f"^{message}"):
        criterion(**{**arguments, **change})


def test_module_settings() -> None:
    with pytest.raises(ValueError, match=r"^alpha: expected a finite number >= 0, got -1"):
        mlot.nn.MultiLevelOTLoss(alpha=-1)
    with pytest.raises(TypeError, match=r"^config: expected a MultiLevelOTConfig or None, got int"):
        mlot.nn.MultiLevelOTLoss(50)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^alpha: expected a finite number >= 0, got str 'x'"):
        mlot.nn.ULDLoss("x")  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [9, -1])
def test_labels_outside_the_vocabulary(label: int) -> None:
    b = arrays("torch")
    labels = torch.full((2, 4), label)
    with pytest.raises(ValueError, match=rf"^student_labels: expected -100 or 0 to 8, got {label}"):
        mlot.nn.MultiLevelOTLoss()(b.student, b.teacher, labels, torch.zeros(2, 5, dtype=torch.long))
