"""Pretrained models and their tokenizers: read from a folder or from the cache of Hugging Face, offline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from mlot._hf.heads import longest_input
from mlot._hf.tokenizers import complete_special_tokens

#: Nothing is fetched, and no code that a folder brings along is run, nor does anyone ask whether it may be.
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(source: str | Path, name: str) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Read a tokenizer from a model's folder, without going online; the model need not be there.

    Args:
        source: a folder as ``save_pretrained`` writes it, or the id of a repository that the cache has.
        name: of the argument or option that gave it, for messages.

    Returns:
        Tokenizer, and notices about what had to be made up for.

    Raises:
        ValueError: there is none, or it does not serve.
    """
    folder = _folder_of(source, name, "a tokenizer")
    # What a damaged or foreign folder makes transformers raise has no common type.
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_OFFLINE)
    except Exception as error:
        raise ValueError(f"{name}: expected a tokenizer in {folder!r}: {_first_line(error)}") from error
    return tokenizer, complete_special_tokens(tokenizer, name)


def load_model(
    source: str | Path, name: str, *, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Read a causal language model and its tokenizer, without going online.

    Args:
        source: a folder as ``save_pretrained`` writes it, or the id of a repository that the cache has.
        name: of the argument or option that gave it, for messages.
        dtype: of the weights, or ``"auto"`` for that of the files.

    Returns:
        Model, tokenizer, and notices about what had to be made up for.

    Raises:
        ValueError: there is no model or no tokenizer, the model has no causal head, or the tokenizer has more
            tokens than the model.
    """
    tokenizer, notices = load_tokenizer(_model_folder(source, name), name)
    model = load_weights(source, name, dtype=dtype)
    embedded = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embedded:
        raise ValueError(
            f"{name}: expected a tokenizer of at most {embedded} tokens, as the model, got {len(tokenizer)}"
        )
    return model, tokenizer, notices


def load_weights(source: str | Path, name: str, *, dtype: torch.dtype | str = "auto", **settings: Any) -> Any:
    """Read a causal language model without its tokenizer; see `load_model`.

    Args:
        source: a folder as ``save_pretrained`` writes it, or the id of a repository that the cache has.
        name: of the argument or option that gave it, for messages.
        dtype: of the weights, or ``"auto"`` for that of the files.
        settings: what ``from_pretrained`` takes besides.

    Raises:
        ValueError: there is no model with all of its weights, or it has no causal head.
    """
    folder = _model_folder(source, name)
    given = {"dtype": dtype} | settings | {"output_loading_info": True} | _OFFLINE
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **given)
    except Exception as error:
        raise ValueError(
            f"{name}: expected a causal language model in {folder!r}: {_first_line(error)}"
        ) from error
    model, information = loaded
    if information["missing_keys"]:
        missing = sorted(information["missing_keys"])
        raise ValueError(
            f"{name}: expected all weights of a {type(model).__name__} in {folder!r}, "
            f"missing {', '.join(missing[:3])}"
            + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        )
    return model


def _model_folder(source: str | Path, name: str) -> str:
    """The folder of a model whose configuration speaks of a causal head."""
    folder = _folder_of(source, name, "a model")
    try:
        config = AutoConfig.from_pretrained(folder, **_OFFLINE)
    except Exception as error:
        raise ValueError(
            f"{name}: expected a model that transformers loads in {folder!r}: {_first_line(error)}"
        ) from error
    _require_causal(config, name)
    return folder


def require_length(model: PreTrainedModel, name: str, length: int, length_name: str) -> None:
    """Require that a model reads so many tokens, as far as its configuration says.

    Raises:
        ValueError: it reads fewer.
    """
    longest = longest_input(model)
    if longest is not None and longest < length:
        raise ValueError(
            f"{length_name}: expected at most {longest}, all that the model of {name} reads, got {length}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing below a progress bar."""
    switches = cast(Any, logging)  # its switches carry no annotations
    level, bars = switches.get_verbosity(), switches.is_progress_bar_enabled()
    switches.set_verbosity_error()
    switches.disable_progress_bar()
    try:
        yield
    finally:
        switches.set_verbosity(level)
        if bars:
            switches.enable_progress_bar()


def _folder_of(source: str | Path, name: str, what: str) -> str:
    """The folder itself, or that in which the cache has a repository.

    An id would do for transformers, too, but it looks for adapters of an id on the network in any case.
    """
    source = str(source)
    if Path(source).is_dir():
        return source
    try:
        return str(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: expected a folder with {what}, or the id of one in the cache of Hugging Face, "
            f"found none at {source!r}"
        ) from error


def _require_causal(config: AutoConfig, name: str) -> None:
    """Refuse a model that was saved without a head for next-token prediction, whatever could be loaded."""
    saved_as = getattr(config, "architectures", None) or []
    if saved_as and set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).isdisjoint(saved_as):
        raise ValueError(
            f"{name}: expected a model with a causal head, such as LlamaForCausalLM, "
            f"got {', '.join(saved_as)}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
