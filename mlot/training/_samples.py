"""Samples of what a model writes after the beginnings of held-out texts, or after prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import set_seed

from mlot._hf.tokenizers import start_token, token_ids
from mlot.training._windows import Examples, Piece

_PROMPTS, _PROMPT_CHARACTERS, _NEW_TOKENS = 3, 40, 60


def sample_continuations(
    model: Any, tokenizer: Any, examples: Examples, length: int, seed: int
) -> list[tuple[str, str]]:
    """Sample continuations of the first words of some documents, or answers to some prompts.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a pad token.
        examples: of the documents, in its tokens.
        length: most tokens of prompt and continuation together.
        seed: of the draws.

    Returns:
        Pairs of prompt and continuation.
    """
    samples = []
    for number, index in enumerate(_beginnings(examples.pieces)):
        prompt, ids = _prompt(tokenizer, examples, index, length)
        tokens = torch.tensor([ids], device=model.device)
        set_seed(seed + number)
        generated = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=True,
            temperature=0.8,
            max_new_tokens=min(_NEW_TOKENS, length - len(ids)),
            pad_token_id=tokenizer.pad_token_id,
        )
        new = generated[0, len(ids) :].tolist()
        samples.append((prompt, cast(str, tokenizer.decode(new, skip_special_tokens=True))))
    return samples


def _prompt(tokenizer: Any, examples: Examples, index: int, length: int) -> tuple[str, list[int]]:
    """What to continue, as text and as tokens, which leave a quarter of the length free."""
    piece, most = examples.pieces[index], 3 * length // 4
    if piece.record is None:
        prompt = _first_words(piece.text)
        return prompt, [start_token(tokenizer), *token_ids(tokenizer, [prompt])[0]][:most]
    row = examples[index]
    first = next(n for n, label in enumerate(row["labels"]) if label != -100)
    ids = [int(token) for token in row["input_ids"][:first]][-most:]
    return cast(str, tokenizer.decode(ids, skip_special_tokens=True)), ids


def _beginnings(pieces: Sequence[Piece]) -> list[int]:
    """The first piece of each of some documents."""
    first: dict[int, int] = {}
    for n, piece in enumerate(pieces):
        first.setdefault(piece.document, n)
    return list(first.values())[:_PROMPTS]


def _first_words(text: str) -> str:
    start = text[:_PROMPT_CHARACTERS]
    cut = max(start.rfind(" "), start.rfind("\n"))
    return start[:cut] if cut > 0 else start
