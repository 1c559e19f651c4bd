"""What any tokenizer of transformers is asked for: tokens of texts, and the token that starts a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
