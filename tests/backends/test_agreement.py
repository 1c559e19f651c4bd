"""The torch backend against the reference, over awkward shapes, masks and settings, in two precisions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlot
from problems import Problem, as_numpy, assert_close, configs, make_problem, problems, rounding

ALL_MATCHINGS = ("optimal", "greedy", "rank", "sinkhorn")
COLUMNS = ("teacher_columns", "student_columns")


def same_selection(got: mlot.MultiLevelOTResult, want: mlot.MultiLevelOTResult) -> bool:
    return all(np.array_equal(as_numpy(getattr(got, c)), getattr(want, c)) for c in COLUMNS)


def compare(
    problem: Problem, config: mlot.MultiLevelOTConfig, reduction: str, rtol: float, floor: float
) -> None:
    dtype = torch.float64 if rtol < 1e-8 else torch.float32
    want = mlot.multi_level_ot(**problem.arguments(), config=config, reduction=reduction, return_plan=True)
    got = mlot.multi_level_ot(
        **problem.to("torch", dtype).arguments(), config=config, reduction=reduction, return_plan=True
    )
    same = same_selection(got, want)
    if not same:
        # Another selection is right only among columns or matchings that are equally good to rounding.
        want_matched = as_numpy(want.diagnostics().teacher_kept_mass)
        assert_close(got.diagnostics().teacher_kept_mass, want_matched, 10 * rtol, floor, "kept mass")
        if config.matching == "optimal":
            assert_close(got.had, want.had, 10 * rtol, floor, "had")
        return
    for name in ("had", "sl", "sd", "plan") + (("coupling",) if config.matching == "sinkhorn" else ()):
        assert_close(getattr(got, name), getattr(want, name), rtol, floor, name)
    assert_close(got.loss, want.loss, rtol, floor, "loss")
    found, expected = got.diagnostics(), want.diagnostics()
    for name in ("pairs", "teacher_kept_mass", "student_kept_mass"):
        assert_close(getattr(found, name), getattr(expected, name), rtol, floor, name)
    assert_close(found.marginal_error, expected.marginal_error, rtol, floor, "marginal_error")


@given(problems(), configs(ALL_MATCHINGS), st.sampled_from(["none", "sum", "mean"]))
def test_double_precision(problem: Problem, config: mlot.MultiLevelOTConfig, reduction: str) -> None:
    compare(problem, config, reduction, 1e-10, rounding(problem, config))


@given(problems(), configs(), st.sampled_from(["none", "mean"]))
def test_single_precision(problem: Problem, config: mlot.MultiLevelOTConfig, reduction: str) -> None:
    # Both see the same numbers: those that float32 holds.
    problem = problem.with_(
        student=problem.student.astype(np.float32).astype(float),
        teacher=problem.teacher.astype(np.float32).astype(float),
    )
    floor = rounding(problem, config) * np.finfo(np.float32).eps / np.finfo(float).eps
    if config.tol is not None:
        return  # rounding may choose the round at which an iteration stops
    compare(problem, config, reduction, 1e-5, floor)


def test_single_precision_on_ordinary_problems() -> None:
    """No floor here: 1e-5 relative, on problems of ordinary condition."""
    for seed in range(20):
        problem = make_problem(seed, batch=3, t_s=12, t_t=10, v_s=67, v_t=80, masks="gaps")
        problem = problem.with_(
            student=problem.student.astype(np.float32).astype(float),
            teacher=problem.teacher.astype(np.float32).astype(float),
        )
        for matching in ("optimal", "rank"):
            config = mlot.MultiLevelOTConfig(k=10, matching=matching)
            want = mlot.multi_level_ot(**problem.arguments(), config=config)
            got = mlot.multi_level_ot(**problem.to("torch", torch.float32).arguments(), config=config)
            assert same_selection(got, want)
            for name in ("loss", "had", "sl", "sd"):
                assert_close(getattr(got, name), getattr(want, name), 1e-5, 0.0, name)


@given(problems(), st.sampled_from(["none", "sum", "mean"]))
def test_uld(problem: Problem, reduction: str) -> None:
    want = mlot.uld(**problem.arguments(), reduction=reduction)
    got = mlot.uld(**problem.to("torch").arguments(), reduction=reduction)
    assert_close(got, want, 1e-10, rounding(problem), "uld")


@given(problems(), st.sampled_from([1, 6, 50]), st.sampled_from([1.0, 0.7]), st.booleans())
def test_traces_and_costs(problem: Problem, k: int, temperature: float, standardize: bool) -> None:
    config = mlot.MultiLevelOTConfig(temperature=temperature, standardize=standardize)
    floor = rounding(problem, config)
    sides = {}
    for backend in ("numpy", "torch"):
        p = problem.to(backend)
        keep = min(k, p.student.shape[2], p.teacher.shape[2])
        sides[backend] = [
            mlot.select(
                x, m, k=keep, temperature=temperature, extra_temperatures=(2.0, 3.0), standardize=standardize
            )
            for x, m in ((p.student, p.student_mask), (p.teacher, p.teacher_mask))
        ]
    for got, want in zip(sides["torch"], sides["numpy"], strict=True):
        np.testing.assert_array_equal(as_numpy(got.columns), want.columns)
        np.testing.assert_array_equal(as_numpy(got.mask), want.mask)
        assert_close(got.column_mass, want.column_mass, 1e-10, floor, "column_mass")
        for t in (temperature, 2.0, 3.0):
            assert_close(
                np.exp(as_numpy(got.at(t))), np.exp(want.at(t)), 1e-10, floor, f"probabilities at {t}"
            )
    for kind in ("l1", "log"):
        got, want = (
            mlot.token_cost(*sides[b], kind=kind, pairs=problem.to(b).pairs) for b in ("torch", "numpy")
        )
        assert_close(got, want, 1e-10, floor, f"token cost {kind}")
        got, want = (mlot.sequence_cost(*sides[b], kind=kind, temperature=3.0) for b in ("torch", "numpy"))
        assert_close(got, want, 1e-10, floor, f"sequence cost {kind}")


@pytest.mark.parametrize("settings", [{}, {"softcap": 3.0, "scale": 0.7}])
def test_linear_head_equals_its_logits(settings: dict) -> None:
    """On both backends a head gives what the logits that it stands for give, with gradients."""
    rng = np.random.default_rng(3)
    hidden, weight, bias = rng.normal(size=(2, 6, 5)), rng.normal(size=(19, 5)), rng.normal(size=19)
    teacher = rng.normal(size=(2, 8, 30))
    mask = rng.random((2, 6)) < 0.7
    logits = (hidden @ weight.T + bias) * settings.get("scale", 1.0)
    if "softcap" in settings:
        logits = 3.0 * np.tanh(logits / 3.0)
    config = mlot.MultiLevelOTConfig(k=8)
    want = mlot.multi_level_ot(logits, teacher, student_mask=mask, config=config)
    head = mlot.LinearHead(hidden, weight, bias, **settings)
    tensors = [torch.from_numpy(x).requires_grad_() for x in (hidden, weight, bias)]
    torch_head = mlot.LinearHead(*tensors, **settings)
    torch_teacher, torch_mask = torch.from_numpy(teacher), torch.from_numpy(mask)
    got = mlot.multi_level_ot(torch_head, torch_teacher, student_mask=torch_mask, config=config)
    for name in ("loss", "had", "sl", "sd"):
        reference = mlot.multi_level_ot(head, teacher, student_mask=mask, config=config)
        assert_close(getattr(reference, name), getattr(want, name), 1e-12, 0.0, name)
        assert_close(getattr(got, name), getattr(want, name), 1e-10, 0.0, name)
    np.testing.assert_allclose(mlot.uld(head, teacher), mlot.uld(logits, teacher), rtol=1e-12)
    got_grads = torch.autograd.grad(got.loss, tensors)
    dense = (tensors[0] @ tensors[1].T + tensors[2]) * settings.get("scale", 1.0)
    if "softcap" in settings:
        dense = 3.0 * torch.tanh(dense / 3.0)
    result = mlot.multi_level_ot(dense, torch_teacher, student_mask=torch_mask, config=config)
    for got_grad, want_grad in zip(got_grads, torch.autograd.grad(result.loss, tensors), strict=True):
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-10, atol=1e-12)


def test_numpy_backend_takes_tensors_when_told() -> None:
    problem = make_problem(1)
    want = mlot.multi_level_ot(**problem.arguments())
    got = mlot.multi_level_ot(**problem.to("torch").arguments(), backend="numpy")
    assert isinstance(got.loss, float)
    assert got.loss == want.loss
    back = mlot.multi_level_ot(**problem.arguments(), backend="torch")
    assert isinstance(back.loss, torch.Tensor)
    assert_close(back.loss, want.loss, 1e-12, 0.0, "loss")
