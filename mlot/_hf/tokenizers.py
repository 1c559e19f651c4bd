"""What any tokenizer of transformers is asked for: tokens of texts, tokens that start and pad, a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: A tokenizer that knows no limit says a number as large as this.
_NO_LIMIT = 10**9


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without special ones."""
    if not texts:
        return []
    # verbose=False: texts longer than the model's limit are expected, and are cut afterwards
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def start_token(tokenizer: Any) -> int:
    """Token that starts a text, so that all of the text is predicted: bos, or eos where there is none.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("tokenizer: expected a bos or an eos token, found neither")


def pad_token(name: str, tokenizer: Any) -> int:
    """Token to pad with.

    Raises:
        TypeError: it is no tokenizer of transformers.
        ValueError: it has neither a pad nor an eos token.
    """
    if not hasattr(tokenizer, "eos_token_id"):
        raise TypeError(f"{name}: expected a tokenizer of transformers, got {type(tokenizer).__name__}")
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        f"{name}: expected a pad token, or an eos token to pad with, found neither; set tokenizer.pad_token"
    )


def length_limit(tokenizer: Any, given: int | None) -> int | None:
    """Most tokens of a text: what is given, or what the tokenizer says; ``None``: there is no limit."""
    if given is not None:
        return given
    said = getattr(tokenizer, "model_max_length", None)
    return int(said) if said is not None and said < _NO_LIMIT else None


def complete_special_tokens(tokenizer: Any, name: str) -> list[str]:
    """Give a tokenizer the padding token it lacks.

    Args:
        tokenizer: a tokenizer of transformers.
        name: of the argument or option that gave it, for messages.

    Returns:
        Notices of what was done.

    Raises:
        ValueError: it has no end-of-text token either, or none to start with.
    """
    notices = []
    if tokenizer.eos_token is None and (tokenizer.bos_token is None or tokenizer.pad_token is None):
        raise ValueError(
            f"{name}: expected a tokenizer with an eos token, or with bos and pad tokens, "
            f"found bos {tokenizer.bos_token!r}, eos None, pad {tokenizer.pad_token!r}"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        notices.append(f"{name}: the tokenizer has no pad token; its eos token {tokenizer.eos_token!r} pads")
    if tokenizer.bos_token is None:
        notices.append(f"{name}: the tokenizer has no bos token; texts start with its eos token")
    return notices
