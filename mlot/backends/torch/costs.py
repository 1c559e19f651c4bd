"""L1 and logarithmic costs between sets of points, batched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlot.backends.torch import kernels as torch_kernels
from mlot.backends.torch import rows as torch_rows
from mlot.backends.torch import transport_kernels
from mlot.backends.torch.derivatives import once_differentiable


class PairwiseL1(torch.autograd.Function):
    r"""Cost :math:`\sum_l |x_{il} - y_{jl}|` between the points ``(B, n, d)`` and ``(B, m, d)``.

    The gradient at ties is 0. It is computed in the memory of the cost, whatever ``d``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.contiguous(), y.contiguous()
        cost = transport_kernels.pairwise_l1(x, y) if torch_kernels.usable(x) else torch.cdist(x, y, p=1.0)
        ctx.save_for_backward(x, y)
        return cost

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cost_bar: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        wants_x, wants_y = ctx.needs_input_grad
        x_bar = _point_gradient(x, y, cost_bar) if wants_x else None
        y_bar = _point_gradient(y, x, cost_bar.mT) if wants_y else None
        return x_bar, y_bar


def _point_gradient(x: Tensor, y: Tensor, cost_bar: Tensor) -> Tensor:
    """Gradient of the first set of points."""
    if torch_kernels.usable(x):
        return transport_kernels.pairwise_l1_back(x, y, cost_bar)
    if torch_rows.can_look(x.device):  # on the host
        # The last argument is read only for other norms than p = 1.
        cost_bar = cost_bar.contiguous()
        return torch.ops.aten._cdist_backward(cost_bar, x, y, 1.0, cost_bar)  # type: ignore[no-any-return]
    # The same kernel on accelerators makes an array of the cost's size for every dimension.
    result = torch.empty_like(x)
    for axis in range(x.shape[2]):
        sign = torch.sign(x[:, :, None, axis] - y[:, None, :, axis])
        result[:, :, axis] = sign.mul_(cost_bar).sum(2)
    return result


def log_cost(log_y: Tensor, weights: Tensor) -> Tensor:
    r"""Cost :math:`-\sum_l w_{il} \log y_{jl}` of ``(B, n, d)`` and ``(B, m, d)``; no weight, no cost."""
    # A weight of 0 against a logarithm of minus infinity is 0; any other makes the cost infinite.
    lost = torch.isneginf(log_y)
    cost = -torch.bmm(weights, log_y.masked_fill(lost, 0).mT)
    hit = torch.bmm((weights > 0).to(weights.dtype), lost.mT.to(weights.dtype)) > 0
    return cost.masked_fill(hit, torch.inf)
