"""Recorded values of the paper's equations and of the released code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mlot
import mlot.compat
from problems import BACKENDS, as_numpy

GOLDEN = Path(__file__).parent / "golden"
PAPER = json.loads((GOLDEN / "paper_equations.json").read_text())
RELEASED = json.loads((GOLDEN / "released_code.json").read_text())


def arrays(case: dict, backend: str) -> tuple[object, object]:
    made = [np.asarray([case[f"{side}_logits"]]) for side in ("student", "teacher")]
    return tuple(made) if backend == "numpy" else tuple(torch.from_numpy(a) for a in made)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank"])
@pytest.mark.parametrize("case", PAPER, ids=range(len(PAPER)))
def test_paper_equations(case: dict, matching: str, backend: str) -> None:
    config = mlot.MultiLevelOTConfig(k=case["k"], matching=matching)
    got = mlot.multi_level_ot(*arrays(case, backend), config=config, reduction="none")
    want = case["expected"][matching]
    for term in ("had", "sl", "sd"):
        np.testing.assert_allclose(as_numpy(getattr(got, term)), [want[term]], rtol=1e-10, err_msg=term)
    np.testing.assert_allclose(
        as_numpy(got.loss), [want["had"] + 0.1 * want["sl"] + 0.1 * want["sd"]], rtol=1e-10
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", PAPER, ids=range(len(PAPER)))
def test_uld(case: dict, backend: str) -> None:
    got = mlot.uld(*arrays(case, backend), reduction="none")
    np.testing.assert_allclose(as_numpy(got), [case["expected"]["uld"]], rtol=1e-10)


@pytest.mark.parametrize("case", RELEASED, ids=range(len(RELEASED)))
def test_released_code(case: dict) -> None:
    student = torch.tensor(case["student_logits"], dtype=torch.float64, requires_grad=True)
    loss = mlot.compat.released_loss(
        student,
        torch.tensor(case["teacher_logits"], dtype=torch.float64),
        torch.tensor(case["student_labels"]),
        torch.tensor(case["teacher_labels"]),
    )
    loss.backward()
    # The values were printed by a float32 computation.
    np.testing.assert_allclose(loss.item(), case["expected"]["distillation_loss"], rtol=1e-5)
    np.testing.assert_allclose(
        student.grad.norm().item(), case["expected"]["student_gradient_norm"], rtol=1e-4
    )
