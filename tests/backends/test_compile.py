"""torch.compile: one graph for the loss and the modules, and what breaks it."""

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from problems import make_problem

# The compiler itself does what torch warns of: it instantiates autograd functions, and looks at .grad.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch"),
]

TEACHER = torch.from_numpy(np.random.default_rng(1).normal(size=(2, 6, 40))).float()
STUDENT = torch.from_numpy(np.random.default_rng(2).normal(size=(2, 5, 30))).float()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def compiled(function: object, fullgraph: bool = True) -> object:
    return torch.compile(function, fullgraph=fullgraph, backend="aot_eager")


def value_and_gradient(function: object, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = tuple(x.clone().requires_grad_() for x in leaves)
    value = function(*leaves)
    return (value.detach(), *torch.autograd.grad(value, leaves))


def assert_same(function: object, *leaves: torch.Tensor, fullgraph: bool = True) -> None:
    want = value_and_gradient(function, *leaves)
    got = value_and_gradient(compiled(function, fullgraph), *leaves)
    for one, two in zip(got, want, strict=True):
        # Rounding in float32, which differs between processors, and which e^(-C / 0.1) makes ten times as large.
        torch.testing.assert_close(one, two, rtol=1e-6, atol=4e-6 * float(two.abs().amax()))


@pytest.mark.parametrize(
    ("matching", "standardize"),
    [("rank", False), ("rank", True), ("optimal", False), ("greedy", False), ("sinkhorn", False)],
)
def test_the_loss_is_one_graph(matching: str, standardize: bool) -> None:
    """With the assignment too: what the host solves is an operation of the graph."""
    config = mlot.MultiLevelOTConfig(k=6, matching=matching, standardize=standardize)
    assert_same(lambda s: mlot.multi_level_ot(s, TEACHER, config=config).loss, STUDENT)


def test_masks_are_part_of_the_graph() -> None:
    problem = make_problem(0, batch=3, masks="gaps").to("torch", torch.float32)
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")

    def loss(student: torch.Tensor) -> torch.Tensor:
        return mlot.multi_level_ot(**problem.with_(student=student).arguments(), config=config).loss

    assert_same(loss, problem.student)


def test_a_head_is_part_of_the_graph() -> None:
    rng = np.random.default_rng(0)
    leaves = [torch.from_numpy(rng.normal(size=shape)).float() for shape in ((2, 5, 4), (30, 4), (30,))]
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")

    def loss(*head: torch.Tensor) -> torch.Tensor:
        return mlot.multi_level_ot(mlot.LinearHead(*head, softcap=5.0), TEACHER, config=config).loss

    assert_same(loss, *leaves)


@pytest.mark.parametrize("head", [False, True])
def test_the_module_is_one_graph(head: bool) -> None:
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6, matching="rank"))
    g = torch.Generator().manual_seed(0)
    labels, teacher_labels = torch.randint(30, (2, 5), generator=g), torch.randint(40, (2, 6), generator=g)
    labels[0, :2] = -100
    if head:
        hidden, weight = torch.randn(2, 5, 4, generator=g), torch.randn(30, 4, generator=g)
        assert_same(
            lambda h, w: criterion(mlot.LinearHead(h, w), TEACHER, labels, teacher_labels), hidden, weight
        )
    else:
        assert_same(lambda s: criterion(s, TEACHER, labels, teacher_labels), STUDENT)


def test_bfloat16() -> None:
    config = mlot.MultiLevelOTConfig(k=6, matching="rank")
    assert_same(lambda s: mlot.multi_level_ot(s, TEACHER.bfloat16(), config=config).loss, STUDENT.bfloat16())


def test_what_waits_for_the_host_breaks_the_graph_and_not_the_program() -> None:
    """A tolerance, given pairs and ULD look at values; outside full graphs they run as they would uncompiled."""
    pairs = torch.tensor([[[0, 1], [2, 2]], [[1, 0], [3, 5]]])
    config = mlot.MultiLevelOTConfig(k=6, matching="rank", tol=1e-3, n_iter=50)
    for loss in (
        lambda s: mlot.multi_level_ot(s, TEACHER, config=config).loss,
        lambda s: mlot.multi_level_ot(s, TEACHER, pairs=pairs).loss,
        lambda s: mlot.uld(s, TEACHER),
        lambda s: mlot.uld(s, TEACHER, pairs=pairs),
    ):
        torch._dynamo.reset()
        assert_same(loss, STUDENT, fullgraph=False)


def test_a_compiled_training_step_by_the_default_compiler() -> None:
    model = torch.nn.Linear(8, 30)
    criterion = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig(k=6, matching="rank"))
    inputs, labels, teacher_labels = (
        torch.randn(2, 5, 8),
        torch.randint(30, (2, 5)),
        torch.randint(40, (2, 6)),
    )

    def step(x: torch.Tensor) -> torch.Tensor:
        return criterion(model(x), TEACHER, labels, teacher_labels)

    want = torch.autograd.grad(step(inputs), list(model.parameters()))
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(inputs), list(model.parameters()))
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [None, torch.randn(9, 4, dtype=torch.float64)])
def test_operations_are_declared_rightly(weight: torch.Tensor | None) -> None:
    """torch's own checks: schemas, shapes without data, gradients."""
    from mlot.backends.torch import ops as torch_ops

    first = torch.randn(2, 3, 9 if weight is None else 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    ids = torch.tensor([[[1, 8], [2, -1], [0, 0]], [[3, 4], [0, 1], [8, -1]]])
    head = (first, weight, None, None, None, 1 << 20)
    for k, columns in ((None, [[1, 0, 4], [2, 8, 3]]), (3, [[], []])):
        given = torch.tensor(columns, dtype=torch.long)
        for standardize, without in ((False, 0), (True, 2)):
            torch.library.opcheck(
                torch_ops._read, (*head, mask, 1.0, [2.0], standardize, k, given, ids, without)
            )
    torch.library.opcheck(torch_ops._assign, (torch.rand(2, 3, 4, dtype=torch.float64),))
