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
