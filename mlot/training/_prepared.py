"""Data sets prepared in batches: which example is at fault, what is skipped, and what is told of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from mlot._hf.heads import longest_input
from mlot._hf.pairs import Pairs, Truncation

_logger = logging.getLogger("mlot.training")

#: Examples of a data set that are tokenised together.
TOGETHER = 128

#: Examples that were prepared together, their pairs, and what is to be told of them, counted.
Prepared: TypeAlias = tuple[list[dict[str, Any]], Pairs, Counter[str]]


def prepared(
    name: str, dataset: Any, prepare: Callable[[list[Any]], Prepared], skipped: list[str] | None
) -> Iterator[Prepared]:
    """Prepare a data set in batches.

    Args:
        name: of the data set, for messages.
        dataset: of examples.
        prepare: prepares several.
        skipped: is told of examples that cannot be read; ``None``: the first raises.

    Raises:
        TypeError, ValueError: an example cannot be read; the message says which.
    """
    for first in range(0, len(dataset), TOGETHER):
        numbers = range(first, min(first + TOGETHER, len(dataset)))
        try:
            yield prepare([dataset[n] for n in numbers])
            continue
        except (TypeError, ValueError):
            good = []
            for n in numbers:
                try:
                    prepare([dataset[n]])
                    good.append(dataset[n])
                except (TypeError, ValueError) as error:
                    if skipped is None:
                        error_type = TypeError if isinstance(error, TypeError) else ValueError
                        raise error_type(f"{name}[{n}]: {error}") from error
                    skipped.append(f"{name}[{n}]: {error}")
            if skipped is None:
                raise
        if good:
            yield prepare(good)


def tell_report(name: str, truncation: Truncation, notes: Mapping[str, int], skipped: list[str]) -> None:
    """Log what was cut off, what only one side has, and what was skipped, where there is such."""
    if truncation.cut or truncation.empty:
        _logger.warning("%s: %s", name, truncation)
    for note, count in notes.items():
        _logger.warning("%s: %s: %d", name, note, count)
    if skipped:
        _logger.warning("%s: %d examples were skipped; the first: %s", name, len(skipped), skipped[0])


def model_limit(
    name: str, model: Any, tokenizer: Any, limit: int | None, prefix: str, *, chosen: bool
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
            f"{name}_tokenizer: expected at most {rows} tokens, as the {name}, got {len(tokenizer)}"
        )
    reads = longest_input(model)
    if reads is None:
        return limit
    if not chosen or limit is None:
        return reads if limit is None else min(limit, reads)
    if limit > reads:
        raise ValueError(
            f"{prefix}max_length: expected at most {reads}, all that the {name} reads, got {limit}"
        )
    return limit
