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

_STRETCH = 128  # rows that one program sums up


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
    if torch.compiler.is_compiling():
        return False  # the compiler makes kernels of its own
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
    if batch * length:
        bits = top if left_out is None else _bits(left_out, vocabulary)
        _kernels().row_totals[(batch * length,)](
            logits,
            mask.contiguous(),
            bits,
            top,
            totals,
            *logits.stride()[:2],
            batch * length,
            length,
            vocabulary,
            0 if left_out is None else bits.shape[2],
            INVERSE=1 / base,
            INVERSE_EXTRA=1 / extra,
            EXTRA=len(temperatures) == 2,
            DOUBLED=len(temperatures) == 2 and extra == 2 * base,
            LEFT_OUT=left_out is not None,
            BLOCK=block_size(vocabulary, 4096),
            num_warps=8,
        )
    return top, totals


def _bits(tokens: Tensor, vocabulary: int) -> Tensor:
    """A bit for each token of the vocabulary ``(B, T, words)`` int32, set for the listed ones."""
    tokens = tokens.sort(2).values
    repeated = torch.zeros_like(tokens, dtype=torch.bool)
    repeated[..., 1:] = tokens[..., 1:] == tokens[..., :-1]
    one = (~repeated & (tokens >= 0)).to(torch.int32)
    tokens = tokens.clamp(min=0)
    words = one.new_zeros((*tokens.shape[:2], -(-vocabulary // 32)))
    return words.scatter_add_(2, tokens // 32, one << (tokens % 32).to(torch.int32))  # each bit at most once


def column_sums(logits: Tensor, mask: Tensor, top: Tensor, totals: Tensor, temperature: float) -> Tensor:
    """Sums ``(B, V)`` of probabilities over the valid positions."""
    batch, length, vocabulary = logits.shape
    stretches = -(-length // _STRETCH)
    mass = top.new_zeros((batch, stretches, vocabulary))
    if mass.numel():
        block = block_size(vocabulary, 512)
        _kernels().column_sums[(batch, -(-vocabulary // block), stretches)](
            logits,
            mask.contiguous(),
            top,
            totals,
            mass,
            *logits.stride()[:2],
            length,
            vocabulary,
            INVERSE=1 / temperature,
            STRETCH=_STRETCH,
            ROWS=8,
            BLOCK=block,
        )
    return mass.sum(1)


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


def power_of_two(size: int) -> int:
    """Least power of two that is not below a size."""
    return 1 << max(0, size - 1).bit_length()


def block_size(size: int, most: int) -> int:
    """Number of entries that one program takes at a time."""
    return min(power_of_two(size), most)
