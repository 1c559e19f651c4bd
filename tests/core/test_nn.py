"""Modules: cross-entropy plus distillation, as training loops use them."""

import io

import pytest
import torch
import torch.nn.functional as F

import mlot
import mlot.nn

CONFIG = mlot.MultiLevelOTConfig(k=6)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    student_labels = torch.randint(20, (3, 7), generator=g)
    teacher_labels = torch.randint(30, (3, 9), generator=g)
    student_labels[0, :4] = -100  # a prompt
    student_labels[1, 5:] = -100  # padding
    student_labels[2, 3] = -100  # a gap
    teacher_labels[0, :3] = -100
    teacher_labels[1, 6:] = -100
    return {
        "student_logits": torch.randn(3, 7, 20, generator=g, dtype=torch.float64),
        "teacher_logits": torch.randn(3, 9, 30, generator=g, dtype=torch.float64),
        "student_labels": student_labels,
        "teacher_labels": teacher_labels,
    }


def causal_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


def test_loss_is_equation_21(batch: dict[str, torch.Tensor]) -> None:
    terms = mlot.nn.MultiLevelOTLoss(CONFIG).terms(**batch)
    cross_entropy = causal_cross_entropy(batch["student_logits"], batch["student_labels"])
    ot = mlot.multi_level_ot(
        batch["student_logits"],
        batch["teacher_logits"],
        student_mask=mlot.mask_from_labels(batch["student_labels"]),
        teacher_mask=mlot.mask_from_labels(batch["teacher_labels"]),
        config=CONFIG,
    )
    torch.testing.assert_close(terms.cross_entropy, cross_entropy, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.distillation, ot.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.loss, cross_entropy + 0.15 * ot.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.ot.had, ot.had)
    called = mlot.nn.MultiLevelOTLoss(CONFIG)(**batch)
    assert torch.equal(called, terms.loss)


def test_uld_module(batch: dict[str, torch.Tensor]) -> None:
    terms = mlot.nn.ULDLoss(alpha=0.5).terms(**batch)
    distance = mlot.uld(
        batch["student_logits"],
        batch["teacher_logits"],
        student_mask=mlot.mask_from_labels(batch["student_labels"]),
        teacher_mask=mlot.mask_from_labels(batch["teacher_labels"]),
    )
    torch.testing.assert_close(terms.loss, terms.cross_entropy + 0.5 * distance, rtol=1e-12, atol=0)
    assert terms.ot is None


@pytest.mark.parametrize("kind", [mlot.nn.MultiLevelOTLoss, mlot.nn.ULDLoss])
def test_without_distillation_the_teacher_is_not_looked_at(
    kind: type[torch.nn.Module], batch: dict[str, torch.Tensor]
) -> None:
    batch["teacher_logits"] = torch.full_like(batch["teacher_logits"], torch.nan)
    terms = kind(alpha=0).terms(**batch)
    want = causal_cross_entropy(batch["student_logits"], batch["student_labels"])
    torch.testing.assert_close(terms.loss, want, rtol=1e-12, atol=0)
    assert terms.distillation == 0


@pytest.mark.parametrize("kind", [mlot.nn.MultiLevelOTLoss, mlot.nn.ULDLoss])
def test_accumulation(kind: type[torch.nn.Module], batch: dict[str, torch.Tensor]) -> None:
    """Micro-batches divided by the items of the whole give the whole's gradient, for equal counts of pairs."""
    for name, labels in batch.items():
        if name.endswith("labels"):
            labels[labels == -100] = 0
    batch = {name: v[:, :7] for name, v in batch.items()}
    criterion = kind()
    items = float((batch["student_labels"][:, 1:] != -100).sum())
    leaf = batch["student_logits"].requires_grad_()
    (want,) = torch.autograd.grad(criterion(**batch), leaf)
    total = torch.zeros_like(leaf)
    for n in range(3):
        part = {name: v[n : n + 1] for name, v in batch.items()}
        loss = criterion(**part, num_items_in_batch=torch.tensor(items))
        total += torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(total, want, rtol=1e-10, atol=1e-14)


def test_a_saved_teacher(batch: dict[str, torch.Tensor]) -> None:
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    mask = mlot.mask_from_labels(batch["teacher_labels"])
    traces = mlot.select(batch["teacher_logits"], mask, k=6)
    want = criterion(**batch)
    got = criterion(batch["student_logits"], traces, batch["student_labels"])
    assert torch.equal(got, want)


def test_a_student_without_logits(batch: dict[str, torch.Tensor]) -> None:
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 5, dtype=torch.float64, requires_grad=True)
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    rest = {name: v for name, v in batch.items() if name != "student_logits"}
    head = criterion(mlot.LinearHead(hidden, weight), **rest)
    dense = criterion(hidden @ weight.T, **rest)
    torch.testing.assert_close(head, dense, rtol=1e-10, atol=0)
    for one, two in zip(
        torch.autograd.grad(head, (hidden, weight)), torch.autograd.grad(dense, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-13)


def test_traces_cannot_be_a_student(batch: dict[str, torch.Tensor]) -> None:
    batch["student_logits"] = mlot.select(batch["student_logits"], k=6)
    with pytest.raises(
        TypeError, match="^student_logits: expected logits or a LinearHead, since cross-entropy"
    ):
        mlot.nn.MultiLevelOTLoss(CONFIG)(**batch)


def test_pairs_reach_the_loss(batch: dict[str, torch.Tensor]) -> None:
    none = torch.full((3, 1, 2), -1)
    terms = mlot.nn.MultiLevelOTLoss(CONFIG).terms(**batch, pairs=none)
    assert terms.ot.had == 0
    assert terms.ot.sd > 0


def test_a_batch_without_targets(batch: dict[str, torch.Tensor]) -> None:
    batch["student_labels"][:] = -100
    leaf = batch["student_logits"].requires_grad_()
    for criterion in (mlot.nn.MultiLevelOTLoss(CONFIG), mlot.nn.ULDLoss()):
        loss = criterion(**batch)
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_in_low_precision(dtype: torch.dtype, batch: dict[str, torch.Tensor]) -> None:
    leaf = batch["student_logits"].to(dtype).requires_grad_()
    labels = batch["student_labels"]
    terms = mlot.nn.MultiLevelOTLoss(alpha=0).terms(
        leaf, batch["teacher_logits"], labels, batch["teacher_labels"]
    )
    want = causal_cross_entropy(leaf.detach().double(), labels)
    torch.testing.assert_close(terms.loss.double(), want, rtol=1e-6, atol=0)
    assert torch.autograd.grad(terms.loss, leaf)[0].dtype == dtype


def test_modules_print_and_pickle() -> None:
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG, alpha=0.3)
    assert "alpha=0.3" in repr(criterion)
    assert "k=6" in repr(criterion)
    assert "alpha=1.0" in repr(mlot.nn.ULDLoss())
    stream = io.BytesIO()
    torch.save(criterion, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=False).config == CONFIG


def test_activation_checkpointing(batch: dict[str, torch.Tensor]) -> None:
    """The loss computed again in the backward pass gives the same gradient."""
    from torch.utils.checkpoint import checkpoint

    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    leaf = batch.pop("student_logits").requires_grad_()
    (want,) = torch.autograd.grad(criterion(leaf, **batch), leaf)
    loss = checkpoint(lambda x: criterion(x, **batch), leaf, use_reentrant=False)
    (got,) = torch.autograd.grad(loss, leaf)
    assert torch.equal(got, want)
