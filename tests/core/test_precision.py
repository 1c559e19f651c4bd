"""Low precision inside an error budget, autocast, and mixtures of types."""

from itertools import product

import numpy as np
import pytest
import torch

import mlot
import mlot.nn
from problems import make_problem, random_mask, terms_in_autocast

CONFIG = mlot.MultiLevelOTConfig(k=8)
LOW = [torch.bfloat16, torch.float16]


def naive_loss(student: torch.Tensor, teacher: torch.Tensor, result: mlot.MultiLevelOTResult) -> torch.Tensor:
    """The same terms on the same columns, everything in the type of the logits."""
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    at = {
        "s": result.student_columns[:, None, :].expand(-1, student.shape[1], -1),
        "t": result.teacher_columns[:, None, :].expand(-1, teacher.shape[1], -1),
    }
    s, t = log_s.gather(2, at["s"]), log_t.gather(2, at["t"])
    rows = min(s.shape[1], t.shape[1])
    had = (t[:, :rows].exp() - s[:, :rows].exp()).abs().sum((1, 2))
    sl = -(t[:, :rows].exp() * s[:, :rows]).sum((1, 2))
    soft_s = (student / 2).softmax(-1).gather(2, at["s"])
    soft_t = (teacher / 2).softmax(-1).gather(2, at["t"])
    cost = (soft_t[:, :, None] - soft_s[:, None]).abs().sum(-1)
    plan = (-cost / 0.1).exp()
    for _ in range(20):
        plan = plan / plan.sum(2, keepdim=True) / cost.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / cost.shape[2]
    sd = student.shape[1] * (plan * cost).sum((1, 2))
    return had / rows + 0.1 * sl / rows + 0.1 * sd / student.shape[1]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("matching", ["optimal", "rank"])
def test_loss_and_gradient_within_the_error_budget(dtype: torch.dtype, matching: str) -> None:
    """|ours - truth| <= |naive in low precision - truth| + one rounding of the gradient to that precision."""
    config = mlot.MultiLevelOTConfig(k=8, matching=matching)
    for seed in range(8):
        problem = make_problem(seed, batch=1, t_s=12, t_t=12, v_s=100, v_t=120)
        student, teacher = (torch.from_numpy(x).to(dtype) for x in (problem.student, problem.teacher))
        ours = student.clone().requires_grad_()
        result = mlot.multi_level_ot(ours, teacher, config=config)
        assert result.loss.dtype == torch.float32
        (gradient,) = torch.autograd.grad(result.loss, ours)
        assert gradient.dtype == dtype

        exact = student.double().requires_grad_()
        truth = mlot.multi_level_ot(exact, teacher.double(), config=config)
        assert torch.equal(truth.student_columns, result.student_columns)
        (true_gradient,) = torch.autograd.grad(truth.loss, exact)

        rough = student.clone().requires_grad_()
        naive = naive_loss(rough, teacher, result).sum()
        (naive_gradient,) = torch.autograd.grad(naive, rough)

        error = abs(result.loss.item() - truth.loss.item())
        assert error <= abs(naive.item() - truth.loss.item()) + 1e-5 * truth.loss.item()
        assert error <= 1e-5 * truth.loss.item()  # the inputs are exact, so float32 is all that is lost
        eps = torch.finfo(dtype).eps
        ours_off = (gradient.double() - true_gradient).norm()
        naive_off = (naive_gradient.double() - true_gradient).norm()
        assert ours_off <= naive_off + eps * true_gradient.norm()
        assert ours_off <= eps * true_gradient.norm()


@pytest.mark.parametrize("dtype", LOW)
def test_linear_head_does_not_round_logits(dtype: torch.dtype) -> None:
    """Hidden states and weights in low precision, logits in float32: closer to the truth than dense logits are."""
    rng = np.random.default_rng(0)
    hidden, weight = (torch.from_numpy(rng.normal(size=s)).to(dtype) for s in ((2, 9, 16), (70, 16)))
    teacher = torch.from_numpy(rng.normal(size=(2, 9, 50)))
    truth = mlot.multi_level_ot(mlot.LinearHead(hidden.double(), weight.double()), teacher, config=CONFIG)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    head = mlot.multi_level_ot(mlot.LinearHead(*leaves), teacher.float(), config=CONFIG)
    dense = mlot.multi_level_ot(hidden @ weight.T, teacher.float(), config=CONFIG)
    error = abs(head.loss.item() - truth.loss.item())
    assert error <= abs(dense.loss.item() - truth.loss.item()) + 1e-6 * truth.loss.item()
    assert error <= 1e-5 * truth.loss.item()
    gradients = torch.autograd.grad(head.loss, leaves)
    assert [g.dtype for g in gradients] == [dtype, dtype]


@pytest.mark.parametrize("source", ["dense", "head"])
def test_autocast_changes_nothing(source: str) -> None:
    rng = np.random.default_rng(1)
    hidden, weight = (torch.from_numpy(rng.normal(size=s)).float() for s in ((2, 9, 16), (70, 16)))
    teacher = torch.from_numpy(rng.normal(size=(2, 7, 50))).float()
    labels, teacher_labels = torch.randint(70, (2, 9)), torch.randint(50, (2, 7))
    criterion = mlot.nn.MultiLevelOTLoss(CONFIG)
    values = []
    for enabled in (False, True):
        leaf = hidden.clone().requires_grad_()
        student = mlot.LinearHead(leaf, weight) if source == "head" else leaf @ weight.T
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = criterion(student, teacher, labels, teacher_labels)
            loss = loss + mlot.uld(student, teacher)
        (gradient,) = torch.autograd.grad(loss, leaf)
        values.append((loss.detach(), gradient))
    for one, two in zip(*values, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("matching", ["optimal", "greedy", "rank", "sinkhorn"])
@pytest.mark.parametrize("kind", ["l1", "log"])
def test_autocast_changes_no_term(matching: str, kind: str) -> None:
    """Each guard by itself: matrix products are what autocast would round, in the costs and the soft plan."""
    for one, two in zip(*(terms_in_autocast(matching, kind, on) for on in (False, True)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("student_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("teacher_dtype", [torch.float16, torch.float32, torch.float64])
def test_models_of_different_types(student_dtype: torch.dtype, teacher_dtype: torch.dtype) -> None:
    """A teacher may be kept in a type of its own."""
    problem = make_problem(2, masks="gaps")
    p = problem.to("torch")
    p = p.with_(student=p.student.to(student_dtype).requires_grad_(), teacher=p.teacher.to(teacher_dtype))
    want = mlot.multi_level_ot(
        **p.with_(student=p.student.detach().double(), teacher=p.teacher.double()).arguments(), config=CONFIG
    )
    for matching, kind in product(("optimal", "greedy", "rank", "sinkhorn"), ("l1", "log")):
        config = mlot.MultiLevelOTConfig(k=8, matching=matching, sequence_cost=kind, token_cost=kind)
        result = mlot.multi_level_ot(**p.arguments(), config=config)
        result.loss.backward()
        assert p.student.grad.dtype == student_dtype
        if (matching, kind) == ("optimal", "l1"):
            torch.testing.assert_close(result.loss.double(), want.loss, rtol=1e-5, atol=0)
    assert torch.isfinite(mlot.uld(**p.arguments()))


def test_large_logits_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(rng.normal(size=(1, 6, 40))) for _ in range(2))
    for scale in (1e3, 1e4):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            leaf = (scale * student).clamp(-6e4, 6e4).to(dtype).requires_grad_()
            result = mlot.multi_level_ot(leaf, (scale * teacher).clamp(-6e4, 6e4).to(dtype), config=CONFIG)
            result.loss.backward()
            assert torch.isfinite(result.loss)
            assert torch.isfinite(leaf.grad).all()


def test_no_grad_and_inference_mode() -> None:
    p = make_problem(0, masks="right").to("torch")
    want = mlot.multi_level_ot(**p.arguments()).loss
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            got = mlot.multi_level_ot(**p.with_(student=p.student.clone()).arguments()).loss
        assert not got.requires_grad
        assert torch.equal(want, got)


def test_strided_inputs() -> None:
    """Views that are not contiguous, as slices of a model's logits are."""
    p = make_problem(0, batch=2, t_s=6, t_t=7).to("torch")
    wide = torch.zeros((2, 8, 30), dtype=torch.float64)
    wide[:, 1:7, 3:26] = p.student
    view = wide[:, 1:7, 3:26].requires_grad_()
    copied = p.student.clone().requires_grad_()
    turned = p.teacher.transpose(0, 1).contiguous().transpose(0, 1)
    want = mlot.multi_level_ot(copied, p.teacher).loss
    got = mlot.multi_level_ot(view, turned).loss
    assert torch.equal(want, got)
    assert torch.equal(*(torch.autograd.grad(x, y)[0] for x, y in ((want, copied), (got, view))))


def test_results_repeat_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    p = make_problem(4, batch=3, t_s=20, t_t=17, v_s=500, v_t=300)
    p = p.with_(student_mask=random_mask(rng, 3, 20, "gaps")).to("torch", torch.float32)
    values = []
    for _ in range(3):
        leaf = p.student.clone().requires_grad_()
        loss = mlot.multi_level_ot(**p.with_(student=leaf).arguments()).loss
        values.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    for later in values[1:]:
        for one, two in zip(values[0], later, strict=True):
            assert torch.equal(one, two)
