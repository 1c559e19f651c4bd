"""A whole criterion in one walk over the student and one back, and the gradient in the logits' own memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mlot
import mlot.nn
from mlot.backends.torch import read as torch_read

V_S, V_T = 20, 30
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(V_S, (3, 7), generator=GENERATOR)
LABELS[0, :4] = -100  # a prompt
LABELS[1, 5:] = -100  # padding
LABELS[2, 3] = -100  # a gap
TEACHER_LABELS = torch.randint(V_T, (3, 9), generator=GENERATOR)
STUDENT = 3 * torch.randn(3, 7, V_S, generator=GENERATOR, dtype=torch.float64)
TEACHER = 3 * torch.randn(3, 9, V_T, generator=GENERATOR, dtype=torch.float64)
TARGETS = mlot.TextTargets(
    ids=torch.stack([torch.randperm(V_S, generator=GENERATOR)[:4] for _ in range(21)]).view(3, 7, 4),
    log_probs=torch.full((3, 7, 4), 0.2, dtype=torch.float64).log(),
    rest=torch.full((3, 7), 0.2, dtype=torch.float64),
    served=torch.ones(3, 7, dtype=torch.float64),
    vocab_size=V_S,
)
HIDDEN = torch.randn(3, 7, 5, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.randn(V_S, 5, generator=GENERATOR, dtype=torch.float64)

CONFIGS = {
    "rank": mlot.MultiLevelOTConfig(k=6, matching="rank"),
    "optimal": mlot.MultiLevelOTConfig(k=6, matching="optimal"),
    "sinkhorn": mlot.MultiLevelOTConfig(k=6, matching="sinkhorn"),
    "one temperature": mlot.MultiLevelOTConfig(k=6, sequence_temperature=1.0),
    "hot": mlot.MultiLevelOTConfig(k=6, temperature=1.5, sequence_temperature=4.0),
    "cold": mlot.MultiLevelOTConfig(k=6, temperature=0.5, sequence_temperature=0.7),
    "standardized": mlot.MultiLevelOTConfig(k=6, standardize=True),
    "text": mlot.MultiLevelOTConfig(k=6, matching="text", sd_weight=0.3, had_weight=0.2),
    "text alone": mlot.MultiLevelOTConfig(k=6, matching="text", sd_weight=0.0),
}


def arguments(name: str) -> tuple[Any, torch.Tensor | None]:
    return (TARGETS, None) if name.startswith("text") else (TEACHER, TEACHER_LABELS)


def separate(student: Any, name: str, logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy by torch, and the distillation term by a call of its own."""
    teacher, labels = arguments(name)
    config = CONFIGS[name]
    ot = mlot.multi_level_ot(
        student,
        teacher,
        student_mask=mlot.mask_from_labels(LABELS),
        teacher_mask=None if labels is None else mlot.mask_from_labels(labels),
        config=config,
    )
    alpha = 1.0 if config.matching == "text" else 0.15
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten()) + alpha * ot.loss


def criterion(name: str, **settings: Any) -> Callable[[Any], torch.Tensor]:
    module = mlot.nn.MultiLevelOTLoss(CONFIGS[name], **settings)
    teacher, labels = arguments(name)
    return lambda student: module(student, teacher, LABELS, labels)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_together_as_apart(name: str) -> None:
    student = STUDENT.clone().requires_grad_()
    want, got = separate(student, name, student), criterion(name)(student)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    for one, two in zip(torch.autograd.grad(got, student), torch.autograd.grad(want, student), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("name", ["rank", "text", "hot"])
def test_together_as_apart_for_a_head(name: str, softcap: float | None) -> None:
    leaves = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    head = mlot.LinearHead(*leaves, softcap=softcap, chunk_bytes=300)  # a position or two at a time
    logits = leaves[0] @ leaves[1].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    want = torch.autograd.grad(separate(logits, name, logits), leaves)
    got = torch.autograd.grad(criterion(name)(head), leaves)
    for one, two in zip(got, want, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Walks over rows as wide as the student's vocabulary."""
    counted = {"forward": 0, "backward": 0}

    def count(way: str, name: str) -> None:
        real = getattr(torch_read, name)

        def counting(rows: Any, *args: Any, **settings: Any) -> Any:
            counted[way] += rows.shape[2] == V_S
            return real(rows, *args, **settings)

        monkeypatch.setattr(torch_read, name, counting)

    count("forward", "read_rows")
    count("backward", "read_rows_backward")
    return counted


@pytest.mark.parametrize("name", list(CONFIGS))
def test_one_walk_forward_and_one_back(name: str, passes: dict[str, int]) -> None:
    criterion(name)(STUDENT.clone().requires_grad_()).backward()
    walks = 2 if name == "standardized" else 1  # cross-entropy reads the logits as they are
    assert passes == {"forward": walks, "backward": walks}


def test_several_teachers_and_cross_entropy_walk_once(passes: dict[str, int]) -> None:
    module = mlot.nn.MultiLevelOTLoss(CONFIGS["rank"])
    teachers = [mlot.Teacher(TEACHER), mlot.Teacher(TEACHER.flip(2), weight=0.5)]
    module(STUDENT.clone().requires_grad_(), teachers, LABELS, [TEACHER_LABELS] * 2).backward()
    assert passes == {"forward": 1, "backward": 1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_gradient_in_the_logits_memory(name: str, dtype: torch.dtype) -> None:
    student = STUDENT.to(dtype).requires_grad_()
    (want,) = torch.autograd.grad(criterion(name)(student), student)
    before = student.detach().clone()
    (got,) = torch.autograd.grad(criterion(name, overwrite_logits=True)(student), student)
    assert torch.equal(got, want)
    if name == "standardized":  # two walks: neither may spoil the other's logits
        assert torch.equal(student, before)
    else:
        assert got.data_ptr() == student.data_ptr()
        assert bool((got[~mlot.mask_from_labels(LABELS)] == 0).all())


def test_logits_that_are_needed_elsewhere_are_not_overwritten_unseen() -> None:
    scale = torch.ones(V_S, dtype=torch.float64, requires_grad=True)
    logits = STUDENT * scale
    penalty = logits.square().mean()  # made before, so its gradient is computed after the criterion's
    loss = criterion("rank", overwrite_logits=True)(logits)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (penalty + loss).backward()


def test_a_second_backward_pass_over_spoiled_logits_is_refused() -> None:
    student = STUDENT.clone().requires_grad_()
    loss = criterion("rank", overwrite_logits=True)(student * 1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_overwriting_must_be_said_plainly() -> None:
    with pytest.raises(TypeError, match="overwrite_logits: expected"):
        mlot.nn.MultiLevelOTLoss(overwrite_logits=1)  # type: ignore[arg-type]
