"""The one training loop: of teachers, of students before the comparison, and of the students compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_WARM_UP, _WEIGHT_DECAY, _LONGEST_GRADIENT = 0.1, 0.1, 1.0


def order(count: int, wanted: int, seed: int) -> Tensor:
    """Indices below ``count``, each once before any a second time, shuffled by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-wanted // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])[:wanted]


def batches(count: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Indices of each step's windows; the same for the same arguments, whatever the loss."""
    return iter(order(count, batch * steps, seed).split(batch))


def fit(
    model: nn.Module, losses: Callable[[int], Tensor], *, steps: int, learning_rate: float
) -> tuple[float, float]:
    """Train by AdamW, warming up over a tenth of the steps, then along a cosine to 0.

    Args:
        model: what is trained, in place.
        losses: computes the loss of a step from its number, in order.
        steps: of training.
        learning_rate: peak.

    Returns:
        Mean loss over the first and the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _scale(step, steps))
    model.train()
    history = []
    for step in range(steps):
        loss = losses(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _LONGEST_GRADIENT)
        optimizer.step()
        scheduler.step()
        history.append(loss.detach())
    values = torch.stack(history).double()
    some = max(steps // 10, 1)
    return float(values[:some].mean()), float(values[-some:].mean())


def _scale(step: int, steps: int) -> float:
    warm_up = max(1, round(_WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the next token, a mean over all targets; labels unshifted, -100 for none."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
