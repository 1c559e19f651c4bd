"""Examples as they are given, made into token ids and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlot._examples import TOKENISED_FORMS, check_example
from mlot._hf.conversations import Rendered
from mlot._hf.pairs import Pairs
from mlot._hf.render import render
from mlot._hf.tokenizers import start_token
from mlot._hf.tokens import tokenize
from mlot.align import TEXT_POSITION_FIELDS, VocabularyMap
from mlot.saved._keys import as_ids, joint_key, key_of

#: What a `mlot.training.DistillationCollator` with ``pairs="text"`` makes of an example.
_PREPARED = ("input_ids", "labels", "teacher_input_ids", "teacher_labels", "text_positions")
#: Examples that are tokenised together.
_CHUNK = 128


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
    named = ((f"examples[{n}]", each) for n, each in enumerate(examples))
    while several := list(islice(named, _CHUNK)):
        given = [_prepared_or_rendered(name, each, tokenizers, max_length) for name, each in several]
        texts = [n for n, each in enumerate(given) if isinstance(each, list)]
        made = _one_by_one_on_error(
            [(several[n][0], given[n]) for n in texts],
            lambda rendered: _prepared(rendered, tokenizers, vocabulary, max_length),
        )
        for n, row in zip(texts, made, strict=True):
            given[n] = row
        for (name, _), row in zip(several, given, strict=True):
            example = _with_student(name, row)
            examples_by_key.setdefault(example.key, example)
    return list(examples_by_key.values())


def _prepared_or_rendered(name: str, value: Any, tokenizers: tuple[Any, Any], max_length: int | None) -> Any:
    """An example that is prepared as it is, or as both models read it, a list of two."""
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
            return render(check_example(value), tokenizers, {})
        except (TypeError, ValueError) as error:
            raise _named(name, error) from error
    if max_length is not None and max_length < len(value["teacher_input_ids"]):
        raise ValueError(
            f"max_length: expected None for examples that are prepared already, got {max_length} with one "
            f"of {len(value['teacher_input_ids'])} tokens ({name})"
        )
    return value


def _prepared(
    rendered: Sequence[Any], tokenizers: tuple[Any, Any], vocabulary: VocabularyMap, max_length: int | None
) -> list[Mapping[str, Any]]:
    """Columns of examples, tokenised together."""
    student, teacher = (
        tokenize(tokenizer, side, start_token(tokenizer), tokenizer.eos_token_id)
        for tokenizer, side in zip(tokenizers, zip(*rendered, strict=True), strict=True)
    )
    pairs = Pairs.of(student, teacher, None, max_length)
    positions, _ = pairs.text_positions(vocabulary)
    return [row | {_PREPARED[-1]: each} for row, each in zip(pairs.columns(), positions, strict=True)]


def _one_by_one_on_error(
    named: Sequence[tuple[str, Any]], prepare: Callable[[list[Any]], list[Any]]
) -> list[Any]:
    """Prepare examples together; where that fails, say which one is at fault."""
    if not named:
        return []
    try:
        return prepare([each for _, each in named])
    except (TypeError, ValueError):
        for name, each in named:
            try:
                prepare([each])
            except (TypeError, ValueError) as error:
                raise _named(name, error) from error
        raise


def _with_student(name: str, value: Mapping[str, Any]) -> TeacherExample:
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
    makers: tuple[tuple[type, Callable[[list[Any]], list[Any]]], ...] = (
        (str, lambda texts: [(ids, None) for ids in token_ids(tokenizer, texts)]),
        (Rendered, lambda rendered: _of_rendered(tokenizer, rendered)),
    )
    for form, make in makers:
        numbers = [n for n, each in enumerate(given) if isinstance(each, form)]
        for start in range(0, len(numbers), _CHUNK):
            chunk = numbers[start : start + _CHUNK]
            made = _one_by_one_on_error([(f"examples[{n}]", given[n]) for n in chunk], make)
            for n, each in zip(chunk, made, strict=True):
                given[n] = each
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
    """A text, token ids with labels or a mask, or what the model reads of a prompt or a conversation."""
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
    except (TypeError, ValueError) as error:
        raise _named(name, error) from error
    return rendered


def _of_rendered(tokenizer: Any, rendered: list[Rendered]) -> list[tuple[Any, Any]]:
    """Token ids and labels of what a model reads."""
    tokens = tokenize(tokenizer, rendered, start_token(tokenizer), tokenizer.eos_token_id)
    cuts = pairwise(tokens.offsets.tolist())
    return [(tokens.ids[low:high], tokens.labels[low:high]) for low, high in cuts]


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
