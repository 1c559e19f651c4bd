"""On-policy distillation: batches of answers that the student itself wrote to the prompts of the data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from mlot._storage import write_atomically
from mlot.nn import DistillationTerms
from mlot.training._answers import AnswersPage, read_answers
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._batch import ON_POLICY
from mlot.training._collator import DistillationCollator
from mlot.training._teacher import given_teachers

#: File in the output folder with everything that was generated, one answer a line.
ANSWERS = "on_policy.jsonl"


class Generator(Protocol):
    """Answers prompts in the student's place, such as transformers' ``generate`` or an inference engine.

    It is called with the student, prompts as lists of token ids, and the settings, and returns for each
    prompt in order ``answers`` lists of new token ids, one list after the other; the token of ``end_ids``
    that ends an answer stays in it. The same ``seed`` has to give the same answers
    if a run is to be repeatable.
    """

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        answers: int,
        temperature: float,
        max_new_tokens: int,
        end_ids: Sequence[int],
        pad_id: int,
        seed: int,
    ) -> Sequence[Sequence[int]]: ...


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    answers: int,
    temperature: float,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> list[list[int]]:
    """Sample answers with transformers' ``generate``, from the student's whole distribution.

    The state of torch's random numbers is left as it was, so that dropout is the same with and without.
    """
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    devices = [device] if device.type == "cuda" else []
    training, written = model.training, []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(seed)
        model.eval()
        try:
            sampled: Tensor = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=answers,
                max_new_tokens=max_new_tokens,
                eos_token_id=list(end_ids) or None,
                pad_token_id=pad_id,
            )
        finally:
            model.train(training)
    for row in sampled[:, longest:].tolist():
        ends = [n for n, token in enumerate(row) if token in end_ids]
        written.append(row[: ends[0] + 1] if ends else row)
    return written


@dataclass(frozen=True)
class _Prompt:
    """A prompt as the data has it, its tokens for the student, and what ends an answer."""

    value: Any
    ids: list[int]
    end_ids: tuple[int, ...]

    def answered(self, text: str) -> dict[str, Any]:
        """The example with an answer."""
        said = text if isinstance(self.value, str) else [{"role": "assistant", "content": text}]
        return {"prompt": self.value, "completion": said}


class OnPolicy:
    """Replaces a share of the batches by answers of the student, prepared as every example is.

    What is drawn depends on the seed, the step, the batch in it and the process alone, so that a run that is
    resumed goes on as the one that was not stopped.

    Args:
        args: settings.
        collator: prepares the answers.
        examples: whose prompts are answered; the answers that they bring are not looked at.
        generator: what answers.

    Raises:
        ValueError: an example has no prompt.
    """

    def __init__(
        self,
        args: MultiLevelOTTrainingArguments,
        collator: DistillationCollator,
        examples: Any,
        generator: Generator,
    ) -> None:
        self._args, self._collator, self._generator = args, collator, generator
        self._examples = examples
        self._path = Path(str(args.output_dir)) / ANSWERS
        self._step: int | None = None
        self._buffer: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
        self._end_ids: dict[type, tuple[int, ...]] = {}
        for n in range(len(examples)):
            _prompt_of(examples[n], f"train_dataset[{n}]")

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer calls for this."""
        return [AnswersPage(self._path)]

    def replace(
        self, model: nn.Module, batches: list[Any], step: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Replace those batches of a step, in their list, for which that is drawn.

        Returns:
            Numbers of answers, of those whose tokens their text does not come back as, and of those left out;
            none where no batch was drawn.
        """
        if self._step is None or step <= self._step:
            self._discard(step)
            self._buffer = {}
        self._step = step
        args, counts = self._args, dict.fromkeys(("answers", "changed", "left_out"), 0.0)
        written = step - step % args.on_policy_reuse
        drawn = [n for n in range(len(batches)) if self._draw(written, n).random() < args.on_policy]
        self._buffer = {key: rows for key, rows in self._buffer.items() if key[0] == written}
        for n in drawn:
            rows, records = self._answers(model, step, written, n, _size(batches[n]))
            for name in counts:
                counts[name] += sum(record[name] for record in records) if name != "answers" else len(records)
            self._write(step, n, records)
            if rows:
                made = self._collator(rows) | {ON_POLICY: torch.ones(())}
                batches[n] = {name: value.to(device) for name, value in made.items()}
        return {f"on_policy_{name}": torch.tensor(value) for name, value in counts.items()} if drawn else {}

    def _answers(
        self, model: nn.Module, step: int, written: int, batch: int, size: int
    ) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]]]:
        """Prepared answers to learn from, and a record of each that is written now."""
        key, records = (written, batch), list[dict[str, Any]]()
        if key not in self._buffer and step > written:
            self._buffer[key] = self._kept(*key)
        if not self._buffer.get(key):
            self._buffer[key], records = self._rows(model, written, batch, size)
        return self._buffer[key][:size], records

    def _kept(self, step: int, batch: int) -> list[Mapping[str, Any]]:
        """Answers of a step that a run that is resumed finds in its file, prepared."""
        if not self._args.should_save or not self._path.exists():
            return []
        mine = [
            each for each in read_answers(self._path) if (each["step"], each.get("batch")) == (step, batch)
        ]
        rows = [self._read(self._prompt({"prompt": each["prompt"]}), each["tokens"])[0] for each in mine]
        return [row for row in rows if row is not None]

    def _draw(self, step: int, batch: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([int(self._args.seed), step, batch, *more])

    def _rows(
        self, model: nn.Module, step: int, batch: int, size: int
    ) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]]]:
        """Prepared answers, at most ``size``, and a record of each that was written."""
        args, tokenizer = self._args, self._collator.tokenizer
        draw = self._draw(step, batch, 1 + args.process_index)
        chosen = draw.integers(len(self._examples), size=-(-size // args.on_policy_answers))
        most = self._collator.max_length
        rows: list[Mapping[str, Any]] = []
        records: list[dict[str, Any]] = []
        prompts = [self._prompt(self._examples[int(n)]) for n in chosen]
        prompts = [each for each in prompts if each.ids and (most is None or len(each.ids) < most)]
        if not prompts:
            return [], []
        room = args.on_policy_max_new_tokens
        if most is not None:
            room = min(room, most - max(len(each.ids) for each in prompts))
        written = self._generator(
            model,
            [each.ids for each in prompts],
            answers=args.on_policy_answers,
            temperature=args.on_policy_temperature,
            max_new_tokens=room,
            end_ids=sorted({token for each in prompts for token in each.end_ids}),
            pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            seed=int(draw.integers(2**31)),
        )
        if len(written) != len(prompts) * args.on_policy_answers:
            raise ValueError(
                f"generator: expected {args.on_policy_answers} answers to each of {len(prompts)} prompts, "
                f"got {len(written)}"
            )
        for n, ids in enumerate(written):
            row, record = self._read(prompts[n // args.on_policy_answers], [int(token) for token in ids])
            if len(rows) < size:
                records.append(record)
                if row is not None:
                    rows.append(row)
        return rows, records

    def _read(self, prompt: _Prompt, ids: list[int]) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
        """An answer as both models read it, ``None`` if it is left out, and what is to be told of it."""
        ended = bool(ids) and ids[-1] in prompt.end_ids
        own = ids[:-1] if ended else ids
        text = str(
            self._collator.tokenizer.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        row = self._collator.prepare(prompt.answered(text))
        read = [token for token, is_text in zip(row["input_ids"], row["text_mask"], strict=True) if is_text]
        changed = [*prompt.ids, *own] != list(row["input_ids"][: len(prompt.ids) + len(own)]) or read != own
        nothing = all(label == -100 for label in row["labels"])
        left_out = nothing or (changed and self._args.on_policy_changed == "leave_out")
        record = {"prompt": prompt.value, "answer": text, "tokens": ids, "ended": ended}
        return None if left_out else row, record | {"changed": changed, "left_out": left_out}

    def _prompt(self, example: Mapping[str, Any]) -> _Prompt:
        value = _prompt_of(example, "train_dataset")
        tokenizer = self._collator.tokenizer
        lead: list[int] = []
        text = value
        if isinstance(value, str):
            start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
            lead = [start] if self._collator.add_start and start is not None else []
        else:
            text = tokenizer.apply_chat_template(
                value, tokenize=False, add_generation_prompt=True, **self._collator.template_settings
            )
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return _Prompt(value, [*lead, *map(int, ids)], self._ends(value))

    def _ends(self, value: Any) -> tuple[int, ...]:
        """Tokens that end an answer: what is learnt after its text."""
        form = type(value)
        if form not in self._end_ids:
            trial = self._collator.prepare(_Prompt(value, [], ()).answered("a"))
            marked = zip(trial["labels"], trial["text_mask"], strict=True)
            ends = {int(label) for label, is_text in marked if label != -100 and not is_text}
            self._end_ids[form] = tuple(sorted(ends))
        return self._end_ids[form]

    def _discard(self, step: int) -> None:
        """Drop from the file what another run, or this one before it was stopped, wrote from a step on."""
        if self._args.should_save and self._path.exists():
            kept = [record for record in read_answers(self._path) if record["step"] < step]
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
            write_atomically(self._path, "".join(lines).encode())

    def _write(self, step: int, batch: int, records: list[dict[str, Any]]) -> None:
        if not self._args.should_save:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps({"step": step, "batch": batch} | record, ensure_ascii=False) + "\n")


def on_policy(
    args: MultiLevelOTTrainingArguments,
    teacher: Any,
    criterion: Any,
    collator: Any,
    examples: Any,
    generator: Generator | None,
) -> OnPolicy | None:
    """What replaces batches; ``None`` where nothing is to be.

    Raises:
        ValueError: something does not go with ``args.on_policy``.
    """
    if generator is not None and not callable(generator):
        raise TypeError(f"generator: expected a callable or None, got {type(generator).__name__}")
    if not args.on_policy:
        if generator is not None:
            raise ValueError("generator: expected None with on_policy=0, got one")
        return None
    for right, wanted, got in (
        (isinstance(collator, DistillationCollator), "a DistillationCollator", type(collator).__name__),
        (
            all(isinstance(each.source, nn.Module) for each in given_teachers(teacher)),
            "teachers that are models, to read what is written",
            "a saved one",
        ),
        (criterion is None or hasattr(criterion, "terms"), "a criterion with terms", "one without"),
        (
            hasattr(examples, "__len__") and hasattr(examples, "__getitem__"),
            "a train_dataset with a length",
            type(examples).__name__,
        ),
    ):
        if not right:
            raise ValueError(f"on_policy: expected {wanted}, got {got}")
    return OnPolicy(args, collator, examples, generate if generator is None else generator)


def without_cross_entropy(terms: DistillationTerms, criterion: Any) -> DistillationTerms:
    """The loss on what the student wrote, which it is not to learn by heart."""
    loss = getattr(criterion, "alpha", 1.0) * terms.distillation
    return replace(terms, loss=loss, cross_entropy=torch.zeros_like(loss))


def _size(batch: Mapping[str, Any]) -> int:
    """Number of sequences in a batch."""
    if "attention_mask" not in batch and "position_ids" in batch:
        return int((batch["position_ids"] == 0).sum())
    return len(batch["labels"])


def _prompt_of(example: Any, name: str) -> Any:
    """What an example asks: a string, or messages."""
    if isinstance(example, Mapping):
        if "prompt" in example:
            return example["prompt"]
        messages = example.get("messages")
        if messages:
            said = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
            if said and said[-1]:
                return list(messages[: said[-1]])
    raise ValueError(
        f"on_policy: expected examples with a prompt, or messages with an answer after others, "
        f"got {name} without; with on_policy a data set is given untokenised"
    )
