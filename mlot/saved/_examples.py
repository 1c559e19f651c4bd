"""Examples as they are given, made into token ids and masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._examples import TOKENISED_FORMS, check_example
from mlot._hf.pairs import Pairs
from mlot._hf.render import render
from mlot._hf.tokenizers import start_token
from mlot._hf.tokens import tokenize
from mlot.align import TEXT_POSITION_FIELDS, VocabularyMap
from mlot.saved._keys import as_ids, joint_key, key_of

#: What a `mlot.training.DistillationCollator` with ``pairs="text"`` makes of an example.
_PREPARED = ("input_ids", "labels", "teacher_input_ids", "teacher_labels", "text_positions")
#: Texts that are given to a tokenizer at once.
_CHUNK = 1000


@dataclass(frozen=True)
class StudentSide:
    """What targets need of the student's tokens.

    Attributes:
        mask: positions whose prediction counts, ``(T_s,)``.
        positions: ``(P, 9)``, as `mlot.align.text_positions` makes them.
    """

    mask: NDArray[np.bool_]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class TeacherExample:
    """What the teacher reads, and the positions whose prediction counts."""

    key: str
    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    student: StudentSide | None = None

    @property
    def positions(self) -> int:
        """Positions at which something may be kept: the teacher's, or with targets the student's."""
        return len(self.mask if self.student is None else self.student.mask)


def read_pairs(
    examples: Iterable[Any], tokenizers: tuple[Any, Any], vocabulary: VocabularyMap, max_length: int | None
) -> list[TeacherExample]:
    """Make examples in the tokens of the student and the teacher; each key once, at the first place it has.

    Raises:
        TypeError, ValueError: an example is of the wrong kind; the message says which.
    """
    if isinstance(examples, str | Mapping):
        raise TypeError(f"examples: expected several examples, got one {type(examples).__name__}")
    examples_by_key: dict[str, TeacherExample] = {}
    for n, each in enumerate(examples):
        example = _with_student(f"examples[{n}]", each, tokenizers, vocabulary, max_length)
        examples_by_key.setdefault(example.key, example)
    return list(examples_by_key.values())


def _with_student(
    name: str, value: Any, tokenizers: tuple[Any, Any], vocabulary: VocabularyMap, max_length: int | None
) -> TeacherExample:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}: expected a text, or a mapping, for keep='targets', got {type(value).__name__}"
        )
    if not set(_PREPARED) <= set(value):
        if {"input_ids", "teacher_input_ids"} & set(value):
            raise ValueError(
                f"{name}: expected {', '.join(_PREPARED)} for keep='targets', as a DistillationCollator with "
                f"pairs='text' prepares them, got {', '.join(map(str, value))}"
            )
        try:
            rendered = render(check_example(value), tokenizers, {})
            student, teacher = (
                tokenize(tokenizer, [each], start_token(tokenizer), tokenizer.eos_token_id)
                for tokenizer, each in zip(tokenizers, rendered, strict=True)
            )
        except (TypeError, ValueError) as error:
            raise _named(name, error) from error
        pairs = Pairs.of(student, teacher, None, max_length)
        value = pairs.columns()[0] | {_PREPARED[-1]: pairs.text_positions(vocabulary)[0][0]}
    elif max_length is not None and max_length < len(value["teacher_input_ids"]):
        raise ValueError(
            f"max_length: expected None for examples that are prepared already, got {max_length} with one "
            f"of {len(value['teacher_input_ids'])} tokens ({name})"
        )
    student_ids, student_labels, teacher_ids, teacher_labels, positions = (value[key] for key in _PREPARED)
    own = _example(f"{name}: teacher", (teacher_ids, teacher_labels), None)
    other = _example(f"{name}: student", (student_ids, student_labels), None)
    width = len(TEXT_POSITION_FIELDS)
    rows = np.asarray(positions) if len(positions) else np.zeros((0, width), np.int64)
    if rows.dtype.kind not in "iu" or rows.shape[1:] != (width,):
        raise ValueError(
            f"{name}: text_positions: expected integers (P, {width}), got {rows.dtype} {rows.shape}"
        )
    return replace(
        own, key=joint_key(own.key, other.key), student=StudentSide(other.mask, rows.astype(np.int64))
    )


def _named(name: str, error: Exception) -> Exception:
    """The error for one of the examples."""
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{name}: {error}")


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
    if "teacher_input_ids" in value and "teacher_labels" in value:
        return value["teacher_input_ids"], value["teacher_labels"]
    if "input_ids" in value:
        return value
    try:
        example = check_example(value)
        if "text" in example and "messages" not in example:
            return example["text"]
        if not hasattr(tokenizer, "all_special_ids"):
            raise TypeError(f"expected a tokenizer of transformers, got {type(tokenizer).__name__}")
        (rendered,) = render(example, [tokenizer], {}, ["teacher"])
        tokens = tokenize(tokenizer, [rendered], start_token(tokenizer), tokenizer.eos_token_id)
    except (TypeError, ValueError) as error:
        raise _named(name, error) from error
    return tokens.ids, tokens.labels


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
