"""Random predictions that resemble a language model's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_SPREAD = 2.0  # standard deviation of the logits about their column's mean


class Predictions(NamedTuple):
    """Hidden states ``(B, T, D)``, the output head's weight ``(V, D)``, and the logits ``(B, T, V)``."""

    hidden: Tensor
    weight: Tensor
    logits: Tensor


def predictions(
    batch: int,
    length: int,
    vocabulary: int,
    width: int,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Predictions:
    """Logits as the product of random hidden states and a random head.

    Columns differ in mass as words do, by Zipf's law: the first hidden coordinate is 1, and the head's first
    column holds minus the logarithm of a random rank.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn((batch, length, width), generator=generator, dtype=torch.float64)
    weight = torch.randn((vocabulary, width), generator=generator, dtype=torch.float64)
    weight *= _SPREAD / max(width - 1, 1) ** 0.5
    hidden[..., 0] = 1.0
    weight[:, 0] = -(torch.randperm(vocabulary, generator=generator) + 1.0).log()
    hidden, weight = hidden.to(device, dtype), weight.to(device, dtype)
    return Predictions(hidden, weight, hidden @ weight.mT)


def traces(
    batch: int, length: int, k: int, *, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(B, T, k)`` of matched columns, student's and teacher's, alike but not equal.

    They are those of k columns beside one that stands for the rest of the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, k + 1)
    common, first, second = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    bias = -torch.arange(1, k + 2, dtype=torch.float64).log()
    sides = (bias + _SPREAD * common + noise for noise in (first, second))
    student, teacher = (side.log_softmax(-1)[..., :k].contiguous().to(device, dtype) for side in sides)
    return student, teacher
