"""A matching that is given: the loss with it is that of the columns it names."""

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from problems import make_problem

BACKENDS = ["numpy", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank"])
@pytest.mark.parametrize("standardize", [False, True])
def test_the_matching_of_a_result_given_again_is_that_result(
    backend: str, matching: str, standardize: bool
) -> None:
    problem = make_problem(3, batch=3, masks="gaps").to(backend)
    config = mlot.MultiLevelOTConfig(k=5, matching=matching, standardize=standardize)
    want = mlot.multi_level_ot(**problem.arguments(), config=config)
    plain = mlot.MultiLevelOTConfig(k=5, standardize=standardize)
    got = mlot.multi_level_ot(**problem.arguments(), config=plain, student_columns=want.student_columns)
    for name in ("loss", "had", "sl", "sd"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-10)
    np.testing.assert_array_equal(got.student_columns, want.student_columns)
    np.testing.assert_array_equal(got.teacher_columns, want.teacher_columns)


def test_equal_vocabularies_by_name_are_at_distance_zero() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(2, 6, 15))
    order = rng.permutation(15)
    student = teacher[:, :, order]  # the same model with its tokens in another order
    partner = np.argsort(order)
    columns = partner[mlot.select(teacher, k=7).columns]
    result = mlot.multi_level_ot(student, teacher, student_columns=columns)
    assert result.had < 1e-14
    assert result.student_columns.shape == (2, 7)


@pytest.mark.parametrize("head", [False, True])
def test_gradients(head: bool) -> None:
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 5, 12, generator=g, dtype=torch.float64)
    columns = torch.randint(9, (2, 4), generator=g)
    weight = torch.randn(9, 3, generator=g, dtype=torch.float64)
    leaf = torch.randn(2, 6, 3 if head else 9, generator=g, dtype=torch.float64, requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        source = mlot.LinearHead(x, weight) if head else x
        return mlot.multi_level_ot(source, teacher, student_columns=columns).loss

    assert torch.autograd.gradcheck(loss, leaf)


@pytest.mark.parametrize(
    ("given", "config", "error", "said"),
    [
        (np.zeros((2, 3)), {}, TypeError, "student_columns: expected integers"),
        (np.zeros((1, 3), int), {}, ValueError, r"student_columns: expected \(2, k\)"),
        (np.zeros((2, 0), int), {}, ValueError, r"student_columns: expected \(2, k\)"),
        (np.full((2, 3), 9), {}, ValueError, "student_columns: expected 0 to 8, got 9"),
        (np.full((2, 3), -1), {}, ValueError, "student_columns: expected 0 to 8, got -1"),
        (np.zeros((2, 13), int), {}, ValueError, "student_columns: expected at most 12 columns"),
        (np.zeros((2, 3), int), {"matching": "sinkhorn"}, ValueError, "student_columns: expected None with"),
        ([[1]], {}, TypeError, "student_columns: expected an array"),
    ],
)
def test_what_cannot_be_a_matching(given: object, config: dict, error: type, said: str) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 9)), rng.normal(size=(2, 5, 12))
    with pytest.raises(error, match=said):
        mlot.multi_level_ot(student, teacher, config=mlot.MultiLevelOTConfig(**config), student_columns=given)


def test_traces_of_a_student_cannot_be_asked_for_other_columns() -> None:
    rng = np.random.default_rng(0)
    student = mlot.select(rng.normal(size=(2, 6, 9)), k=9)
    with pytest.raises(TypeError, match="student: expected logits or a LinearHead with student_columns"):
        mlot.multi_level_ot(student, rng.normal(size=(2, 5, 12)), student_columns=np.zeros((2, 3), int))


def test_the_module_takes_a_matching_too() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 9, generator=g), torch.randn(2, 5, 12, generator=g)
    labels, taught = torch.randint(9, (2, 6), generator=g), torch.randint(12, (2, 5), generator=g)
    columns = torch.randint(9, (2, 4), generator=g)
    terms = mlot.nn.MultiLevelOTLoss().terms(student, teacher, labels, taught, student_columns=columns)
    want = mlot.multi_level_ot(
        student,
        teacher,
        student_mask=mlot.mask_from_labels(labels),
        teacher_mask=mlot.mask_from_labels(taught),
        student_columns=columns,
    )
    torch.testing.assert_close(terms.distillation, want.loss)
    with pytest.raises(ValueError, match="student_columns: expected None with several teachers"):
        mlot.nn.MultiLevelOTLoss()(
            student, [mlot.Teacher(teacher)], labels, [taught], student_columns=columns
        )
