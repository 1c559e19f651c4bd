"""How a causal language model makes logits of its hidden states, found by trying it; needs torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mlot.sources import LinearHead

#: Largest output of a head that a model is tried on.
_LARGEST = 200.0

#: Names in configurations of a factor on the logits, and whether it mostly divides.
_SCALES = (
    ("logit_scale", False),
    ("logits_scaling", True),
    ("lm_head_multiplier", False),
    ("output_multiplier", False),
)

#: What configurations call a soft cap.
_CAP = "final_logit_softcapping"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def text_config(model: nn.Module) -> Any:
    """Configuration of a model, or of its part that reads text; ``None`` where there is none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def longest_input(model: nn.Module) -> int | None:
    """How many tokens a model reads at most, as far as its configuration says."""
    positions = getattr(text_config(model), "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


@dataclass(frozen=True)
class HeadShape:
    """What a model does to the product of hidden states and output embedding, as `mlot.LinearHead` has it.

    Attributes:
        softcap: bound on the logits' magnitude, or ``None``.
        scale: factor on the logits, or ``None``.
    """

    softcap: float | None = None
    scale: float | None = None

    def of(self, hidden: Tensor, embedding: nn.Module) -> LinearHead:
        """The head of some hidden states."""
        weight, bias = cast(Tensor, embedding.weight), cast("Tensor | None", getattr(embedding, "bias", None))
        return LinearHead(hidden.to(weight.device), weight, bias, self.softcap, self.scale)


def declared_shapes(model: nn.Module) -> list[HeadShape]:
    """What a model's configuration may mean, the most likely first."""
    text = text_config(model)
    scales = []
    for name, divides in _SCALES:
        factor = _number(getattr(text, name, None))
        if factor is not None and factor != 1:
            scales.append(1 / factor if divides else factor)
    scales += [1 / scale for scale in scales]
    softcap = _number(getattr(text, _CAP, None))
    caps = [None] if softcap is None else [softcap, None]
    return [HeadShape(cap, scale) for cap in caps for scale in (*scales, None)]


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a model whose head's output was replaced by known numbers.

    Attributes:
        hidden: what the head got.
        output: what it made of that.
        known: what was put in place of that.
        logits: what the model made of this.
    """

    hidden: Tensor
    output: Tensor
    known: Tensor
    logits: Tensor

    def shape(self, model: nn.Module, embedding: nn.Module) -> HeadShape | None:
        """The shape that a configuration speaks of and the trial shows; ``None`` if there is none."""
        if not self._linear(embedding):
            return None
        return next((shape for shape in declared_shapes(model) if self._agrees(shape)), None)

    def _linear(self, embedding: nn.Module) -> bool:
        """Whether the head is the linear map of its weight and bias."""
        head = HeadShape().of(self.hidden, embedding)
        bias = None if head.bias is None else head.bias.double()
        expected = nn.functional.linear(head.hidden.double(), head.weight.double(), bias)
        if expected.shape != self.output.shape:
            return False
        # A float32 product of many numbers is off by more than its last bit.
        tolerance = max(4 * torch.finfo(self.output.dtype).eps, 1e-4)
        error = (self.output.double() - expected.to(self.output.device)).abs().max()
        return bool(error <= tolerance * expected.abs().max())

    def _agrees(self, shape: HeadShape) -> bool:
        """Whether scale and soft cap are what the model does to its head's output."""
        expected = self.known.double()
        if shape.scale is not None:
            expected = expected * shape.scale
        if shape.softcap is not None:
            expected = shape.softcap * torch.tanh(expected / shape.softcap)
        return equal(self.logits, expected)


@torch.no_grad()
def try_head(model: nn.Module, embedding: nn.Module, inputs: Mapping[str, Any]) -> Trial | None:
    """Run a model on a few tokens, numbers large enough to show a soft cap in place of its head's output.

    Models scale or cap their logits in code of their own, which this shows.

    Args:
        model: a causal language model, nothing around it, in evaluation mode.
        embedding: its output embedding.
        inputs: what it is run on.

    Returns:
        What was seen; ``None`` if the model does not make logits of one call of its head.
    """
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def replace(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        known = torch.linspace(-_LARGEST, _LARGEST, output.numel(), device=output.device)
        seen.append((given[0], output, known.to(output.dtype).view_as(output)))
        return seen[-1][2]

    hook = embedding.register_forward_hook(replace)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return Trial(*seen[0], logits) if len(seen) == 1 else None


def equal(actual: Tensor, expected: Tensor) -> bool:
    """Whether numbers agree as far as their type resolves."""
    if actual.shape != expected.shape:
        return False
    tolerance = 4 * torch.finfo(actual.dtype).eps
    expected = expected.to(actual.device)
    return torch.allclose(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def _number(value: Any) -> float | None:
    """A factor or a cap, if that is what a configuration has there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value != 0 else None
