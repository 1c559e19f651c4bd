"""Examples as they are given, made into token ids and masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._examples import TOKENISED_FORMS, check_example
from mlot._hf.render import render
from mlot._hf.tokenizers import start_token
from mlot._hf.tokens import tokenize
from mlot.saved._keys import as_ids, key_of

#: Texts that are given to a tokenizer at once.
_CHUNK = 1000


@dataclass(frozen=True)
class TeacherExample:
    """What the teacher reads, and the positions whose prediction counts."""

    key: str
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]


def read_examples(
    examples: Iterable[Any], tokenizer: Any, max_length: int | None = None
) -> list[TeacherExample]:
    """Make token ids and masks of examples, cut to a length; each key once, at the first place it has.

    Raises:
        TypeError, ValueError: an example is of the wrong kind; the message says which.
    """
    if isinstance(examples, str | Mapping):
        raise TypeError(f"examples: expected several examples, got one {type(examples).__name__}")
    given = [
        _of_mapping(f"examples[{n}]", each, tokenizer) if isinstance(each, Mapping) else each
        for n, each in enumerate(examples)
    ]
    texts = [n for n, each in enumerate(given) if isinstance(each, str)]
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        for n, ids in zip(chunk, token_ids(tokenizer, [given[n] for n in chunk]), strict=True):
            given[n] = (ids, None)
    examples_by_key: dict[str, TeacherExample] = {}
    for n, each in enumerate(given):
        example = _example(f"examples[{n}]", each, max_length)
        examples_by_key.setdefault(example.key, example)
    return list(examples_by_key.values())


def token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokens of texts, with the special tokens that the tokenizer adds by itself."""
    if hasattr(tokenizer, "encode_batch"):
        encodings = tokenizer.encode_batch(texts)  # padded, if the tokenizer was told to pad
        return [
            [i for i, real in zip(each.ids, each.attention_mask, strict=True) if real] for each in encodings
        ]
    ids: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
    return ids


def _of_mapping(name: str, value: Mapping[str, Any], tokenizer: Any) -> Any:
    """A text, or token ids with labels or a mask; prompts and conversations as the collator has them."""
    if "input_ids" in value:
        return value
    try:
        example = check_example(value)
        if "text" in example and "messages" not in example:
            return example["text"]
        if not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(f"expected a tokenizer of transformers, got {type(tokenizer).__name__}")
        (rendered,) = render(example, [tokenizer], {}, ["teacher"])
        tokens = tokenize(tokenizer, rendered, start_token(tokenizer), tokenizer.eos_token_id)
    except (TypeError, ValueError) as error:
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(f"{name}: {error}") from error
    return tokens.ids, tokens.labels(len(tokens.ids))


def _example(name: str, value: Any, max_length: int | None) -> TeacherExample:
    said = None
    if isinstance(value, Mapping):
        if len({"labels", "mask"} & set(value)) != 1:
            raise ValueError(
                f"{name}: expected input_ids with labels or mask, got {', '.join(map(str, value))}"
            )
        said = "labels" if "labels" in value else "mask"
        ids, kept = value["input_ids"], value[said]
    elif isinstance(value, tuple | list) and len(value) == 2:
        ids, kept = value
    else:
        raise TypeError(
            f"{name}: expected a text, (ids, labels or mask), or a mapping with {TOKENISED_FORMS}, "
            f"got {type(value).__name__}"
        )
    ids = as_ids(f"{name}: ids", ids)
    kept = ids if kept is None else np.asarray(kept.detach().cpu() if hasattr(kept, "detach") else kept)
    if kept.shape != ids.shape:
        raise ValueError(f"{name}: expected labels or a mask ({len(ids)},), as ids, got shape {kept.shape}")
    # A mask of 0 and 1 would pass for labels.
    for field, wanted, letters in (("mask", "booleans", "b"), ("labels", "integers", "iu")):
        if said == field and kept.size and kept.dtype.kind not in letters:
            raise TypeError(f"{name}: expected {wanted} for {field}, got {kept.dtype}")
    ids, kept = ids[:max_length], kept[:max_length]
    mask = _mask(name, kept)
    return TeacherExample(key_of(ids, mask), ids.astype(np.int32), mask)


def _mask(name: str, kept: NDArray[Any]) -> NDArray[np.bool_]:
    """Positions whose prediction counts: booleans say it themselves, labels of the token that follows."""
    if kept.dtype.kind == "b" or kept.size == 0:
        return kept.astype(bool)
    if kept.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected labels (integers) or a mask (booleans), got {kept.dtype}")
    mask = np.zeros(len(kept), dtype=bool)
    mask[:-1] = kept[1:] != -100
    return mask
