"""The collator: text or conversations in the tokens of both models, padded to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mlot import _checks
from mlot._hf.conversations import OneSided
from mlot._hf.pairs import Pairs, Truncation
from mlot._hf.render import render
from mlot._hf.tokenizers import length_limit, pad_token
from mlot._hf.tokens import tokenize
from mlot.align import VocabularyMap, batch_pairs, batch_text_positions
from mlot.training._arguments import CollatorPairs
from mlot.training._batch import (
    KEYS,
    TARGET_KEYS,
    TEXT_POSITIONS,
    attention_mask,
    listed,
    packed_batch,
    padded,
)
from mlot.training._examples import PreparedDataset
from mlot.training._keys import characters_of, counted, key_makers
from mlot.training._prepared import Prepared, prepared, runs, tell_report


class DistillationCollator:
    """Tokenises text or conversations for both models and pads them to batches.

    An example is a mapping with

    - ``text``: all of it is learnt, and an end token after it;
    - ``prompt`` and ``completion``, strings: the completion is learnt, and an end token after it;
    - ``messages`` (or ``prompt`` and ``completion`` that are lists of messages): each tokenizer's chat
      template is applied, with the example's ``tools`` and ``chat_template_kwargs``; what stands between
      the assistant's header and its end of turn is learnt, and the special token that ends its turn;

    or one that `prepare` made of these. Further keys are passed over. Reasoning (``reasoning_content``,
    ``thinking``, or ``<think>`` in the content) and tool calls are learnt as each template writes them, and
    compared where both write the same; ``notes`` counts what they do not have in common. What is compared
    is *the common text*, the same characters for both models, though what is around it may differ. A text
    that the limits do not let through is cut at the last byte at which both tokenizations have a border
    within them; ``truncation`` counts what was cut. A prompt is not cut: an example whose prompt leaves no
    room has nothing to learn, and is dropped from data sets that are tokenised beforehand.

    Batches hold, padded,

    - ``input_ids``, ``attention_mask``, ``labels``, ``(B, T_s)``: the student's, labels unshifted and -100
      on prompts, padding and the first token of all; padding is found by position, so a pad token that texts
      contain does no harm;
    - ``teacher_input_ids``, ``teacher_attention_mask``, ``teacher_labels``, ``(B, T_t)``: the teacher's; with
      ``keys``, ``teacher_keys`` in their place, the keys of a saved teacher's examples; with ``pairs="text"``
      also ``target_keys``, those of saved targets, and ``teacher_input_ids``, padded on the right;
    - ``pairs``, ``(B, P, 2)``, padded by -1: positions at which both models have read the same bytes of the
      common text, with ``pairs="boundary"``;
    - ``text_positions``, ``(B, P, 9)``, padded by -1: with ``pairs="text"``, what the teacher's tokens say at
      each of the student's positions (see `mlot.align.text_positions`);
    - ``text_mask``, ``(B, T_s)``, labels that stand for text, and ``target_bytes``, ``(B,)``, the bytes of
      that text, for bits per byte;
    - ``position_ids`` and ``teacher_position_ids`` where padding is on the left.

    Args:
        student_tokenizer: a tokenizer of transformers.
        teacher_tokenizer: the same for the teacher.
        max_length: most tokens of the student, start and end tokens included; ``None`` means what its
            tokenizer says, and a trainer what its model reads, if that is less.
        teacher_max_length: the same for the teacher.
        pairs: ``"boundary"`` or ``"index"``; or ``"text"`` for ``matching="text"``.
        vocabulary: the map of the two tokenizers, which ``pairs="text"`` needs and makes if there is none;
            with others, diagnostics tell by it how much of the kept mass is matched with equal strings.
        keys: whether the teacher is saved; ``"both"`` for saved ones and models in one list, whose tokens are
            then padded on the right.
        padding_side: ``"right"`` or ``"left"``.
        add_start: whether texts and prompts start with bos, or eos where there is no bos, so that all of
            the text is predicted. Chat templates bring what they need.
        add_end: whether texts and completions end with eos.
        pad_to_multiple_of: what the padded lengths are multiples of.
        template_settings: what chat templates are given besides the messages.
        one_sided: what to do with reasoning and tool calls that only one side's template shows: ``"learn"``
            them on that side, ``"leave_out"``, or ``"refuse"`` the example.
        packed: whether the examples of a batch stand in one row without padding, each a sequence of its own
            for models that attend by ``position_ids`` and for the loss.
        on_error: ``"raise"``, or ``"skip"`` examples that cannot be read, which ``skipped`` lists.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or a tokenizer has neither a
            pad token nor an eos token to pad with.
    """

    def __init__(
        self,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        teacher_max_length: int | None = None,
        pairs: CollatorPairs = "boundary",
        vocabulary: VocabularyMap | None = None,
        keys: bool | Literal["both"] = False,
        padding_side: str = "right",
        add_start: bool = True,
        add_end: bool = True,
        pad_to_multiple_of: int | None = None,
        template_settings: Mapping[str, Any] | None = None,
        one_sided: OneSided = "learn",
        on_error: Literal["raise", "skip"] = "raise",
        packed: bool = False,
    ) -> None:
        _checks.count("max_length", max_length, allow_none=True, least=2)
        _checks.count("teacher_max_length", teacher_max_length, allow_none=True, least=2)
        _checks.choice("pairs", pairs, ("boundary", "index", "text"))
        _checks.choice("padding_side", padding_side, ("right", "left"))
        _checks.choice("one_sided", one_sided, ("learn", "leave_out", "refuse"))
        _checks.choice("on_error", on_error, ("raise", "skip"))
        _checks.count("pad_to_multiple_of", pad_to_multiple_of, allow_none=True)
        if template_settings is not None and not isinstance(template_settings, Mapping):
            raise TypeError(
                f"template_settings: expected a mapping or None, got {type(template_settings).__name__}"
            )
        if keys != "both":
            _checks.flag("keys", keys)
        _checks.flag("add_start", add_start)
        _checks.flag("add_end", add_end)
        _checks.flag("packed", packed)
        if packed and (keys == "both" or (keys and pairs == "text") or pad_to_multiple_of is not None):
            raise ValueError(
                "packed: expected False with keys='both', with keys and pairs='text', and with "
                "pad_to_multiple_of, got True"
            )
        self.packed = packed
        self.tokenizers = (student_tokenizer, teacher_tokenizer)
        self._pad = [
            pad_token(f"{side}_tokenizer", each) for side, each in zip(SIDES, self.tokenizers, strict=True)
        ]
        self.limits_given = (max_length is not None, teacher_max_length is not None)
        self.max_length = length_limit(student_tokenizer, max_length)
        self.teacher_max_length = length_limit(teacher_tokenizer, teacher_max_length)
        self.pairs = pairs
        if vocabulary is not None and not isinstance(vocabulary, VocabularyMap):
            raise TypeError(f"vocabulary: expected a VocabularyMap or None, got {type(vocabulary).__name__}")
        if vocabulary is None and pairs == "text":
            vocabulary = VocabularyMap.from_tokenizers(student_tokenizer, teacher_tokenizer)
        self.vocabulary = vocabulary
        self.plan = None if vocabulary is None else vocabulary.plan()
        self.unserved: Counter[str] = Counter()
        self.keys, self._keys = keys, key_makers(by_text=pairs == "text")
        self.padding_side = padding_side
        self.add_start, self.add_end = add_start, add_end
        self.pad_to_multiple_of = pad_to_multiple_of
        self.template_settings = dict(template_settings or {})
        self.one_sided: OneSided = one_sided
        self.on_error = on_error
        self.truncation = Truncation()
        self.notes: Counter[str] = Counter()
        self.skipped: list[str] = []

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer, which the Trainer saves with its checkpoints."""
        return self.tokenizers[0]

    def prepare(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenise one example, for ``datasets.Dataset.map`` and the like.

        Returns:
            The columns that batches are made of: lists of integers for both models, ``pairs``,
            ``target_bytes``, and with ``keys`` the ``teacher_key``.

        Raises:
            TypeError, ValueError: the example has none of the forms of `DistillationCollator`.
        """
        return self.prepare_batch([example])[0]

    def prepare_batch(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Tokenise several examples together, which takes less time than one by one.

        Returns:
            For each of them the columns of `prepare`.

        Raises:
            TypeError, ValueError: an example has none of the forms of `DistillationCollator`.
        """
        return list(map(listed, self._fresh(examples)))

    def _fresh(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        if not examples:
            return []
        rows, pairs, notes = self._prepare(examples)
        self.truncation += pairs.truncation()
        self.notes += notes
        return rows

    def _prepare(self, examples: Sequence[Mapping[str, Any]]) -> Prepared:
        rendered = [
            render(example, self.tokenizers, self.template_settings, one_sided=self.one_sided)
            for example in examples
        ]
        student, teacher = (
            tokenize(tokenizer, side, *self._frame(tokenizer))
            for tokenizer, side in zip(self.tokenizers, zip(*rendered, strict=True), strict=True)
        )
        pairs = Pairs.of(student, teacher, self.max_length, self.teacher_max_length)
        rows = pairs.columns(with_pairs=self.pairs == "boundary")
        if self.pairs == "text":
            assert self.vocabulary is not None
            positions, reasons = pairs.text_positions(self.vocabulary)
            for row, each in zip(rows, positions, strict=True):
                row[TEXT_POSITIONS] = each
            self.unserved.update(reasons)
        if self.keys:
            for row in rows:
                row |= {name: key_of(listed(row)) for name, key_of in self._keys.items()}
        notes: Counter[str] = Counter()
        for mine, *_ in rendered:
            notes.update(mine.notes)
        return rows, pairs, notes

    def _frame(self, tokenizer: Any) -> tuple[int | None, int | None]:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        start = eos if bos is None else bos
        return (start if self.add_start else None), (eos if self.add_end else None)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch of examples, tokenised or not."""
        rows = self._rows(examples)
        if self.packed:
            made = packed_batch(rows, self.pairs, with_teacher=not self.keys)
            return made | ({KEYS: characters_of([row["teacher_key"] for row in rows])} if self.keys else {})
        batch, offset = self._side(rows, "", self._pad[0], self.padding_side)
        batch["labels"] = self._padded([row["labels"] for row in rows], -100)
        batch["text_mask"] = self._padded([row["text_mask"] for row in rows], 0).bool()
        batch["target_bytes"] = torch.tensor([row["target_bytes"] for row in rows])
        teacher_offset: Any = 0
        if self.keys:
            batch[KEYS] = characters_of([row["teacher_key"] for row in rows])
            if self.pairs == "text":  # saved predictions are padded on the right
                batch[TARGET_KEYS] = characters_of([row["target_key"] for row in rows])
                ids = [row["teacher_input_ids"] for row in rows]
                batch["teacher_input_ids"] = self._padded(ids, self._pad[1], "right")
        if self.keys in (False, "both"):
            side = "right" if self.keys else self.padding_side
            teacher, teacher_offset = self._side(rows, "teacher_", self._pad[1], side)
            batch |= teacher
            batch["teacher_labels"] = self._padded([row["teacher_labels"] for row in rows], -100, side)
        if self.pairs == "boundary":
            pairs = batch_pairs(
                [row["pairs"] for row in rows], student_offset=offset, teacher_offset=teacher_offset
            )
            batch["pairs"] = torch.from_numpy(pairs)
        if self.pairs == "text":
            positions = batch_text_positions(
                [row[TEXT_POSITIONS] for row in rows], student_offset=offset, teacher_offset=teacher_offset
            )
            batch[TEXT_POSITIONS] = torch.from_numpy(positions)
        return batch

    def _rows(self, examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        fresh = [each for each in examples if "input_ids" not in each]
        if self.on_error == "raise":
            made = iter(self._fresh(fresh))
            return [self._checked(each) if "input_ids" in each else next(made) for each in examples]
        rows: list[Mapping[str, Any]] = [self._checked(each) for each in examples if "input_ids" in each]
        if fresh:
            for several, pairs, notes in prepared("batch", fresh, self._prepare, self.skipped):
                self.truncation += pairs.truncation()
                self.notes += notes
                rows += several
        if examples and not rows:
            raise ValueError(f"batch: expected an example that can be read, found none; {self.skipped[-1]}")
        return rows

    def _checked(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        wanted = (*_COLUMNS, *_POSITION_COLUMNS[self.pairs])
        wanted += tuple(self._keys) if self.keys else ()
        wanted += _TEACHER_COLUMNS if self.keys in (False, "both") else ()
        if self.keys and self.pairs == "text":
            wanted += _TEACHER_COLUMNS[:1]
        lacking = [name for name in wanted if name not in example]
        if lacking:
            raise ValueError(
                "example: expected what DistillationCollator.prepare makes of it with these settings, "
                f"got input_ids without {', '.join(lacking)}"
            )
        return example

    def _side(
        self, rows: Sequence[Mapping[str, Any]], prefix: str, pad: int, where: str
    ) -> tuple[dict[str, Tensor], Any]:
        ids = [row[prefix + "input_ids"] for row in rows]
        mask = attention_mask(ids, where, self.pad_to_multiple_of)
        side = {prefix + "input_ids": self._padded(ids, pad, where), prefix + "attention_mask": mask}
        if where == "right":
            return side, 0
        side[prefix + "position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return side, (mask.shape[1] - mask.sum(dim=1)).numpy()

    def _padded(self, rows: Sequence[Any], value: int, side: str | None = None) -> Tensor:
        return padded(rows, value, side or self.padding_side, self.pad_to_multiple_of)

    def prepare_all(self, name: str, dataset: Any, *, tell: bool = True) -> Any:
        """Tokenise a data set, drop examples of which nothing is left to learn, and tell what was cut.

        Args:
            name: of the data set, for messages.
            dataset: one with a length, or a mapping of such; others, and those tokenised already, are given
                back as they are. A ``datasets.Dataset`` stays one; of others a `PreparedDataset` is made.
            tell: whether to log what was cut, if something was; an error tells in any case.

        Raises:
            TypeError, ValueError: nothing is left to learn, or an example has none of the forms of
                `DistillationCollator`; the message says which.
        """
        if isinstance(dataset, Mapping):
            return {
                key: self.prepare_all(f"{name}[{key!r}]", value, tell=tell) for key, value in dataset.items()
            }
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or not len(dataset):
            return dataset
        if isinstance(dataset[0], Mapping) and "input_ids" in dataset[0]:
            return dataset
        made, total, told = [], Truncation(), Counter[str]()
        known = len(self.skipped)
        for rows, pairs, notes in self._prepared(name, dataset):
            total += pairs.truncation()
            told += notes
            left = zip(rows, pairs.empty.tolist(), strict=True)
            made += [listed(row) for row, empty in left if not empty]
        self.truncation += total
        self.notes += told
        skipped = self.skipped[known:]
        if tell:
            tell_report(name, total, told, skipped)
        if not made:
            why = skipped[-1] if skipped else total
            raise ValueError(f"{name}: expected examples with something to learn, found none: {why}")
        keep_kind = getattr(type(dataset), "from_list", None)
        return PreparedDataset(made) if keep_kind is None else keep_kind(made)

    def _prepared(self, name: str, data: Any, number: int = 0) -> Iterator[Prepared]:
        skipped = self.skipped if self.on_error == "skip" else None
        return prepared(name, data, self._prepare, skipped, number)

    def teacher_examples(self, dataset: Any) -> Iterator[Any]:
        """Yield what a teacher has to read for a data set, for `mlot.saved.save_teacher`.

        Examples of which nothing is left to learn are left out.

        Args:
            dataset: of examples, tokenised or not.

        Yields:
            Token ids, and which positions' predictions count; with ``pairs="text"`` prepared examples, from
            which targets can be saved, too.
        """
        for row in self._each(dataset):
            mask = counted(row["teacher_labels"])
            if any(mask):
                yield row if self.pairs == "text" else (list(row["teacher_input_ids"]), mask)

    def teacher_keys(self, dataset: Any, keep: str = "traces") -> list[str]:
        """Keys of the examples of a data set, as `mlot.saved.example_key` makes them.

        Args:
            dataset: of examples, tokenised or not.
            keep: what is kept of the saved teacher; the keys of ``"targets"`` are of both models' tokens, and
                need ``pairs="text"``.
        """
        name = "target_key" if keep == "targets" else "teacher_key"
        if name not in self._keys:
            raise ValueError(f"keep: expected a collator with pairs='text' for targets, got {self.pairs!r}")
        return [row.get(name) or self._keys[name](row) for row in self._each(dataset)]

    def _each(self, dataset: Any) -> Iterator[Any]:
        for examples, number in runs(dataset):
            if "input_ids" in examples[0]:
                yield from examples
                continue
            for rows, _, _ in self._prepared("dataset", examples, number):
                yield from rows


SIDES = ("student", "teacher")
_POSITION_COLUMNS = {"boundary": ("pairs",), "index": (), "text": (TEXT_POSITIONS,)}
_COLUMNS = ("labels", "text_mask", "target_bytes")
_TEACHER_COLUMNS = ("teacher_input_ids", "teacher_labels")
