"""The losses written down in plain PyTorch, straight from the equations, with autograd for the gradient.

What somebody would write who has the paper and no library: whole vocabularies are turned into probabilities,
pairwise differences are broadcast, and the Sinkhorn rounds are unrolled. All positions count, and student and
teacher have the same number of them. Equation numbers are those of Cui et al., AAAI 2025.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import pad

Solver = Callable[[Tensor, float, int], Tensor]


def multi_level_ot(
    student: Tensor,
    teacher: Tensor,
    *,
    k: int = 50,
    pool: int | None = None,
    sl_weight: float = 0.1,
    sd_weight: float = 0.1,
    epsilon: float = 0.1,
    rounds: int = 20,
) -> Tensor:
    """HAD + 0.1 SL + 0.1 SD (eqs. 10-20) per position.

    With a ``pool``, columns are matched by the assignment of least cost among that many of the student's
    heaviest (eq. 11); without one, by rank.
    """
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    s, t = student.softmax(-1), teacher.softmax(-1)
    teacher_columns = t.sum(1).topk(k).indices  # (10), (12)
    student_columns = s.sum(1).topk(k if pool is None else pool).indices
    if pool is not None:
        student_columns = _matched(_taken(s, student_columns), _taken(t, teacher_columns), student_columns)
    s_kept, t_kept = _taken(s, student_columns), _taken(t, teacher_columns)
    had = (t_kept - s_kept).abs().sum()  # (14)
    sl = -(t_kept * _taken(student.log_softmax(-1), student_columns)).sum()  # (16)
    s_soft = _taken((student / 2).softmax(-1), student_columns)
    t_soft = _taken((teacher / 2).softmax(-1), teacher_columns)
    cost = (t_soft[:, :, None] - s_soft[:, None, :]).abs().sum(-1)
    sd = student.shape[1] * (rescaled_plan(cost, epsilon, rounds) * cost).sum()  # (17)-(20)
    return (had + sl_weight * sl + sd_weight * sd) / (student.shape[0] * student.shape[1])


def released(student: Tensor, teacher: Tensor, *, k: int = 50) -> Tensor:
    """What the paper's released code computes, by its own way: whole vocabularies are reordered, then cut.

    Every position but the first is an answer, predicted by the position before it.
    """
    longest = student.shape[1] - 1
    kept = []
    for logits, rows in ((student, longest - 1), (teacher, longest)):
        logits = _at_least_float32(logits)
        probs = (logits / (logits.std(-1, keepdim=True) + 1e-4)).softmax(-1)
        moved = torch.cat([probs[:, :rows], torch.zeros_like(probs[:, rows:])], 1)[:, :longest]
        kept.append(moved[:, :, moved.sum((0, 1)).argsort(descending=True)][:, :, :k])
    s, t = kept
    had = (s - t)[:, : longest - 1].abs().sum(-1).mean()
    sl = -(s.softmax(-1) * t.log_softmax(-1)).sum(-1).mean()
    soft_s, soft_t = (s / 2).softmax(-1), (t / 2).softmax(-1)
    cost = (soft_t[:, :, None] - soft_s[:, None, :]).abs().sum(-1)
    kernel = (-cost / 0.1).exp()
    for _ in range(10):
        kernel = kernel / kernel.sum(2, keepdim=True)
        kernel = kernel / kernel.sum(1, keepdim=True)
    return had + 0.1 * sl + 0.1 * 0.001 * (kernel * cost).sum()


def uld(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of sorted probabilities per position (Boizard et al.)."""
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    s = student.softmax(-1).sort(dim=-1, descending=True).values
    t = teacher.softmax(-1).sort(dim=-1, descending=True).values
    width = max(s.shape[-1], t.shape[-1])
    s, t = pad(s, (0, width - s.shape[-1])), pad(t, (0, width - t.shape[-1]))
    return (t - s).abs().sum() / (student.shape[0] * student.shape[1])


def rescaled_plan(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Plan ``(B, T_t, T_s)`` by rescaling the kernel's rows, then its columns (eqs. 17-20, literally)."""
    plan = (-cost / epsilon).exp()
    for _ in range(rounds):
        plan = plan / plan.sum(2, keepdim=True) / cost.shape[1]
        plan = plan / plan.sum(1, keepdim=True) / cost.shape[2]
    return plan


def scaled_kernel(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
    """The same plan as diag(u) K diag(v), with rounds on the scalings u and v alone."""
    kernel = (-cost / epsilon).exp()
    v = torch.ones_like(cost[:, :1, :]).mT
    for _ in range(rounds):
        u = 1 / cost.shape[1] / (kernel @ v)
        v = 1 / cost.shape[2] / (kernel.mT @ u)
    return u * kernel * v.mT


def log_potentials(cost: Tensor, epsilon: float, rounds: int) -> Tensor:
    """The same plan with rounds on the logarithms of the scalings."""
    log_kernel = -cost / epsilon
    log_a, log_b = (-torch.tensor(float(n), dtype=cost.dtype).log() for n in cost.shape[1:])
    g = torch.zeros_like(cost[:, :1, :])
    for _ in range(rounds):
        f = log_a - (log_kernel + g).logsumexp(2, keepdim=True)
        g = log_b - (log_kernel + f).logsumexp(1, keepdim=True)
    return (f + log_kernel + g).exp()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _taken(values: Tensor, columns: Tensor) -> Tensor:
    """Values ``(B, T, k)`` of columns ``(B, k)``."""
    return values.gather(2, columns[:, None, :].expand(-1, values.shape[1], -1))


@torch.no_grad()
def _matched(candidates: Tensor, teacher: Tensor, columns: Tensor) -> Tensor:
    """Columns ``(B, k)`` of the cheapest assignment to the teacher's."""
    cost = (teacher[:, :, :, None] - candidates[:, :, None, :]).abs().sum(1)
    chosen = [torch.from_numpy(linear_sum_assignment(matrix)[1]) for matrix in cost.cpu().numpy()]
    return columns.gather(1, torch.stack(chosen).to(columns.device))
