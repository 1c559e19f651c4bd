"""Models: made on the spot, or read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mlot._hf.heads import longest_input
from mlot.distill.errors import DistillError
from mlot.distill.vocabularies import complete

#: Nothing is fetched, and no code that a folder brings along is run, nor does anyone ask whether it may be.
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


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


def load_tokenizer(folder: str | Path, option: str) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Read a tokenizer from a model's folder, without going online; the model need not be there.

    Args:
        folder: as ``save_pretrained`` writes it.
        option: name of the option that gave it, for messages.

    Returns:
        Tokenizer, and notices about what had to be made up for.

    Raises:
        DistillError: no such folder, or no tokenizer in it that serves.
    """
    folder = _require_folder(folder, option, "a tokenizer")
    # What a damaged or foreign folder makes transformers raise has no common type.
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_OFFLINE)
    except Exception as error:
        raise DistillError(
            f"{option}: expected a tokenizer in {str(folder)!r}: {_first_line(error)}"
        ) from error
    return tokenizer, complete(tokenizer, option)


def load_model(
    folder: str | Path, option: str, length: int, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Read a causal language model and its tokenizer from a folder, without going online.

    Args:
        folder: as ``save_pretrained`` writes it.
        option: name of the option that gave it, for messages.
        length: tokens that the model must be able to read.
        dtype: of the weights, or ``"auto"`` for that of the files.

    Returns:
        Model, tokenizer, and notices about what had to be made up for.

    Raises:
        DistillError: no such folder, no model or tokenizer in it, a model without a causal head, a tokenizer
            with more tokens than the model, or a model that cannot read ``length`` tokens.
    """
    folder = _require_folder(folder, option, "a model")
    try:
        config = AutoConfig.from_pretrained(folder, **_OFFLINE)
    except Exception as error:
        raise DistillError(
            f"{option}: expected a model that transformers loads in {str(folder)!r}: {_first_line(error)}"
        ) from error
    _require_causal(config, option)
    tokenizer, notices = load_tokenizer(folder, option)
    model = _load_weights(folder, option, dtype)
    embedded = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embedded:
        raise DistillError(
            f"{option}: expected a tokenizer of at most {embedded} tokens, as the model, got {len(tokenizer)}"
        )
    longest = longest_input(model)
    if longest is not None and longest < length:
        raise DistillError(
            f"--length: expected at most {longest}, all that the model of {option} reads, got {length}"
        )
    return model, tokenizer, notices


def _require_folder(folder: str | Path, option: str, what: str) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise DistillError(f"{option}: expected a folder with {what}, found none at {str(folder)!r}")
    return folder


def _load_weights(folder: Path, option: str, dtype: torch.dtype | str) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **_OFFLINE
        )
    except Exception as error:
        raise DistillError(
            f"{option}: expected a causal language model in {str(folder)!r}: {_first_line(error)}"
        ) from error
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise DistillError(
            f"{option}: expected all weights of a {type(model).__name__} in {str(folder)!r}, "
            f"missing {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    return model


def _require_causal(config: AutoConfig, option: str) -> None:
    """Refuse a model that was saved without a head for next-token prediction, whatever could be loaded."""
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    saved_as = getattr(config, "architectures", None) or []
    if saved_as and causal.isdisjoint(saved_as):
        raise DistillError(
            f"{option}: expected a model with a causal head, such as LlamaForCausalLM, "
            f"got {', '.join(saved_as)}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
