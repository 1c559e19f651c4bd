r"""Exponentials of logits, the expensive part of a walk over a vocabulary, in buffers that stay in cache.

With :math:`y` the logits (standardised or not) and :math:`m` a reference not below them, everything is made
of :math:`e^{(y - m)/\tau}`. For a temperature and its half one exponential serves both, since
:math:`e^{(y-m)/\tau} = (e^{(y-m)/2\tau})^2`. Broadcasting additions and products run at the speed of memory
on the host, which ``softmax`` and broadcasting ``addcmul`` do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def paired(temperatures: Sequence[float], places: Sequence[int]) -> list[tuple[int, int | None]]:
    """Places of some temperatures, the highest first, each with that of its half if there is one."""
    left = sorted(places, key=lambda n: -temperatures[n])
    pairs: list[tuple[int, int | None]] = []
    while left:
        n = left.pop(0)
        half = next((m for m in left if 2 * temperatures[m] == temperatures[n]), None)
        if half is not None:
            left.remove(half)
        pairs.append((n, half))
    return pairs


def exponential(
    logits: Tensor, reference: Tensor, divisor: Tensor | None, temperature: float, out: Tensor
) -> Tensor:
    """Write ``exp((y - m) / temperature)`` of logits ``(..., V)``, m and divisor being ``(..., 1)``."""
    factor = 1 / temperature
    exact = math.frexp(factor)[0] == 0.5 and factor <= 1  # a product that only moves the exponent
    if exact and divisor is None and logits.dtype == out.dtype:
        torch.add(reference * -factor, logits, alpha=factor, out=out)
        return out.exp_()
    if logits.dtype == out.dtype:
        torch.sub(logits, reference, out=out)
    else:
        out.copy_(logits).sub_(reference)
    if divisor is not None:
        out.div_(divisor)
    if factor != 1:
        out.mul_(factor)
    return out.exp_()


class Listed:
    """Where the listed tokens of each position are, and how to leave them out; negative ids are none.

    A place without a token points at another one of its row, or, in a row without any, at column 0.
    """

    def __init__(self, ids: Tensor) -> None:
        self.any = (ids >= 0).any(-1, keepdim=True)
        self.index = torch.where(ids < 0, ids.amax(-1, keepdim=True), ids).clamp_(min=0)

    def sum_without(self, powers: Tensor, where: tuple[slice, slice]) -> Tensor:
        """Sum of each row of a block but for the listed tokens."""
        index = self.index[where]
        own = powers.gather(-1, index)
        powers.scatter_(-1, index, torch.where(self.any[where], 0, own))
        total = powers.sum(-1)
        powers.scatter_(-1, index, own)
        return total


def weighted_exponentials(
    logits: Tensor,
    reference: Tensor,
    divisor: Tensor | None,
    temperatures: Sequence[float],
    weights: Tensor,
    places: Sequence[int],
    scratch: Tensor,
    out: Tensor,
) -> Tensor:
    r"""Write :math:`\sum_n w_n\, e^{(y - m)/\tau_n}` over some places; weights are ``(1 + n, ..., 1)``.

    ``out`` may be the memory of the logits if there is but one pair of places.
    """
    pairs = paired(temperatures, places)
    for number, (n, half) in enumerate(pairs):
        power = exponential(logits, reference, divisor, temperatures[n], scratch)
        target = out if number == 0 else torch.empty_like(out)
        if half is None:
            torch.mul(power, weights[n], out=target)
        else:
            torch.mul(power, weights[half], out=target).add_(weights[n]).mul_(power)
        if number:
            out.add_(target)
    return out if pairs else out.zero_()
