"""A small model and tokenizer, and texts, for the tests of `mlot.saved.save_teacher`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mlot
from mlot._hf.made import train_bpe
from mlot.saved import SavedTeacher
from problems import as_numpy

VOCABULARY, LONGEST = 270, 48
TEXTS = [f"Example {n}: " + "some words of text, " * (n % 4) for n in range(11)]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": LONGEST,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe(TEXTS, VOCABULARY, LONGEST)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def alone(model: nn.Module, ids: list, mask: np.ndarray, k: int, **settings: object) -> mlot.Traces:
    """Traces of one example by the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits
    return mlot.select(logits, torch.from_numpy(mask)[None], k=k, **settings)


def assert_saved(saved: SavedTeacher, key: str, want: mlot.Traces, tolerance: float) -> None:
    got = saved.batch([key])
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.mask, as_numpy(want.mask))
    np.testing.assert_array_equal(got.columns, as_numpy(want.columns))
    for name in ("log_probs", "log_normalizers", "column_mass"):
        np.testing.assert_allclose(
            getattr(got, name), as_numpy(getattr(want, name)), atol=tolerance, rtol=0, err_msg=name
        )


class WithoutHead(nn.Module):
    """A model that does not tell its output embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.config, self.dtype = model.config, model.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> None:
        return None

    @property
    def base_model(self) -> nn.Module:
        return self.inner.base_model

    def forward(self, **inputs: object) -> object:
        return self.inner(**inputs)
