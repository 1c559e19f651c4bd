"""Properties that the mathematics promises, on both backends."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlot
from problems import (
    BACKENDS,
    Problem,
    as_numpy,
    assert_close,
    configs,
    make_problem,
    problems,
    rounding,
)

backends = pytest.mark.parametrize("backend", BACKENDS)
QUANTITIES = ("loss", "had", "sl", "sd")


def evaluate(problem: Problem, backend: str, config: mlot.MultiLevelOTConfig) -> mlot.MultiLevelOTResult:
    return mlot.multi_level_ot(**problem.to(backend).arguments(), config=config, reduction="none")


@backends
@given(problem=problems(), config=configs(("optimal", "greedy", "rank", "sinkhorn")))
def test_a_sequence_alone_gives_what_it_gives_in_a_batch(
    backend: str, problem: Problem, config: mlot.MultiLevelOTConfig
) -> None:
    together = evaluate(problem, backend, config)
    floor = rounding(problem, config)
    for n in range(len(problem.student)):
        alone = evaluate(problem.row(n), backend, config)
        for name in QUANTITIES:
            assert_close(
                as_numpy(getattr(together, name))[n : n + 1], getattr(alone, name), 1e-12, floor, name
            )
        np.testing.assert_array_equal(
            as_numpy(together.student_columns)[n], as_numpy(alone.student_columns)[0]
        )


@backends
@given(
    problem=problems(pairs=False),
    config=configs(),
    seed=st.integers(0, 1000),
    garbage=st.sampled_from([0.0, 1e4, np.inf, np.nan]),
)
def test_what_a_mask_excludes_does_not_matter(
    backend: str, problem: Problem, config: mlot.MultiLevelOTConfig, seed: int, garbage: float
) -> None:
    """Padding inserted anywhere, holding anything, changes nothing."""
    rng = np.random.default_rng(seed)
    padded = {}
    for side in ("student", "teacher"):
        logits, mask = getattr(problem, side), getattr(problem, f"{side}_mask")
        mask = np.ones(logits.shape[:2], dtype=bool) if mask is None else mask
        at = np.sort(rng.integers(0, logits.shape[1] + 1, size=3))
        padded[side] = np.insert(np.where(mask[..., None], logits, garbage), at, garbage, axis=1)
        padded[f"{side}_mask"] = np.insert(mask, at, False, axis=1)
    floor = rounding(problem, config)
    want = evaluate(problem, backend, config)
    got = evaluate(problem.with_(**padded), backend, config)
    for name in QUANTITIES:
        assert_close(getattr(got, name), getattr(want, name), 1e-12, floor, name)
    assert_close(
        mlot.uld(**problem.with_(**padded).to(backend).arguments(), reduction="none"),
        mlot.uld(**problem.to(backend).arguments(), reduction="none"),
        1e-12,
        floor,
        "uld",
    )


@given(problem=problems(pairs=False), config=configs(), seed=st.integers(0, 1000))
def test_masked_positions_get_no_gradient(
    problem: Problem, config: mlot.MultiLevelOTConfig, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    p = problem.with_(student_mask=rng.random(problem.student.shape[:2]) < 0.5).to("torch")
    student = torch.where(p.student_mask[..., None], p.student, torch.nan).requires_grad_()
    result = mlot.multi_level_ot(**p.with_(student=student).arguments(), config=config)
    ((result.loss + mlot.uld(**p.with_(student=student).arguments())).backward())
    assert bool((student.grad[~p.student_mask] == 0).all())
    assert bool(torch.isfinite(student.grad).all())


@backends
@given(problem=problems(), config=configs(("optimal", "rank", "greedy")), seed=st.integers(0, 1000))
def test_the_order_of_a_vocabulary_does_not_matter(
    backend: str, problem: Problem, config: mlot.MultiLevelOTConfig, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    s, t = (rng.permutation(x.shape[2]) for x in (problem.student, problem.teacher))
    shuffled = problem.with_(student=problem.student[:, :, s], teacher=problem.teacher[:, :, t])
    want, got = evaluate(problem, backend, config), evaluate(shuffled, backend, config)
    floor = rounding(problem, config)
    valid = np.ones(len(problem.student), dtype=bool)  # without valid positions all columns weigh the same
    for mask in (problem.student_mask, problem.teacher_mask):
        valid &= True if mask is None else mask.any(axis=1)
    for order, name in ((s, "student_columns"), (t, "teacher_columns")):
        np.testing.assert_array_equal(
            order[as_numpy(getattr(got, name))][valid], as_numpy(getattr(want, name))[valid]
        )
    for name in QUANTITIES:
        assert_close(getattr(got, name), getattr(want, name), 1e-12, floor, name)
    assert_close(
        mlot.uld(**shuffled.to(backend).arguments(), reduction="none"),
        mlot.uld(**problem.to(backend).arguments(), reduction="none"),
        1e-12,
        floor,
        "uld",
    )


@backends
@given(problem=problems(pairs=False), k=st.sampled_from([1, 5, 50]))
def test_a_model_is_at_distance_zero_from_itself(backend: str, problem: Problem, k: int) -> None:
    same = problem.with_(teacher=problem.student, teacher_mask=problem.student_mask).to(backend)
    result = mlot.multi_level_ot(**same.arguments(), config=mlot.MultiLevelOTConfig(k=k), reduction="none")
    np.testing.assert_array_equal(as_numpy(result.had), 0.0)
    np.testing.assert_array_equal(as_numpy(result.student_columns), as_numpy(result.teacher_columns))
    np.testing.assert_array_equal(as_numpy(mlot.uld(**same.arguments(), reduction="none")), 0.0)
    traces = mlot.select(same.student, same.student_mask, k=k)
    cost = as_numpy(mlot.sequence_cost(traces, traces))
    np.testing.assert_array_equal(np.diagonal(cost, axis1=1, axis2=2), 0.0)


@backends
@given(problem=problems(), k=st.sampled_from([2, 5, 50]), standardize=st.booleans())
def test_no_matching_beats_the_optimal_one(backend: str, problem: Problem, k: int, standardize: bool) -> None:
    config = mlot.MultiLevelOTConfig(k=k, standardize=standardize)
    best = as_numpy(evaluate(problem, backend, config).had)
    for matching in ("rank", "greedy"):
        other = evaluate(problem, backend, replace(config, matching=matching))
        assert (best <= as_numpy(other.had) + rounding(problem, config)).all()


@backends
@given(problem=problems(), config=configs())
def test_bounds(backend: str, problem: Problem, config: mlot.MultiLevelOTConfig) -> None:
    """0 <= HAD <= 2 per pair, SL >= 0, 0 <= SD <= 2 per position under the L1 cost; shares within 0 and 1."""
    config = replace(config, sequence_cost="l1")
    result = evaluate(problem, backend, config)
    diagnostics = result.diagnostics()
    slack = rounding(problem, config)
    had, sl, sd = as_numpy(result.had), as_numpy(result.sl), as_numpy(result.sd)
    assert (had >= 0).all()
    assert (had <= 2 * diagnostics.pairs + slack).all()
    assert (sl >= -slack).all()
    positions = problem.student.shape[1] if problem.student_mask is None else problem.student_mask.sum(1)
    assert (sd >= 0).all()
    assert (sd <= 2 * positions + slack).all()
    for share in (diagnostics.teacher_kept_mass, diagnostics.student_kept_mass):
        assert (share >= 0).all()
        assert (share <= 1 + slack).all()


@backends
@pytest.mark.parametrize("empty", ["student", "teacher", "both", "pairs"])
def test_empty_sequences_add_nothing(backend: str, empty: str) -> None:
    """A sequence without valid positions, or without pairs, adds 0 and a gradient of 0; others are untouched."""
    problem = make_problem(5, batch=3)
    masks = {
        f"{side}_mask": np.ones(getattr(problem, side).shape[:2], dtype=bool)
        for side in ("student", "teacher")
    }
    pairs = np.stack([np.arange(5), np.arange(5)], -1)[None].repeat(3, 0)
    if empty == "pairs":
        pairs[1] = -1
    for side in ("student", "teacher"):
        if empty in (side, "both"):
            masks[f"{side}_mask"][1] = False
    problem = problem.with_(**masks, pairs=pairs)
    for matching in ("optimal", "greedy", "rank", "sinkhorn"):
        for sequence_cost in ("l1", "log"):
            config = mlot.MultiLevelOTConfig(k=6, matching=matching, sequence_cost=sequence_cost)
            p = problem.to(backend)
            if backend == "torch":
                p = p.with_(student=p.student.requires_grad_())
            result = mlot.multi_level_ot(**p.arguments(), config=config, reduction="none")
            assert as_numpy(result.had)[1] == 0
            assert as_numpy(result.sl)[1] == 0
            if empty != "pairs":
                assert as_numpy(result.sd)[1] == 0
            others = evaluate(problem.row(0), backend, config)
            assert_close(as_numpy(result.loss)[:1], others.loss, 1e-12, 1e-12, "loss")
            if backend == "torch":
                (gradient,) = torch.autograd.grad(result.loss.sum(), p.student)
                assert bool(torch.isfinite(gradient).all())
                if empty != "pairs":
                    assert bool((gradient[1] == 0).all())
            diagnostics = result.diagnostics()
            assert diagnostics.pairs[1] == 0


@backends
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_batches_and_sequences_of_nothing(backend: str, shape: tuple[int, int]) -> None:
    student, teacher = np.zeros((*shape, 9)), np.zeros((shape[0], 4, 11))
    p = Problem(student, teacher).to(backend)
    for matching in ("optimal", "greedy", "rank", "sinkhorn"):
        result = mlot.multi_level_ot(**p.arguments(), config=mlot.MultiLevelOTConfig(k=3, matching=matching))
        for name in QUANTITIES:
            assert float(getattr(result, name)) == 0.0
    assert float(mlot.uld(**p.arguments())) == 0.0


@backends
@given(problem=problems(), config=configs(("optimal", "sinkhorn")))
def test_reductions(backend: str, problem: Problem, config: mlot.MultiLevelOTConfig) -> None:
    arguments = problem.to(backend).arguments()
    none = mlot.multi_level_ot(**arguments, config=config, reduction="none")
    total = mlot.multi_level_ot(**arguments, config=config, reduction="sum")
    mean = mlot.multi_level_ot(**arguments, config=config)
    items = mlot.multi_level_ot(**arguments, config=config, num_items=7)
    pairs = none.diagnostics().pairs.sum()
    mask = problem.student_mask
    positions = np.prod(problem.student.shape[:2]) if mask is None else mask.sum()
    for name, count in (("had", pairs), ("sl", pairs), ("sd", positions)):
        want = as_numpy(getattr(none, name)).sum()
        assert_close(getattr(total, name), want, 1e-12, 1e-300, name)
        assert_close(
            getattr(mean, name), want / max(count, 1), 1e-6 if backend == "torch" else 1e-12, 1e-300, name
        )
        assert_close(getattr(items, name), want / 7, 1e-12, 1e-300, name)
    for result in (none, total, mean, items):
        expected = as_numpy(result.had) + 0.1 * as_numpy(result.sl) + 0.1 * as_numpy(result.sd)
        assert_close(result.loss, expected, 1e-12, 1e-300, "loss")


@backends
@given(problem=problems(pairs=False))
def test_pairs_by_index_are_the_default(backend: str, problem: Problem) -> None:
    """Giving the pairs that None stands for changes nothing; leaving pairs out is the same as masking them."""
    p = problem.to(backend)
    batch = []
    for n in range(len(problem.student)):
        sides = [
            np.arange(logits.shape[1]) if mask is None else np.flatnonzero(mask[n])
            for logits, mask in (
                (problem.student, problem.student_mask),
                (problem.teacher, problem.teacher_mask),
            )
        ]
        batch.append(list(zip(*sides, strict=False)))
    width = max(map(len, batch), default=0) + 1
    pairs = np.full((len(batch), width, 2), -1)
    for n, each in enumerate(batch):
        pairs[n, 1 : 1 + len(each)] = np.array(each).reshape(-1, 2)
    given_pairs = torch.from_numpy(pairs) if backend == "torch" else pairs
    for f in (lambda **kw: mlot.multi_level_ot(**kw).loss, mlot.uld):
        want, got = f(**p.arguments()), f(**p.with_(pairs=given_pairs).arguments())
        assert_close(got, want, 1e-13, 1e-15, "loss")


@given(problem=problems(), config=configs(("optimal", "rank")))
def test_saved_teacher_is_lossless(problem: Problem, config: mlot.MultiLevelOTConfig) -> None:
    """Traces in place of the teacher's logits give the same loss and student gradient, bit by bit."""
    p = problem.to("torch")
    student = p.student.requires_grad_()
    k = min(config.k or p.teacher.shape[2], p.teacher.shape[2])
    traces = mlot.select(
        p.teacher,
        p.teacher_mask,
        k=k,
        temperature=config.temperature,
        extra_temperatures=(config.sequence_temperature,),
        standardize=config.standardize,
    )
    results = []
    for teacher, mask in ((p.teacher, p.teacher_mask), (traces, None)):
        result = mlot.multi_level_ot(
            student, teacher, student_mask=p.student_mask, teacher_mask=mask, pairs=p.pairs, config=config
        )
        results.append((result.loss.detach(), *torch.autograd.grad(result.loss, student)))
    for want, got in zip(*results, strict=True):
        assert torch.equal(want, got)
