"""Whether models, settings and a collator fit together, and what lengths follow from that."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlot._hf.heads import longest_input
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._collator import SIDES, DistillationCollator
from mlot.training._heads import language_model
from mlot.training._teacher import given_teachers


def fit(
    collator: DistillationCollator, model: Any, teacher: Any, args: MultiLevelOTTrainingArguments
) -> None:
    """Check that models fit a collator; take what they read for a limit where none was given.

    Raises:
        ValueError: a tokenizer has more tokens than its model, a limit is more than its model reads, or the
            settings ask for what the batches do not hold.
    """
    if teacher is not None and args.matching == "text":
        if collator.pairs != "text":
            raise ValueError(
                f"pairs: expected a collator with pairs='text', as matching, got {collator.pairs!r}"
            )
    elif teacher is not None and args.pairs == "boundary" and collator.pairs != "boundary":
        raise ValueError(f"pairs: expected a collator with pairs='boundary', as args, got {collator.pairs!r}")
    sources = [each.source for each in given_teachers(teacher)]
    kinds = {isinstance(source, nn.Module) for source in sources}
    wanted: Any = "both" if len(kinds) == 2 else kinds == {False}
    if kinds and collator.keys not in (wanted, "both"):
        kind = {True: "a saved teacher", False: "a teacher that is a model"}.get(
            wanted, "teachers of both kinds"
        )
        raise ValueError(f"data_collator: expected keys={wanted!r} for {kind}, got keys={collator.keys}")
    most = getattr(args, "max_length", None)  # of TRL's settings
    if most is not None:
        collator.max_length = most if collator.max_length is None else min(most, collator.max_length)
    for n, one in enumerate([model, *sources]):
        if isinstance(one, nn.Module):
            side = min(n, 1)
            name = ("", "teacher_")[side] + "max_length"
            limit = _limit(
                SIDES[side],
                language_model(one),
                collator.tokenizers[side],
                name,
                getattr(collator, name),
                chosen=collator.limits_given[side],
            )
            setattr(collator, name, limit)


def _limit(
    side: str, model: Any, tokenizer: Any, name: str, limit: int | None, *, chosen: bool
) -> int | None:
    """Check that a model fits its tokenizer.

    Returns:
        The most tokens of a text: a limit that was chosen, or what the model reads, if that is less.

    Raises:
        ValueError: the tokenizer has more tokens than the model, or the limit is more than it reads.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    rows = getattr(embedding, "num_embeddings", None)
    if rows is not None and len(tokenizer) > rows:
        raise ValueError(
            f"{side}_tokenizer: expected at most {rows} tokens, as the {side}, got {len(tokenizer)}"
        )
    reads = longest_input(model)
    if reads is None:
        return limit
    if not chosen or limit is None:
        return reads if limit is None else min(limit, reads)
    if limit > reads:
        raise ValueError(f"{name}: expected at most {reads}, all that the {side} reads, got {limit}")
    return limit
