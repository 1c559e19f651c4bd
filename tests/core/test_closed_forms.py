"""Values that can be worked out by hand."""

import numpy as np
import pytest
import torch

import mlot
from problems import BACKENDS, as_numpy

backends = pytest.mark.parametrize("backend", BACKENDS)


def to(backend: str, array: object) -> object:
    array = np.asarray(array, dtype=float)
    return torch.from_numpy(array) if backend == "torch" else array


@backends
def test_uniform_predictions(backend: str) -> None:
    """Student 1/n, teacher 1/m at every position: all terms are known."""
    n, m, k, t_s, t_t = 8, 5, 3, 4, 6
    student, teacher = to(backend, np.zeros((1, t_s, n))), to(backend, np.zeros((1, t_t, m)))
    result = mlot.multi_level_ot(student, teacher, config=mlot.MultiLevelOTConfig(k=k), reduction="none")
    difference = k * abs(1 / m - 1 / n)
    np.testing.assert_allclose(as_numpy(result.had), [t_s * difference], rtol=1e-12)
    np.testing.assert_allclose(as_numpy(result.sl), [t_s * k / m * np.log(n)], rtol=1e-12)
    np.testing.assert_allclose(
        as_numpy(result.sd), [t_s * difference], rtol=1e-12
    )  # every plan costs the same
    np.testing.assert_array_equal(as_numpy(result.teacher_columns), [[0, 1, 2]])  # ties by lower index
    diagnostics = result.diagnostics()
    np.testing.assert_allclose(diagnostics.teacher_kept_mass, k / m, rtol=1e-12)
    np.testing.assert_allclose(diagnostics.student_kept_mass, k / n, rtol=1e-12)
    uld = mlot.uld(student, teacher, reduction="none")
    np.testing.assert_allclose(as_numpy(uld), [t_s * (m * (1 / m - 1 / n) + (n - m) / n)], rtol=1e-12)


@backends
def test_renamed_vocabulary(backend: str) -> None:
    """A student that predicts what the teacher does under other names is at distance 0."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(1, 6, 12))
    order = rng.permutation(12)
    result = mlot.multi_level_ot(to(backend, teacher[:, :, order]), to(backend, teacher), reduction="none")
    np.testing.assert_allclose(as_numpy(result.had), 0, atol=1e-12)
    np.testing.assert_array_equal(
        order[as_numpy(result.student_columns)[0]], as_numpy(result.teacher_columns)[0]
    )
    entropy = -(np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)) * (
        teacher - np.log(np.exp(teacher).sum(-1, keepdims=True))
    )
    np.testing.assert_allclose(as_numpy(result.sl), [entropy.sum()], rtol=1e-12)


@backends
def test_two_positions(backend: str) -> None:
    """Sinkhorn of a symmetric 2 x 2 cost is 1 / (1 + e^(-c/λ)) on the diagonal after one round."""
    c, epsilon = 0.3, 0.1
    result = mlot.sinkhorn(to(backend, [[0, c], [c, 0]]), epsilon=epsilon, n_iter=1)
    diagonal = 0.5 / (1 + np.exp(-c / epsilon))
    np.testing.assert_allclose(
        as_numpy(result.plan), [[diagonal, 0.5 - diagonal], [0.5 - diagonal, diagonal]]
    )
    np.testing.assert_allclose(as_numpy(result.value), c * (1 - 2 * diagonal), rtol=1e-12)


@backends
def test_certain_predictions(backend: str) -> None:
    """One-hot predictions: probabilities of 0 add exactly 0 to SL, a wrong certainty adds infinity."""
    certain = np.full((1, 2, 3), -np.inf)
    certain[0, :, 1] = 0.0
    right = mlot.multi_level_ot(
        to(backend, certain), to(backend, certain), config=mlot.MultiLevelOTConfig(k=3), reduction="none"
    )
    for name in ("had", "sl", "sd", "loss"):
        np.testing.assert_array_equal(as_numpy(getattr(right, name)), [0.0])
    uniform = np.zeros((1, 2, 3))
    wrong = mlot.multi_level_ot(
        to(backend, certain), to(backend, uniform), config=mlot.MultiLevelOTConfig(k=3), reduction="none"
    )
    np.testing.assert_array_equal(as_numpy(wrong.sl), [np.inf])
    np.testing.assert_allclose(as_numpy(wrong.had), [2 * 4 / 3], rtol=1e-12)
    without = mlot.MultiLevelOTConfig(k=3, sl_weight=0.0)
    left_out = mlot.multi_level_ot(
        to(backend, certain), to(backend, uniform), config=without, reduction="none"
    )
    assert np.isfinite(as_numpy(left_out.loss)).all()


@backends
def test_temperature_of_an_infinite_flatness(backend: str) -> None:
    """At a very high temperature both predict uniformly."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 4))
    config = mlot.MultiLevelOTConfig(k=4, temperature=1e9, sequence_temperature=1e9)
    result = mlot.multi_level_ot(to(backend, student), to(backend, teacher), config=config)
    np.testing.assert_allclose(as_numpy(result.had), 0, atol=1e-8)
    np.testing.assert_allclose(as_numpy(result.sl), np.log(4), rtol=1e-8)


@backends
def test_standardised_logits_do_not_know_their_scale(backend: str) -> None:
    """Scaling and shifting the logits of either model changes nothing but the offset's share, 1e-4 of a deviation."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(1, 3, 9)), rng.normal(size=(1, 3, 9))
    config = mlot.MultiLevelOTConfig(k=4, standardize=True)
    one = mlot.multi_level_ot(to(backend, 1e3 * student), to(backend, 1e3 * teacher), config=config)
    two = mlot.multi_level_ot(to(backend, 5e3 * student + 7), to(backend, 2e3 * teacher - 1), config=config)
    np.testing.assert_allclose(as_numpy(one.loss), as_numpy(two.loss), rtol=1e-6)


@backends
def test_mask_from_labels(backend: str) -> None:
    labels = np.array([[-100, 4, -100, 7], [1, -100, -100, -100], [-1, 0, 0, -1]])
    labels = torch.from_numpy(labels) if backend == "torch" else labels
    expected = [[True, False, True, False], [False] * 4, [True, True, True, False]]
    np.testing.assert_array_equal(as_numpy(mlot.mask_from_labels(labels)), expected)
    np.testing.assert_array_equal(
        as_numpy(mlot.mask_from_labels(labels, ignore_index=-1))[2], [True, True, False, False]
    )


@pytest.mark.parametrize(("k", "share"), [(1, 0.6), (2, 0.9), (3, 1.0)])
def test_kept_mass(k: int, share: float) -> None:
    logits = np.log([[[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]]])
    result = mlot.multi_level_ot(logits, logits, config=mlot.MultiLevelOTConfig(k=k))
    np.testing.assert_allclose(result.diagnostics().teacher_kept_mass, [share], rtol=1e-12)
    np.testing.assert_allclose(result.diagnostics().student_kept_mass, [share], rtol=1e-12)
