"""A teacher's predictions, without forming its logits where its head is plain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlot._hf.heads import HeadShape, equal, try_head
from mlot.sources import Predictions


@dataclass(frozen=True)
class TeacherHead:
    """How to get predictions from a model: by its hidden states and head, or, without a head, by its logits.

    Attributes:
        model: a causal language model.
        vocab_size: width of its logits.
        head: its output embedding, if its logits are a function that `mlot.LinearHead` has.
        shape: that function.
    """

    model: Any
    vocab_size: int
    head: nn.Linear | None = None
    shape: HeadShape = field(default_factory=HeadShape)

    def __call__(self, ids: Tensor, attention_mask: Tensor) -> Predictions:
        """Predictions ``(B, T, V)`` for token ids ``(B, T)``."""
        inputs = {"input_ids": ids, "attention_mask": attention_mask, "use_cache": False}
        if self.head is None:
            return self.model(**inputs).logits
        return self.shape.of(self.model.base_model(**inputs)[0], self.head)


@torch.no_grad()
def find_head(model: Any, ids: Tensor) -> TeacherHead:
    """Find out how a model computes its logits, by running it on token ids ``(1, T)``."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    head, base = model.get_output_embeddings(), model.base_model
    if type(head) is nn.Linear and base is not model and head.weight.device.type != "meta":
        trial = try_head(model, head, inputs)
        shape = None if trial is None else trial.shape(model, head)
        if trial is not None and shape is not None:
            hidden = base(**inputs)[0]
            if hidden.device == head.weight.device and equal(hidden, trial.hidden):
                return TeacherHead(model, int(trial.logits.shape[-1]), head, shape)
    return TeacherHead(model, int(model(**inputs).logits.shape[-1]))
