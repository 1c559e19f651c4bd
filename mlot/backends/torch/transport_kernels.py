"""How the kernels of costs and transport are launched; see `mlot.backends.torch.kernels` for when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch.kernels import block_size, module, power_of_two

#: Largest problem, in entries of the padded cost, that one program holds in registers.
SMALL_PROBLEM = 128 * 128
_MANY_ENTRIES = 1 << 16  # of a cost, from which on large blocks give enough programs


def _kernels() -> Any:
    return module("triton_transport")


def pairwise_l1(x: Tensor, y: Tensor) -> Tensor:
    """L1 distances ``(B, n, m)`` of the points ``(B, n, d)`` and ``(B, m, d)``."""
    (batch, height, depth), width = x.shape, y.shape[1]
    cost = x.new_empty((batch, height, width))
    if cost.numel():
        size = 64 if height * width >= _MANY_ENTRIES else 16
        _kernels().pairwise_l1[(batch, -(-height // size), -(-width // size))](
            x.mT.contiguous(), y.mT.contiguous(), cost, height, width, depth, ROWS=size, COLUMNS=size
        )
    return cost


def pairwise_l1_back(x: Tensor, y: Tensor, cost_bar: Tensor) -> Tensor:
    """Gradient of the first set of points, given that of the cost ``(B, n, m)``."""
    (batch, height, depth), width = x.shape, y.shape[1]
    gradient = torch.empty_like(x)
    if gradient.numel():
        rows, axes, columns = 16, min(power_of_two(depth), 16), 16
        _kernels().pairwise_l1_back[(batch, -(-height // rows), -(-depth // axes))](
            x, y, cost_bar, gradient, *cost_bar.stride(), height, width, depth,
            ROWS=rows, AXES=axes, COLUMNS=columns,
        )  # fmt: skip
    return gradient


def small(cost: Tensor) -> bool:
    """Whether one program can hold a problem."""
    return power_of_two(cost.shape[1]) * power_of_two(cost.shape[2]) <= SMALL_PROBLEM


def rounds(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, n_iter: int) -> tuple[Tensor, Tensor]:
    """Scalings after every round, ``(N, B, T_t)`` and ``(N, B, T_s)``, in the exponential form."""
    batch, height, width = cost.shape
    cost, a, b = cost.contiguous(), a.contiguous(), b.contiguous()
    us, vs = a.new_empty((n_iter, batch, height)), b.new_empty((n_iter, batch, width))
    if not cost.numel():
        return us.zero_(), vs.zero_()
    if small(cost):
        _kernels().sinkhorn_rounds[(batch,)](
            cost, a, b, us, vs, batch, height, width, n_iter, INVERSE=1 / epsilon,
            HEIGHT=power_of_two(height), WIDTH=power_of_two(width), num_warps=8,
        )  # fmt: skip
        return us, vs
    v = (b > 0).to(b.dtype)
    by_rows = (*cost.stride(), height, width)
    by_columns = (cost.stride(0), cost.stride(2), cost.stride(1), width, height)
    for n in range(n_iter):
        for weight, other, out, layout in ((a, v, us[n], by_rows), (b, us[n], vs[n], by_columns)):
            _kernels().sinkhorn_half_round[(batch, -(-layout[3] // 16))](
                cost,
                weight,
                other,
                out,
                *layout,
                INVERSE=1 / epsilon,
                ROWS=16,
                BLOCK=block_size(layout[4], 128),
            )
        v = vs[n]
    return us, vs


def rounds_back(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, us: Tensor, vs: Tensor, log_plan_bar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the logarithms of kernel, a and b, of small problems."""
    batch, height, width = cost.shape
    cost, log_plan_bar = cost.contiguous(), log_plan_bar.contiguous()
    kernel_bar, a_bar, b_bar = torch.empty_like(cost), torch.empty_like(us[0]), torch.empty_like(vs[0])
    if cost.numel():
        _kernels().sinkhorn_rounds_back[(batch,)](
            cost, a.contiguous(), b.contiguous(), us, vs, log_plan_bar, kernel_bar, a_bar, b_bar,
            batch, height, width, len(us), INVERSE=1 / epsilon,
            HEIGHT=power_of_two(height), WIDTH=power_of_two(width), num_warps=8,
        )  # fmt: skip
    return kernel_bar, a_bar, b_bar


def rounds_back_large(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, us: Tensor, vs: Tensor, log_plan_bar: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the gradient of the log-kernel loses over the kernel, and the gradients of a and b.

    The first as factors ``(B, T_t, 2 N)`` and ``(B, 2 N, T_s)``; half round by half round, the kernel made
    again as the cost is read.
    """
    (batch, height, width), n_iter = cost.shape, len(us)
    cost, a, b = cost.contiguous(), a.contiguous(), b.contiguous()
    zeros = torch.zeros_like(us[0]), torch.zeros_like(vs[0])
    f, fs = log_plan_bar.sum(2), torch.empty_like(us)
    gs = vs.new_empty((n_iter + 1, batch, width))  # of each round, and what is left before the first
    gs[n_iter] = log_plan_bar.sum(1)
    x, y = torch.empty_like(us), torch.empty_like(vs)
    before = torch.cat([(b > 0).to(b.dtype)[None], vs[:-1]])
    by_rows = (*cost.stride(), height, width)
    by_columns = (cost.stride(0), cost.stride(2), cost.stride(1), width, height)
    for n in reversed(range(n_iter)):
        half_rounds = (
            (f, us[n], gs[n + 1], vs[n], b, y[n], fs[n], by_rows),
            (zeros[1], before[n], fs[n], us[n], a, x[n], gs[n], by_columns),
        )
        for *arrays, layout in half_rounds:
            _kernels().sinkhorn_half_round_back[(batch, -(-layout[3] // 16))](
                cost, *arrays, *layout, INVERSE=1 / epsilon, ROWS=16, BLOCK=block_size(layout[4], 128)
            )
        f = zeros[0]
    factors = torch.cat([us, x]).permute(1, 2, 0), torch.cat([y, before]).transpose(0, 1)
    return *factors, fs.sum(0), gs[1:].sum(0)
