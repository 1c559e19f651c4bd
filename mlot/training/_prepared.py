"""Data sets prepared in batches: which example is at fault, what is skipped, and what is told of it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Any, TypeAlias

from mlot._hf.pairs import Pairs, Truncation

_logger = logging.getLogger("mlot.training")

#: Examples of a data set that are tokenised together.
TOGETHER = 128

#: Examples that were prepared together, their pairs, and what is to be told of them, counted.
Prepared: TypeAlias = tuple[list[dict[str, Any]], Pairs, Counter[str]]


def prepared(
    name: str,
    dataset: Any,
    prepare: Callable[[list[Any]], Prepared],
    skipped: list[str] | None,
    number: int = 0,
) -> Iterator[Prepared]:
    """Prepare a data set in batches.

    Args:
        name: of the data set, for messages.
        dataset: of examples.
        prepare: prepares several.
        skipped: is told of examples that cannot be read; ``None``: the first raises.
        number: of the first example, for messages.

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
                    message = f"{name}[{number + n}]: {error}"
                    if skipped is None:
                        raise (TypeError if isinstance(error, TypeError) else ValueError)(message) from error
                    skipped.append(message)
            if skipped is None:
                raise
        if good:
            yield prepare(good)


def runs(dataset: Any) -> Iterator[tuple[list[Any], int]]:
    """Examples next to each other that are all tokenised, or are all not, and the number of the first."""
    for first in range(0, len(dataset), TOGETHER):
        several = [dataset[n] for n in range(first, min(first + TOGETHER, len(dataset)))]
        number = first
        for _, run in groupby(several, lambda each: "input_ids" in each):
            examples = list(run)
            yield examples, number
            number += len(examples)


def tell_report(name: str, truncation: Truncation, notes: Mapping[str, int], skipped: list[str]) -> None:
    """Log what was cut off, what only one side has, and what was skipped, where there is such."""
    if truncation.cut or truncation.empty:
        _logger.warning("%s: %s", name, truncation)
    for note, count in notes.items():
        _logger.warning("%s: %s: %d", name, note, count)
    if skipped:
        _logger.warning("%s: %d examples were skipped; the first: %s", name, len(skipped), skipped[0])
