"""Keys of a saved teacher's examples: of a prepared example, and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mlot import mask_from_labels


def counted(labels: Sequence[int]) -> list[bool]:
    """Positions whose prediction counts, by unshifted labels."""
    mask: list[bool] = mask_from_labels(torch.tensor([list(labels)])).tolist()[0] if len(labels) else []
    return mask


def teacher_key(row: Mapping[str, Any]) -> str:
    """Key of a prepared example, by what the teacher reads."""
    return _key(row["teacher_input_ids"], row["teacher_labels"])


def target_key(row: Mapping[str, Any]) -> str:
    """Key of a prepared example's targets, by what both models read."""
    return _key(row["teacher_input_ids"], row["teacher_labels"], row["input_ids"], row["labels"])


def key_makers(*, by_text: bool) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The keys that a prepared example has, by name, and how they are made."""
    if by_text:
        return {"teacher_key": teacher_key, "target_key": target_key}
    return {"teacher_key": teacher_key}


def keys_of(characters: Tensor) -> list[str]:
    """Keys of a batch, from their characters ``(B, L)``; processes share tensors out, not strings."""
    return [bytes(row).decode() for row in characters.tolist()]


def characters_of(keys: list[str]) -> Tensor:
    """The other way round."""
    return torch.tensor([list(key.encode()) for key in keys], dtype=torch.uint8)


def _key(*tokens_and_labels: Sequence[int]) -> str:
    from mlot.saved import example_key

    given = [counted(each) if n % 2 else list(each) for n, each in enumerate(tokens_and_labels)]
    key: str = example_key(*given)
    return key
