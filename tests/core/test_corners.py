"""Corners of the core that ordinary problems seldom reach: deep inside tokens, lists with gaps, given columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mlot
from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch import statistics
from mlot.backends.torch.rows import DenseRows
from mlot.backends.torch.statistics import Settings
from problems import as_numpy
from text_cases import check_definition, dense, greedy, made, problem_of

BACKENDS = ["numpy", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [59, 60, 61, 62, 63, 64, 70])
def test_inside_long_tokens(backend: str, length: int) -> None:
    """Borders are bits of an integer, of which a longer token has more than there are."""
    word = b"a" * length
    others = [b"a", None, word, word + b"b", word[:-1] + b"b", b"b"]
    mine = [b"a", None, b"b", b"ab"]
    check_definition(backend, problem_of(mine, others, [2, 5, 3], greedy(mine), length))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_reach_over_several_of_the_teacher(backend: str) -> None:
    """Inside a teacher's token and at its borders, in the student's own tokenization and in another."""
    chained = inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def words(n: int, most: int, rng: np.random.Generator = rng) -> list[bytes]:
            made = [bytes(rng.choice([97, 98], size=rng.integers(2, most + 1)).tolist()) for _ in range(n)]
            return sorted(set(made))

        mine, others = [b"a", None, b"b", *words(6, 5)], [b"a", None, b"b", *words(8, 3)]
        ids = rng.choice([v for v in range(len(others)) if v != 1], size=5).tolist()
        problem = problem_of(mine, others, ids, greedy(mine, longest=bool(seed % 2)), seed)
        rows = problem.positions.rows[0]
        chained += int(((rows[:, 8] > 1) & (rows[:, 2] > 0)).sum())
        inside += int(((rows[:, 2] > 0) & (rows[:, 6] >= 0)).sum())
        check_definition(backend, problem)
    assert chained > 20
    assert inside > 40


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("tail", ["zero", "fitted", "uniform"])
def test_targets_of_lists_with_gaps(temperature: float, tail: str) -> None:
    """A served teacher lists fewer tokens at some positions, in any order: both backends read the same."""
    rng = np.random.default_rng(3)
    mine, others = [b"a", None, b"b", b"ab"], [b"a", None, b"b", b"abb", b"ba", b"aab"]
    problem = problem_of(mine, others, [3, 4, 5], greedy(mine), 0)
    logs = problem.logits - np.logaddexp.reduce(problem.logits, axis=-1, keepdims=True)
    ids = np.argsort(-logs, axis=-1)[..., :4]
    listed = np.take_along_axis(logs, ids, -1)
    gaps = np.arange(4) >= rng.integers(1, 5, size=(*ids.shape[:2], 1))
    ids[gaps] = -1
    results = []
    for backend in BACKENDS:
        problem.logits = mlot.TopKLogprobs(ids, listed, len(others), tail)
        if backend == "torch":
            problem.logits = problem.logits.map(torch.from_numpy)
        mask = problem.mask
        text = problem.positions
        if backend == "torch":
            mask = torch.from_numpy(mask)
            text = mlot.TextPositions(
                torch.from_numpy(text.rows), torch.from_numpy(text.teacher_ids), text.plan
            )
        targets = mlot.text_targets(
            problem.logits, text, student_mask=mask, k=4, temperature=temperature, min_served=0.0
        )
        results.append(targets if backend == "numpy" else targets.map(lambda x: x.numpy()))
    np.testing.assert_allclose(dense(results[0]), dense(results[1]), atol=1e-12)
    for name in ("served", "rest"):
        np.testing.assert_allclose(getattr(results[0], name), getattr(results[1], name), atol=1e-12)
    assert (results[0].served > 0).any()


def test_more_targets_than_tokens() -> None:
    problem = problem_of([b"a", None, b"b"], [b"a", None, b"b", b"ab"], [3, 0], greedy([b"a", None, b"b"]), 1)
    for backend in BACKENDS:
        few, many = made(problem, backend, k=1), made(problem, backend, k=50)
        assert many.ids.shape[2] == 3
        np.testing.assert_allclose(few.served, many.served)
        total = np.exp(few.log_probs).sum(-1) + few.rest
        np.testing.assert_allclose(total[few.served > 0], 1, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mass_of_given_columns(backend: str) -> None:
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(2, 4, 9)), rng.random((2, 4)) < 0.7
    columns = np.array([[3, 0, 8], [1, 2, 5]])
    xp = mlot.get_backend(backend)
    given = [x if backend == "numpy" else torch.from_numpy(x) for x in (logits, columns, mask)]
    traces = xp.take(*given, temperature=1.3, extra_temperatures=(2.0,), standardize=False)
    probs = np.exp(logits / 1.3 - np.logaddexp.reduce(logits / 1.3, axis=-1, keepdims=True))
    want = (np.take_along_axis(probs, columns[:, None], 2) * mask[..., None]).sum(1)
    np.testing.assert_allclose(as_numpy(traces.column_mass), want, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["row", "column"])
def test_a_cost_that_is_no_number_where_no_weight_is(backend: str, side: str) -> None:
    pytest.importorskip("ot")
    cost = np.arange(12.0).reshape(1, 3, 4)
    a, b = np.full((1, 3), 1 / 3), np.full((1, 4), 1 / 4)
    if side == "row":
        cost[0, 1], a = np.nan, np.array([[0.5, 0.0, 0.5]])
    else:
        cost[0, :, 2], b = np.nan, np.array([[0.5, 0.25, 0.0, 0.25]])
    given = [x if backend == "numpy" else torch.from_numpy(x) for x in (cost, a, b)]
    exact = mlot.emd(*given)
    assert np.isfinite(as_numpy(exact.value)).all()
    np.testing.assert_allclose(as_numpy(exact.plan).sum(2), a, atol=1e-12)


def test_what_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernels, "usable", lambda tensor: True)
    logits = torch.zeros((1, 3, 6))
    plain, two = Settings(1.0, (2.0,), False), Settings(1.0, (2.0, 3.0), False)
    assert statistics.kernels_serve(DenseRows(logits), plain)
    assert not statistics.kernels_serve(DenseRows(logits), two)
    assert not statistics.kernels_serve(DenseRows(logits), Settings(1.0, (), True))
    assert not statistics.kernels_serve(DenseRows(logits[..., ::2]), plain)


@pytest.mark.parametrize("look", [True, False])
def test_pairs_that_count_and_pairs_of_nothing(look: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ULD of sequences without a position, and of one that has pairs beside one that has none; as on a device."""
    monkeypatch.setattr(torch_rows, "can_look", lambda device: look)
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(size=(2, 3, width))) for width in (7, 5))
    pairs = torch.tensor([[[2, 1], [-1, -1]], [[-1, -1], [-1, -1]]])
    value = mlot.uld(student, teacher, pairs=pairs, reduction="none")
    sides = [side[0, t].softmax(-1).sort(descending=True).values for side, t in ((student, 2), (teacher, 1))]
    want = (sides[0] - torch.nn.functional.pad(sides[1], (0, 2))).abs().sum()
    torch.testing.assert_close(value, torch.stack([want, torch.zeros_like(want)]))
    for empty in (student[:, :0], student):
        other = teacher if empty.shape[1] == 0 else teacher[:, :0]
        none = torch.full((2, 1, 2), -1)
        assert mlot.uld(empty, other, pairs=none, reduction="sum").item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["optimal", "greedy"])
def test_matching_avoids_an_infinite_cost_that_it_can_avoid(backend: str, method: str) -> None:
    """Even where all that it takes instead is dear."""
    cost = np.array([[[np.inf, 10.0], [10.0, 0.0]], [[10.0, np.inf], [np.inf, 10.0]]])
    given = cost if backend == "numpy" else torch.from_numpy(cost)
    columns = as_numpy(mlot.get_backend(backend).assign(given, method=method))
    np.testing.assert_array_equal(columns, [[1, 0], [0, 1]])
