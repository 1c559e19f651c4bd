"""Logits divided by their standard deviation, impossible tokens (-inf) left out, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

STD_OFFSET = 1e-4  # added to the standard deviation, as the released code does


def standardizing_divisor(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviation of the possible tokens' logits of each row plus the offset, ``(..., 1)``."""
    _, squares, count = moments(logits.to(dtype))
    deviation = (squares / (count - 1)).sqrt_().add_(STD_OFFSET)
    # Of a single token there is no deviation, and whatever the divisor, its probability is 1.
    return torch.where(count > 1, deviation, 1)


def moments(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, sum of squared differences from it, and number of logits that are not -inf, ``(..., 1)``."""
    impossible = logits.isneginf()
    count = (~impossible).sum(-1, keepdim=True).to(logits.dtype)
    mean = logits.masked_fill(impossible, 0).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = (logits - mean).masked_fill_(impossible, 0).square_().sum(-1, keepdim=True)
    return mean, squares, count


def inner(gradient: Tensor, logits: Tensor) -> Tensor:
    """Inner product of each row's gradient and logits, ``(..., 1)``, over those that are not -inf."""
    return (gradient * logits).masked_fill_(logits.isneginf(), 0).sum(-1, keepdim=True)


def through_standardization(
    gradient: Tensor, logits: Tensor, divisor: Tensor, mean: Tensor, count: Tensor, along: Tensor
) -> Tensor:
    r"""Gradient of z from that of :math:`z / (\mathrm{std}(z) + \delta)`, 0 where z is -inf.

    ``along`` is the inner product of gradient and logits.
    """
    std = divisor - STD_OFFSET
    # At std = 0 the derivative of std is taken as 0, and of a single token there is none.
    slope = along / (divisor.square() * std * (count - 1))
    slope = torch.where((std > 0) & (count > 1), slope, 0)
    result = gradient / divisor - slope * (logits - mean)
    return result.masked_fill_(logits.isneginf() & (count > 0), 0)
