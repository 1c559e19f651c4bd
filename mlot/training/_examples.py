"""Tokenised examples in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class PreparedDataset(Dataset[dict[str, Any]]):
    """Tokenised examples, as `DistillationCollator.prepare` makes them, held in memory.

    For more than fits there, map `DistillationCollator.prepare` over a ``datasets.Dataset``.

    Args:
        examples: the examples.
    """

    def __init__(self, examples: Iterable[Mapping[str, Any]]) -> None:
        if not isinstance(examples, Iterable):
            raise TypeError(f"examples: expected an iterable of examples, got {type(examples).__name__}")
        # Arrays of 32 bits take an eighth of what lists of integers take.
        self._examples: list[dict[str, Any]] = [
            {
                name: np.array(value, np.int32) if isinstance(value, list) else value
                for name, value in example.items()
            }
            for example in examples
        ]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._examples[index]
