"""Hidden states in place of logits: where that is plain, and that it gives the same."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutput

import saved_models
from mlot._hf.heads import HeadShape
from mlot.saved import save_teacher
from mlot.saved._head import find_head
from saved_models import LONGEST, SIZES, TEXTS, VOCABULARY, WithoutHead, alone, assert_saved, llama


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return saved_models.tokenizer()


MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=LONGEST)
    ),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
}
HEADS = {
    "llama": HeadShape(),
    "gpt2": HeadShape(),
    "gemma2": HeadShape(softcap=5.0),
    "cohere": HeadShape(scale=0.3),
    "granite": HeadShape(scale=1 / 7.0),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_give_what_logits_give(
    name: str, dtype: torch.dtype, tokenizer: object, tmp_path: Path
) -> None:
    """Scales and caps of logits are recognised, and the results agree."""
    torch.manual_seed(1)
    model = MODELS[name]().eval().to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # so that caps matter
    found = find_head(model, torch.tensor([[1, 2, 3]]))
    assert found.head is model.get_output_embeddings()
    assert found.shape == HEADS[name]
    one = save_teacher(model, tokenizer, TEXTS, tmp_path / "hidden", k=20, dtype="float32")
    two = save_teacher(WithoutHead(model), tokenizer, TEXTS, tmp_path / "logits", k=20, dtype="float32")
    assert one.manifest.settings["computed_from"] == "hidden states"
    assert two.manifest.settings["computed_from"] == "logits"
    assert one.keys == two.keys
    if dtype == torch.float32:
        for n, key in enumerate(one.keys):
            assert_saved(one, key, two.batch([n]), 1e-4)
        return
    # Logits in bfloat16 are rounded to 8 bits, those from hidden states are not: masses agree that far.
    for n in range(len(one)):
        np.testing.assert_allclose(one.batch([n]).column_mass, two.batch([n]).column_mass, rtol=0.05)


class _Odd(LlamaForCausalLM):
    """Does something to its logits that no configuration speaks of."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 0.01 * output.logits**2
        return output


class _Fed(LlamaForCausalLM):
    """Feeds its head something else than its last hidden states."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.lm_head.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))


class _Direct(LlamaForCausalLM):
    """Reads its head's weight and never calls it."""

    def forward(self, *args: object, **kwargs: object) -> object:
        return CausalLMOutput(logits=self.model(*args, **kwargs)[0] @ self.lm_head.weight.T)


class _Adapted(LlamaForCausalLM):
    """Has a head whose forward was replaced by more than a linear map."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        plain = self.lm_head.forward
        self.lm_head.forward = lambda hidden: plain(hidden) + hidden.mean(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", [_Odd, _Fed, _Direct, _Adapted])
def test_models_that_are_not_plain_give_logits(kind: type, tokenizer: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind(LlamaConfig(**SIZES)).eval()
    saved = save_teacher(model, tokenizer, TEXTS[:3], tmp_path, k=20, dtype="float32", batch_size=1)
    assert saved.manifest.settings["computed_from"] == "logits"
    ids = tokenizer(TEXTS[0])["input_ids"]
    mask = np.arange(len(ids)) < len(ids) - 1
    assert_saved(saved, saved.keys[0], alone(model, ids, mask, 20), 0)


def test_logits_are_never_formed(tokenizer: object, tmp_path: Path) -> None:
    """After the trial on a few tokens, the head is not called."""
    model = llama()
    called = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0].shape))
    save_teacher(model, tokenizer, TEXTS, tmp_path, k=20)
    assert called == [(1, 4, 32)]
