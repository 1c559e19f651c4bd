"""Running a teacher over a data set, once, and saving what it predicts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlot import _checks
from mlot._fingerprint import fingerprint
from mlot._resolve import type_name
from mlot._selection import select
from mlot._storage import DTYPES, safetensors_numpy
from mlot._typing import Kept
from mlot.align import VocabularyMap, batch_text_positions
from mlot.config import MultiLevelOTConfig
from mlot.saved._examples import TeacherExample, read_examples, read_pairs
from mlot.saved._fingerprint import model_fingerprint
from mlot.saved._likeliest import likeliest
from mlot.saved._manifest import Manifest, check_kept
from mlot.saved._pack import empty_example, packed_examples
from mlot.saved._reader import SavedTeacher
from mlot.saved._writer import TeacherWriter
from mlot.targets import MIN_SERVED, text_targets
from mlot.text import TextPlan, TextPositions, TextTargets
from mlot.topk import TopKLogprobs
from mlot.traces import Traces

if TYPE_CHECKING:
    import torch

    from mlot.saved._head import TeacherHead


def save_teacher(
    model: Any,
    tokenizer: Any,
    examples: Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    keep: Kept = "traces",
    student_tokenizer: Any = None,
    k: int | Literal["preset"] | None = "preset",
    temperature: float = 1.0,
    extra_temperatures: tuple[float, ...] | None = None,
    standardize: bool = False,
    dtype: str = "float16",
    max_length: int | None = None,
    batch_size: int = 8,
    examples_per_shard: int = 1024,
    device: Any = None,
    name: str | None = None,
    revision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SavedTeacher:
    """Run a causal language model over a data set and save what it predicts; resumes what was interrupted.

    Examples that the folder has are left out, so that to resume, to add examples, or to make up for a file
    that was lost is to call this again. With the same examples, batch size and shard size, the files are
    byte for byte those of a run without interruption. Examples are sorted by length within a file, and padded
    on the right. Where the model's logits are its last hidden states times its output embedding, perhaps
    scaled or capped, they are never formed (see `mlot.LinearHead`); other models give logits.

    Args:
        model: a causal language model of the transformers library. It runs in evaluation mode without
            gradients, and is left in the mode it was in.
        tokenizer: the one it was trained with, fast or slow.
        examples: texts, which get the special tokens that the tokenizer adds by itself, and of which every
            token but the first is predicted; or ``(ids, labels)``, unshifted,
            with -100 at positions to ignore; or ``(ids, mask)``, booleans that mark the positions whose
            prediction counts; or mappings with ``input_ids`` and ``labels`` or ``mask``, without padding; or
            mappings with ``text``, or with ``prompt`` and ``completion`` or ``messages``, which are tokenised
            as `mlot.training.DistillationCollator` does; or what that makes of them.
            Equal examples are saved once.
        folder: new, empty, or of the same saved teacher.
        keep: ``"traces"``, the heaviest columns of each example, which the paper's loss needs; or, for
            ``matching="text"``, ``"likeliest"``, the teacher's likeliest tokens at each of its positions, for
            any student, or ``"targets"``, what it says in the tokens of one student. See the guide.
        student_tokenizer: for ``keep="targets"``: texts, prompts and conversations are then tokenised for
            both models, as the collator does it.
        k: columns to keep of each example, or tokens of each position; ``"preset"``: as many as the preset of
            the loss has, 50 columns or 256 tokens; ``None`` keeps all.
        temperature: of the token level.
        extra_temperatures: further temperatures that the traces shall serve; ``None``: 2, and with other
            things kept there are none.
        standardize: divide logits by their standard deviation first.
        dtype: storage type of log-probabilities; `SavedTeacher` has their size, `StorageError` what is lost.
        max_length: tokens after the first so many of an example are left out; ``None`` leaves out none.
        batch_size: examples in a batch.
        examples_per_shard: examples in a file: what an interruption may lose.
        device: where to move the model, which stays there; ``None`` leaves it where it is.
        name: of the model, for the manifest; ``None`` means the last part of what it was loaded from.
        revision: of the model; ``None`` means what the transformers library says, if anything.
        progress: called with the number of examples done and to do.

    Returns:
        The saved teacher.

    Raises:
        ImportError: safetensors or filelock is not installed.
        TypeError, ValueError: an argument is of the wrong kind or range, an example is longer than the model
            reads or has ids that the model lacks, or the folder holds something else. Nothing was written.
        FolderLockedError: another writer has the folder open.
    """
    if extra_temperatures is None:
        extra_temperatures = (2.0,) if keep == "traces" else ()
    extra = _checks.temperatures(temperature, extra_temperatures)
    _checks.flag("standardize", standardize)
    check_kept(keep, extra, standardize)
    if k == "preset":
        k = (MultiLevelOTConfig.paper() if keep == "traces" else MultiLevelOTConfig.text()).k
    _checks.count("k", k, allow_none=True)
    _checks.choice("dtype", dtype, tuple(DTYPES))
    _checks.count("max_length", max_length, allow_none=True)
    _checks.count("batch_size", batch_size)
    _checks.count("examples_per_shard", examples_per_shard)
    _checks.path("folder", folder)
    safetensors_numpy("folder")
    _check_model(model)
    if (keep == "targets") != (student_tokenizer is not None):
        wanted = "a tokenizer with keep='targets'" if keep == "targets" else f"None with keep={keep!r}"
        raise ValueError(f"student_tokenizer: expected {wanted}, got {type_name(student_tokenizer)}")
    vocabulary = None
    if keep == "targets":
        vocabulary = VocabularyMap.from_tokenizers(student_tokenizer, tokenizer)
        unique = read_pairs(examples, (student_tokenizer, tokenizer), vocabulary, max_length)
    else:
        unique = read_examples(examples, tokenizer, max_length)
    if not unique:
        raise ValueError("examples: expected at least one, got none")
    _check_examples(unique, model)

    from mlot._hf.heads import evaluating
    from mlot.saved._head import find_head

    if device is not None:
        model.to(device)
    with evaluating(model):
        head = find_head(model, _tensor([_probe(unique)], model))
        vocab_size = head.vocab_size if vocabulary is None else vocabulary.student_vocab_size
        settings: dict[str, str | float] = {
            "computed_in": str(model.dtype).removeprefix("torch."),
            "computed_from": "logits" if head.head is None else "hidden states",
        }
        plan = None if vocabulary is None else vocabulary.plan()
        if plan is not None:
            settings |= {"reading": plan.reading, "min_served": MIN_SERVED}
        manifest = Manifest(
            model=_name(model) if name is None else name,
            model_fingerprint=model_fingerprint(model),
            tokenizer_fingerprint=fingerprint(tokenizer),
            vocab_size=vocab_size,
            k=vocab_size if k is None else min(k, vocab_size),
            revision=getattr(model.config, "_commit_hash", None) if revision is None else revision,
            temperature=temperature,
            extra_temperatures=extra,
            standardize=standardize,
            dtype=dtype,
            settings=settings,
            keep=keep,
            student_tokenizer_fingerprint=None if plan is None else fingerprint(student_tokenizer),
        )
        with TeacherWriter(folder, manifest, examples_per_shard=examples_per_shard) as writer:
            lacking = set(writer.missing(each.key for each in unique))
            todo = [each for each in unique if each.key in lacking]
            done = len(unique) - len(todo)
            if progress is not None:
                progress(done, len(unique))
            for start in range(0, len(todo), examples_per_shard):
                chunk = todo[start : start + examples_per_shard]
                for batch in _run(head, plan, chunk, batch_size, manifest, writer):
                    done += batch
                    if progress is not None:
                        progress(done, len(unique))
    return SavedTeacher(folder, expect=manifest)


def _run(
    head: TeacherHead,
    plan: TextPlan | None,
    chunk: Sequence[TeacherExample],
    batch_size: int,
    manifest: Manifest,
    writer: TeacherWriter,
) -> Iterator[int]:
    """Compute what goes into one file and hand it to the writer in order; yields the size of each batch."""
    import torch

    made: dict[str, Any] = {}
    order = sorted(range(len(chunk)), key=lambda n: (-len(chunk[n].ids), n))
    for start in range(0, len(order), batch_size):
        batch = [chunk[n] for n in order[start : start + batch_size]]
        if any(each.mask.any() for each in batch):
            with torch.no_grad():
                source, present = _kept(head, plan, batch, manifest)
            packed = packed_examples(manifest, [each.key for each in batch], source, present)
        else:
            packed = [empty_example(manifest, each.key, each.positions) for each in batch]
        made.update(zip((each.key for each in batch), packed, strict=True))
        yield len(batch)
    writer._append([made[each.key] for each in chunk])


def _kept(
    head: TeacherHead, plan: TextPlan | None, batch: Sequence[TeacherExample], manifest: Manifest
) -> tuple[Traces | TopKLogprobs | TextTargets, torch.Tensor]:
    """What is kept of a batch, and which of its positions hold tokens."""
    import torch

    ids = _tensor([each.ids for each in batch], head.model)
    present = _tensor([np.ones(len(each.ids)) for each in batch], head.model)
    mask = _tensor([each.mask for each in batch], head.model).bool()
    predictions = head(ids, present)
    if manifest.keep == "likeliest":
        return likeliest(predictions, mask, k=manifest.k, temperature=manifest.temperature), present
    if plan is None:
        traces = select(
            predictions,
            mask,
            k=manifest.k,
            temperature=manifest.temperature,
            extra_temperatures=manifest.extra_temperatures,
            standardize=manifest.standardize,
        )
        return traces, present
    sides = [each.student for each in batch if each.student is not None]
    rows = torch.from_numpy(batch_text_positions([each.positions for each in sides])).to(ids.device)
    targets = text_targets(
        predictions,
        TextPositions(rows, ids, plan),
        student_mask=_tensor([each.mask for each in sides], head.model).bool(),
        teacher_mask=mask,
        k=manifest.k,
        temperature=manifest.temperature,
    )
    return targets, _tensor([np.ones(len(each.mask)) for each in sides], head.model)


def _tensor(rows: Sequence[Any], model: Any) -> torch.Tensor:
    """Rows as one tensor of integers, padded with 0 on the right."""
    import torch

    padded = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for n, row in enumerate(rows):
        padded[n, : len(row)] = row
    return torch.from_numpy(padded).to(model.get_input_embeddings().weight.device)


def _probe(examples: Sequence[TeacherExample]) -> Any:
    """A few tokens to try the model on."""
    longest = max(examples, key=lambda each: min(len(each.ids), 4)).ids[:4]
    return longest if len(longest) else np.zeros(1, np.int32)


def _name(model: Any) -> str:
    return PurePath(getattr(model.config, "_name_or_path", "") or "").name or type(model).__name__


def _check_model(model: Any) -> None:
    for attribute in ("config", "get_input_embeddings", "get_output_embeddings", "base_model"):
        if not hasattr(model, attribute):
            raise TypeError(
                f"model: expected a causal language model of transformers, got {type(model).__name__}"
            )
    generates = getattr(model, "can_generate", None)  # whether transformers has it write, token by token
    if (callable(generates) and not generates()) or getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            "model: expected a model with a causal head, such as LlamaForCausalLM, "
            f"got {type(model).__name__}"
        )


def _check_examples(examples: Sequence[TeacherExample], model: Any) -> None:
    from mlot._hf.heads import longest_input

    longest = longest_input(model)
    known = int(model.get_input_embeddings().weight.shape[0])
    for each in examples:
        if longest is not None and longest < len(each.ids):
            raise ValueError(
                f"examples: expected at most {longest} tokens, all that the model reads, "
                f"got an example of {len(each.ids)} ({_start(each)})"
            )
        if each.ids.size and each.ids.max() >= known:
            raise ValueError(
                f"examples: expected token ids below {known}, as the model knows, got {each.ids.max()} "
                f"({_start(each)})"
            )


def _start(example: TeacherExample) -> str:
    return f"it starts with the ids {', '.join(map(str, example.ids[:8].tolist()))}"
