"""Whether contestants compute the same thing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contestant import Contestant


class Tolerance(NamedTuple):
    """Largest relative differences of values and of gradients that count as agreement."""

    value: float
    gradient: float


#: By the type of the inputs. A softmax over 128,000 columns in float32 is itself off by 1e-6, and lower
#: precisions round the gradient.
TOLERANCES = {
    torch.float64: Tolerance(1e-10, 1e-9),
    torch.float32: Tolerance(5e-5, 1e-3),
    torch.bfloat16: Tolerance(1e-2, 2e-2),
    torch.float16: Tolerance(1e-2, 2e-2),
}


class Outcome(NamedTuple):
    """Value and gradients of one run."""

    value: Tensor
    gradients: tuple[Tensor, ...]


def run_once(contestant: Contestant) -> Outcome:
    """Forward and backward, where a gradient is wanted."""
    assert contestant.forward is not None
    value = contestant.forward()
    if not contestant.wanted:
        return Outcome(value.detach(), ())
    gradients = torch.autograd.grad(value.sum(), contestant.wanted)
    return Outcome(value.detach(), gradients)


def norm(tensors: tuple[Tensor, ...]) -> float:
    """Euclidean norm over several tensors, summed up in float64."""
    if not tensors:
        return 0.0
    parts = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def differences(found: Outcome, reference: Outcome) -> tuple[float, float]:
    """Largest relative difference of values, and relative norm of the difference of gradients.

    Infinite or NaN where the shapes or the numbers do not allow a comparison.
    """
    if found.value.shape != reference.value.shape:
        return float("inf"), float("inf")
    value, expected = found.value.double(), reference.value.double()
    by_value = float(((value - expected).abs() / expected.abs()).max())
    apart = tuple(x.to(y.dtype) - y for x, y in zip(found.gradients, reference.gradients, strict=True))
    return by_value, norm(apart) / norm(reference.gradients)


def within(found: tuple[float, float], dtype: torch.dtype) -> bool:
    """Whether differences are within the tolerance for inputs of a type; NaN is not."""
    by_value, by_gradient = found
    tolerance = TOLERANCES[dtype]
    return by_value <= tolerance.value and by_gradient <= tolerance.gradient
