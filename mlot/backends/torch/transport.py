r"""Sinkhorn with the exact gradient of its truncated iteration, batched.

A round is :math:`u_n = a / (K v_{n-1})`, :math:`v_n = b / (K^\top u_n)` with :math:`K = e^{-C/\lambda}`
and :math:`v_0 = 1` (0 where there is no weight); the plan is :math:`P = \mathrm{diag}(u_N) K
\mathrm{diag}(v_N)`. The backward pass runs the rounds in reverse from the stored scalings. With :math:`f,
g` the gradients of :math:`\log u_n, \log v_n`, one round backwards is

.. math:: y = g v_n / b, \quad f \leftarrow f - u_n (K y), \quad x = f u_n / a, \quad
          g \leftarrow -v_{n-1} (K^\top x), \quad f \leftarrow 0,

and the gradient of :math:`\log K` loses :math:`K \circ (u_n y^\top + x v_{n-1}^\top)`: over all rounds
one product of a ``(T_t, 2N)`` by a ``(2N, T_s)`` matrix. Where :math:`e^{-C/\lambda}` could underflow,
the same is done with logarithms of the scalings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import transport_kernels
from mlot.backends.torch.derivatives import once_differentiable

#: Largest C / λ for which the exponential form is used: e^-40 is far from underflow in float32, and scalings
#: of e^40 from overflow.
SAFE_EXPONENT = 40.0


class Exponential:
    """Half rounds on scalings u, v."""

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> None:
        self.cost, self.epsilon = cost, epsilon
        self.kernel = (cost * (-1 / epsilon)).exp_()
        self.a, self.b = a, b
        self.start = (b > 0).to(b.dtype)

    def rows(self, v: Tensor) -> Tensor:
        return _divide(self.a, _matvec(self.kernel, v))

    def columns(self, u: Tensor) -> Tensor:
        return _divide(self.b, _matvec(self.kernel.mT, u))

    def plan(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.kernel * u[:, :, None]).mul_(v[:, None, :])

    def row_error(self, u: Tensor, v: Tensor) -> Tensor:
        return (u * _matvec(self.kernel, v) - self.a).abs().sum(1)

    def column_error(self, u: Tensor, v: Tensor) -> Tensor:
        return (v * _matvec(self.kernel.mT, u) - self.b).abs().sum(1)

    def back(
        self, us: Tensor, vs: Tensor, log_plan_bar: Tensor, active: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if active is None and torch_kernels.usable(self.cost):
            given = (self.cost, self.a, self.b, self.epsilon, us, vs, log_plan_bar)
            if transport_kernels.small(self.cost):
                return transport_kernels.rounds_back(*given)
            factor, other, log_a_bar, log_b_bar = transport_kernels.rounds_back_large(*given)
            return log_plan_bar - torch.bmm(factor, other).mul_(self.kernel), log_a_bar, log_b_bar
        f, g = log_plan_bar.sum(2), log_plan_bar.sum(1)
        log_a_bar, log_b_bar = torch.zeros_like(f), torch.zeros_like(g)
        left, right = [], []
        for n in reversed(range(len(us))):
            u, v = us[n], vs[n]
            before = vs[n - 1] if n else self.start
            g_here = g if active is None else g * active[n, :, None]
            log_b_bar += g_here
            y = _divide(g_here * v, self.b, self.b)
            f = f - u * _matvec(self.kernel, y)
            f_here = f if active is None else f * active[n, :, None]
            log_a_bar += f_here
            x = _divide(f_here * u, self.a, self.a)
            g = g - g_here - before * _matvec(self.kernel.mT, x)
            f = f - f_here
            left += [u, x]
            right += [y, before]
        product = torch.bmm(torch.stack(left, 2), torch.stack(right, 1))
        return log_plan_bar - product.mul_(self.kernel), log_a_bar, log_b_bar


class Logarithmic:
    """Half rounds on logarithms of the scalings."""

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> None:
        self.log_kernel = cost * (-1 / epsilon)
        self.a, self.b = a, b
        self.start = torch.where(b > 0, 0.0, -torch.inf).to(b.dtype)

    def rows(self, v: Tensor) -> Tensor:
        return _log_divide(self.a, (self.log_kernel + v[:, None, :]).logsumexp(2))

    def columns(self, u: Tensor) -> Tensor:
        return _log_divide(self.b, (self.log_kernel + u[:, :, None]).logsumexp(1))

    def plan(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.log_kernel + u[:, :, None]).add_(v[:, None, :]).exp_()

    def row_error(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.plan(u, v).sum(2) - self.a).abs().sum(1)

    def column_error(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.plan(u, v).sum(1) - self.b).abs().sum(1)

    def back(
        self, us: Tensor, vs: Tensor, log_plan_bar: Tensor, active: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        f, g = log_plan_bar.sum(2), log_plan_bar.sum(1)
        log_a_bar, log_b_bar = torch.zeros_like(f), torch.zeros_like(g)
        log_kernel_bar = log_plan_bar.clone()
        for n in reversed(range(len(us))):
            u, v = us[n], vs[n]
            before = vs[n - 1] if n else self.start
            g_here = g if active is None else g * active[n, :, None]
            log_b_bar += g_here
            flow = self.plan(u, v).mul_(_divide(g_here, self.b, self.b)[:, None, :])
            log_kernel_bar -= flow
            f = f - flow.sum(2)
            f_here = f if active is None else f * active[n, :, None]
            log_a_bar += f_here
            flow = self.plan(u, before).mul_(_divide(f_here, self.a, self.a)[:, :, None])
            log_kernel_bar -= flow
            g = g - g_here - flow.sum(1)
            f = f - f_here
        return log_kernel_bar, log_a_bar, log_b_bar


class Sinkhorn(torch.autograd.Function):
    """Plan, its value, its marginal error and the rounds done."""

    @staticmethod
    def forward(
        ctx: Any,
        cost: Tensor,
        a: Tensor,
        b: Tensor,
        epsilon: float,
        n_iter: int,
        tol: float | None,
        safe: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = (Exponential if safe else Logarithmic)(cost, a, b, epsilon)
        us, vs, rounds = _rounds(half, a, b, n_iter, tol)
        error = half.row_error(us[-1], vs[-1]) + half.column_error(us[-1], vs[-1])
        plan = half.plan(us[-1], vs[-1])
        value = (plan * (cost if safe else where_used(cost, plan))).sum((1, 2))
        ctx.save_for_backward(cost, a, b, us, vs, rounds)
        ctx.epsilon, ctx.safe, ctx.stops = epsilon, safe, tol is not None
        ctx.mark_non_differentiable(error, rounds)
        return plan, value, error, rounds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, plan_bar: Tensor, value_bar: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        cost, a, b, us, vs, rounds = ctx.saved_tensors
        half = (Exponential if ctx.safe else Logarithmic)(cost, a, b, ctx.epsilon)
        plan = half.plan(us[-1], vs[-1])
        if not ctx.safe:
            cost = where_used(cost, plan)
        value_slope = value_bar[:, None, None]
        log_plan_bar = torch.addcmul(plan_bar, value_slope, cost).mul_(plan)
        active = torch.arange(len(us), device=cost.device)[:, None] < rounds if ctx.stops else None
        log_kernel_bar, log_a_bar, log_b_bar = half.back(us, vs, log_plan_bar, active)
        cost_bar = log_kernel_bar.mul_(-1 / ctx.epsilon).addcmul_(plan, value_slope)
        a_bar = _divide(log_a_bar, a, a) if ctx.needs_input_grad[1] else None
        b_bar = _divide(log_b_bar, b, b) if ctx.needs_input_grad[2] else None
        return cost_bar, a_bar, b_bar, None, None, None, None


def _rounds(
    half: Exponential | Logarithmic, a: Tensor, b: Tensor, n_iter: int, tol: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scalings after every round, ``(N, B, T)`` each, and the rounds done, ``(B,)``.

    Without a tolerance nothing here waits for the device. With one, a sequence that has stopped keeps its
    scalings while others go on, so that its result does not depend on theirs.
    """
    if tol is None and isinstance(half, Exponential) and torch_kernels.usable(half.cost):
        us, vs = transport_kernels.rounds(half.cost, a, b, half.epsilon, n_iter)
        return us, vs, ((a > 0).any(1) & (b > 0).any(1)) * n_iter
    return _rounds_one_by_one(half, a, b, n_iter, tol)


def _rounds_one_by_one(
    half: Exponential | Logarithmic, a: Tensor, b: Tensor, n_iter: int, tol: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    us: list[Tensor] = []
    vs: list[Tensor] = []
    v = half.start
    running = (a > 0).any(1) & (b > 0).any(1)
    rounds = running * (0 if tol is not None else n_iter)
    for _ in range(n_iter):
        u, before = half.rows(v), v
        if tol is not None and us:
            u = torch.where(running[:, None], u, us[-1])
        v = half.columns(u)
        if tol is not None:
            v = torch.where(running[:, None], v, before)
        us.append(u)
        vs.append(v)
        if tol is not None:
            rounds += running
            running &= half.row_error(u, v) + half.column_error(u, v) > tol
            if not bool(running.any()):
                break
    return torch.stack(us), torch.stack(vs), rounds


@torch.no_grad()
def exact_plan(cost: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Plans of exact transport, by POT's network simplex on the host, one sequence after the other."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            'backend: exact transport needs POT, which is not installed; pip install "mlot[pot]"'
        ) from error
    plans = torch.zeros_like(cost)
    for plan, matrix, rows, columns in zip(plans, cost, a, b, strict=True):
        if not bool((rows > 0).any()):
            continue
        host = [x.double().cpu().numpy() for x in (rows, columns, matrix)]
        used = host[2][host[0] > 0][:, host[1] > 0]
        if np.isnan(used).any():
            plan.fill_(torch.nan)
            continue
        finite = np.isfinite(host[2])
        # What is infinitely dear is more so than all that is not, but takes mass where nothing else can.
        dearest = 1.0 + 2.0 * np.abs(host[2][finite]).sum()
        host[2] = np.where(finite, host[2], np.where(host[2] > 0, dearest, -dearest))
        host[1] = host[1] * (host[0].sum() / host[1].sum())  # the simplex wants equal totals to the last bit
        solved, log = ot.emd(*host, numItermax=10_000_000, log=True)
        if log["warning"] is not None:
            raise RuntimeError(f"cost: POT's exact solver failed: {log['warning']}")
        plan.copy_(torch.from_numpy(solved))
    return plans


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    # As row times matrix: the other way round, bmm on the host takes ten times as long.
    return torch.bmm(vector[:, None, :], matrix.mT).squeeze(1)


def where_used(cost: Tensor, plan: Tensor) -> Tensor:
    """Cost of the entries that carry mass: no mass costs nothing, even where the cost is infinite."""
    return cost.masked_fill(plan == 0, 0)


def _divide(numerator: Tensor, total: Tensor, weight: Tensor | None = None) -> Tensor:
    """Quotient, 0 where there is no weight (by default, where the numerator is the weight)."""
    has = (numerator if weight is None else weight) > 0
    return torch.where(has, numerator / torch.where(has, total, 1), 0)


def _log_divide(weight: Tensor, log_total: Tensor) -> Tensor:
    return torch.where(weight > 0, weight.log() - log_total, -torch.inf)
