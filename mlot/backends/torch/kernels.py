"""When Triton's kernels stand in for the eager operations, and how they are launched.

They are used for CUDA tensors where Triton is installed, or for any tensors under Triton's interpreter
(``TRITON_INTERPRET=1``), unless the environment variable ``MLOT_KERNELS`` is ``eager``. Standardised logits,
heads, more than one further temperature and targets of the plan from the text take the eager operations.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

#: Largest problem, in entries of the padded cost, that one program holds in registers.
SMALL_PROBLEM = 128 * 128


@cache
def module(name: str) -> Any:
    """A module of kernels, or nothing without Triton."""
    try:
        return import_module(f"mlot.backends.torch.{name}")
    except ImportError:
        return None


def _kernels() -> Any:
    return module("triton_kernels")


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
    logits: Tensor,
    mask: Tensor,
    temperatures: tuple[float, ...],
    dtype: torch.dtype,
    left_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Largest logits ``(B, T)`` and log-sum-exps below them ``(1 or 2, B, T)``; 0 where masked out.

    With tokens that are left out, ``(B, T, n)``, negative ones standing for none, there is one more sum at
    the first temperature, without them.
    """
    batch, length, vocabulary = logits.shape
    top = torch.empty((batch, length), dtype=dtype, device=logits.device)
    totals = top.new_empty((len(temperatures) + (left_out is not None), batch, length))
    base, extra = temperatures[0], temperatures[-1]
    count = 0 if left_out is None else left_out.shape[2]
    if batch * length:
        tokens = top if left_out is None else left_out.to(torch.int32).sort(2).values
        _kernels().row_totals[(batch * length,)](
            logits,
            mask.contiguous(),
            tokens,
            top,
            totals,
            *logits.stride()[:2],
            batch * length,
            length,
            vocabulary,
            count,
            INVERSE=1 / base,
            INVERSE_EXTRA=1 / extra,
            EXTRA=len(temperatures) == 2,
            DOUBLED=len(temperatures) == 2 and extra == 2 * base,
            LEFT_OUT=_power(count) if count else 0,
            BLOCK=block_size(vocabulary, 4096),
            num_warps=8,
        )
    return top, totals


def column_sums(logits: Tensor, mask: Tensor, top: Tensor, totals: Tensor, temperature: float) -> Tensor:
    """Sums ``(B, V)`` of probabilities over the valid positions."""
    batch, length, vocabulary = logits.shape
    mass = top.new_zeros((batch, vocabulary))
    if mass.numel() and length:
        block = block_size(vocabulary, 256)
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
            ROWS=block_size(length, 8),
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
    """Sum of weights times probabilities, one ``(B, T)`` for each total; zero where masked out.

    A total beyond those of the temperatures is the one without some tokens, for which what is written does
    not count. In the type of the logits, and in their memory if they may be overwritten and are contiguous.
    """
    batch, length, vocabulary = logits.shape
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if overwrite and logits.is_contiguous():
        gradient = logits.detach()
    if gradient.numel():
        block = block_size(vocabulary, 4096)
        _kernels().row_gradient[(batch * length, -(-vocabulary // block))](
            logits,
            mask.contiguous(),
            top,
            totals,
            weights.contiguous(),
            gradient,
            *logits.stride()[:2],
            batch * length,
            length,
            vocabulary,
            INVERSE=1 / temperatures[0],
            INVERSE_EXTRA=1 / temperatures[-1],
            EXTRA=len(temperatures) == 2,
            LEFT_OUT=len(totals) > len(temperatures),
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
            HEIGHT=_power(height), WIDTH=_power(width), num_warps=8,
        )  # fmt: skip
    return kernel_bar, a_bar, b_bar


def _power(size: int) -> int:
    """Least power of two that is not below a size."""
    return 1 << max(0, size - 1).bit_length()


def block_size(size: int, most: int) -> int:
    """Number of entries that one program takes at a time."""
    return min(_power(size), most)
