"""When Triton's kernels stand in for the eager operations, and how they are launched.

They are used for CUDA tensors where Triton is installed, or for any tensors under Triton's interpreter
(``TRITON_INTERPRET=1``), unless the environment variable ``MLOT_KERNELS`` is ``eager``. Standardised logits,
heads, more than one further temperature and the student's side of the plan from the text take the eager
operations.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Largest problem, in entries of the padded cost, that one program holds in registers.
SMALL_PROBLEM = 128 * 128


@cache
def _kernels() -> Any:
    """The module of kernels, or nothing without Triton."""
    try:
        from mlot.backends.torch import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def usable(tensor: Tensor) -> bool:
    """Whether kernels serve a tensor.

    Raises:
        ValueError: ``MLOT_KERNELS`` is neither ``auto`` nor ``eager``.
    """
    wish = os.environ.get("MLOT_KERNELS", "auto")
    if wish not in ("auto", "eager"):
        raise ValueError(f"MLOT_KERNELS: expected 'auto' or 'eager', got {wish!r}")
    if wish == "eager":
        return False
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    return _kernels() is not None


def row_totals(
    logits: Tensor, mask: Tensor, temperatures: tuple[float, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Largest logits ``(B, T)`` and log-sum-exps below them ``(1 or 2, B, T)``; 0 where masked out."""
    batch, length, vocabulary = logits.shape
    top = torch.empty((batch, length), dtype=dtype, device=logits.device)
    totals = top.new_empty((len(temperatures), batch, length))
    base, extra = temperatures[0], temperatures[-1]
    if batch * length:
        _kernels().row_totals[(batch * length,)](
            logits,
            mask.contiguous(),
            top,
            totals,
            *logits.stride()[:2],
            batch * length,
            length,
            vocabulary,
            INVERSE=1 / base,
            INVERSE_EXTRA=1 / extra,
            EXTRA=len(temperatures) == 2,
            DOUBLED=len(temperatures) == 2 and extra == 2 * base,
            BLOCK=_block(vocabulary, 4096),
            num_warps=8,
        )
    return top, totals


def column_sums(logits: Tensor, mask: Tensor, top: Tensor, totals: Tensor, temperature: float) -> Tensor:
    """Sums ``(B, V)`` of probabilities over the valid positions."""
    batch, length, vocabulary = logits.shape
    mass = top.new_zeros((batch, vocabulary))
    if mass.numel() and length:
        block = _block(vocabulary, 256)
        _kernels().column_sums[(batch, -(-vocabulary // block))](
            logits,
            mask.contiguous(),
            top,
            totals,
            mass,
            *logits.stride()[:2],
            length,
            vocabulary,
            INVERSE=1 / temperature,
            ROWS=_block(length, 8),
            BLOCK=block,
        )
    return mass


def row_gradient(
    logits: Tensor,
    mask: Tensor,
    top: Tensor,
    totals: Tensor,
    weights: Tensor,
    temperatures: tuple[float, ...],
    *,
    overwrite: bool,
) -> Tensor:
    """Sum over the temperatures of weights ``(1 or 2, B, T)`` times probabilities; zero where masked out.

    In the type of the logits, and in their memory if they may be overwritten and are contiguous.
    """
    batch, length, vocabulary = logits.shape
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if overwrite and logits.is_contiguous():
        gradient = logits.detach()
    if gradient.numel():
        block = _block(vocabulary, 4096)
        _kernels().row_gradient[(batch * length, -(-vocabulary // block))](
            logits,
            mask.contiguous(),
            top,
            totals,
            weights[0].contiguous(),
            weights[-1].contiguous(),
            gradient,
            *logits.stride()[:2],
            batch * length,
            length,
            vocabulary,
            INVERSE=1 / temperatures[0],
            INVERSE_EXTRA=1 / temperatures[-1],
            EXTRA=len(temperatures) == 2,
            BLOCK=block,
            num_warps=8,
        )
    return gradient


def small(cost: Tensor) -> bool:
    """Whether one program can hold a problem."""
    return _power(cost.shape[1]) * _power(cost.shape[2]) <= SMALL_PROBLEM


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
            HEIGHT=_power(height), WIDTH=_power(width), num_warps=8,
        )  # fmt: skip
        return us, vs
    v = (b > 0).to(b.dtype)
    by_rows = (*cost.stride(), height, width)
    by_columns = (cost.stride(0), cost.stride(2), cost.stride(1), width, height)
    for n in range(n_iter):
        for weight, other, out, layout in ((a, v, us[n], by_rows), (b, us[n], vs[n], by_columns)):
            _kernels().sinkhorn_half_round[(batch, -(-layout[3] // 16))](
                cost, weight, other, out, *layout, INVERSE=1 / epsilon, ROWS=16, BLOCK=_block(layout[4], 128)
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
            HEIGHT=_power(height), WIDTH=_power(width), num_warps=8,
        )  # fmt: skip
    return kernel_bar, a_bar, b_bar


def _power(size: int) -> int:
    """Least power of two that is not below a size."""
    return 1 << max(0, size - 1).bit_length()


def _block(size: int, most: int) -> int:
    return min(_power(size), most)
