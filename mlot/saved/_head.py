"""How a model makes logits of its hidden states, so that they need not be formed where that is plain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlot.sources import LinearHead, Predictions

#: Largest logit that a model's function of its logits is tried on.
_LARGEST = 200.0

#: What configurations call a factor on the logits, or a divisor, and a soft cap.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_CAP = "final_logit_softcapping"


@dataclass(frozen=True)
class TeacherHead:
    """How to get predictions from a model: by its hidden states and head, or, without a head, by its logits.

    Attributes:
        model: a causal language model.
        vocab_size: width of its logits.
        head: its output embedding, if its logits are a function that `mlot.LinearHead` has.
        scale: factor on them, or ``None``.
        softcap: soft cap of them, or ``None``.
    """

    model: Any
    vocab_size: int
    head: nn.Linear | None = None
    scale: float | None = None
    softcap: float | None = None

    def __call__(self, ids: Tensor, attention_mask: Tensor) -> Predictions:
        """Predictions ``(B, T, V)`` for token ids ``(B, T)``."""
        if self.head is None:
            return self.model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
        hidden = self.model.base_model(input_ids=ids, attention_mask=attention_mask, use_cache=False)[0]
        return LinearHead(hidden, self.head.weight, self.head.bias, self.softcap, self.scale)


@torch.no_grad()
def find_head(model: Any, ids: Tensor) -> TeacherHead:
    """Find out how a model computes its logits, by running it once on token ids ``(1, T)``.

    The output of its head is replaced by known numbers, and what the model makes of them compared with what
    `mlot.LinearHead` would: models scale or cap their logits in code of their own.
    """
    head, base = model.get_output_embeddings(), model.base_model
    if type(head) is not nn.Linear or base is model or head.weight.device.type == "meta":
        return TeacherHead(model, _width(model, ids))
    seen: list[tuple[Tensor, Tensor]] = []

    def replace(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        known = torch.linspace(-_LARGEST, _LARGEST, output.numel(), device=output.device)
        seen.append((inputs[0], known.to(output.dtype).view_as(output)))
        return seen[-1][1]

    hook = head.register_forward_hook(replace)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    width = int(logits.shape[-1])
    if len(seen) != 1 or seen[0][1].shape != logits.shape:
        return TeacherHead(model, _width(model, ids))
    fed, known = seen[0]
    hidden = base(input_ids=ids, use_cache=False)[0]
    if hidden.shape != fed.shape or hidden.device != head.weight.device or not _equal(hidden, fed):
        return TeacherHead(model, width)
    for scale, softcap in _declared(model.config):
        expected = known.double() * (1 if scale is None else scale)
        if softcap is not None:
            expected = softcap * (expected / softcap).tanh()
        if _equal(logits, expected):
            return TeacherHead(model, width, head, scale, softcap)
    return TeacherHead(model, width)


def _width(model: Any, ids: Tensor) -> int:
    return int(model(input_ids=ids, use_cache=False).logits.shape[-1])


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers agree as far as their type resolves."""
    tolerance = 4 * torch.finfo(found.dtype).eps
    return torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def _declared(config: Any) -> list[tuple[float | None, float | None]]:
    """Scales and caps of logits, as configurations may name them; neither of them comes first."""
    config = config.get_text_config()
    factors = [found for name in _SCALES if (found := _number(getattr(config, name, None))) is not None]
    scales = [None, *factors, *(1 / each for each in factors)]
    return [(scale, cap) for cap in (None, _number(getattr(config, _CAP, None))) for scale in scales]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value != 0 else None
