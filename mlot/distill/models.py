"""Models made on the spot."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed


def make_llama(
    tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, length: int, seed: int
) -> LlamaForCausalLM:
    """Make an untrained Llama for a tokenizer.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        width: of the hidden states, a multiple of 32; heads are 32 wide.
        layers: number of blocks.
        length: longest input in tokens.
        seed: of the initial weights.
    """
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=8 * width // 3 // 16 * 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
