"""What must hold before the first step; each message says what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from mlot import MultiLevelOTConfig, Teacher
from mlot.training._arguments import MultiLevelOTTrainingArguments
from mlot.training._heads import language_model, output_embedding, unwrapped
from mlot.training._teacher import given_teachers


def arguments(args: Any) -> MultiLevelOTTrainingArguments:
    """Require our settings."""
    if not isinstance(args, MultiLevelOTTrainingArguments):
        raise TypeError(f"args: expected MultiLevelOTTrainingArguments, got {type(args).__name__}")
    if args.use_linear_head and args.n_gpu > 1:
        raise ValueError(
            "use_linear_head: expected False with several devices in one process "
            f"(torchrun gives each its own), got True with {args.n_gpu}"
        )
    if args.teacher_device is not None:
        _device(args.teacher_device)
    return args


def _device(name: str) -> None:
    """Require a device that is there."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"teacher_device: expected a device of this machine or None, got {name!r}: {reason}"
        ) from error
    if device.type == "meta":
        raise ValueError("teacher_device: expected a device that holds weights, got 'meta'")


def student(model: Any) -> None:
    """Require a student with a causal head."""
    if model is not None:
        causal("model", model)


def teacher(value: Any, model: Any, args: MultiLevelOTTrainingArguments, criterion: Any) -> None:
    """Require a teacher that is a model or saved, and fits the settings; none if nobody asks it."""
    if criterion is not None and not callable(criterion):
        raise TypeError(f"criterion: expected a module or None, got {type(criterion).__name__}")
    if args.eval_distillation and (value is None or not args.alpha or criterion is not None):
        raise ValueError(
            "eval_distillation: expected False without a teacher, with alpha=0 or another criterion, got True"
        )
    if value is None:
        if args.alpha:
            raise ValueError(f"teacher: expected a teacher, or alpha=0, got None with alpha={args.alpha}")
        if criterion is not None:
            raise ValueError("criterion: expected None without a teacher, got a loss")
        return
    several = isinstance(value, Sequence) and not isinstance(value, str)
    if several and not value:
        raise ValueError("teacher: expected at least one, got an empty sequence")
    for n, each in enumerate(value if several else [value]):
        name = f"teacher[{n}]" if several else "teacher"
        if several and not isinstance(each, Teacher):
            raise TypeError(f"{name}: expected a mlot.Teacher, got {type(each).__name__}")
        if several and (each.mask is not None or each.pairs is not None):
            raise ValueError(f"{name}: expected a mlot.Teacher without mask and pairs, which batches bring")
        source, config = (each.source, each.config) if several else (each, None)
        _teacher(name, source, model, args.ot_config() if config is None else config)


def _teacher(name: str, value: Any, model: Any, config: MultiLevelOTConfig) -> None:
    if isinstance(value, nn.Module):
        if value is model:
            raise ValueError(f"{name}: expected another model than the student, got the same")
        causal(name, value)
    elif hasattr(value, "batch") and hasattr(value, "manifest"):
        try:
            value.manifest.serves(config)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    else:
        wanted = "a model, its folder or name, a mlot.saved.SavedTeacher"
        wanted += " or None" if name == "teacher" else ""
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")


def causal(name: str, model: Any) -> None:
    """Require a causal head, as far as a model of transformers says."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: expected a causal language model, got {type(model).__name__}")
    adapter: Any = getattr(unwrapped(model), "active_peft_config", None)
    if getattr(adapter, "is_prompt_learning", False) and adapter.peft_type != "PREFIX_TUNING":
        raise ValueError(
            f"{name}: expected a model with a row of logits for each token, got one with "
            f"{adapter.num_virtual_tokens} virtual tokens before them ({adapter.peft_type.value})"
        )
    inner = language_model(model)
    if not isinstance(inner, PreTrainedModel):
        return
    class_name = type(inner).__name__
    other = class_name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and class_name not in (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    )
    if output_embedding(inner) is None or other or getattr(inner.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name}: expected a model with a causal head, such as LlamaForCausalLM, got {class_name}"
        )


def collator(value: Any, asked: Any) -> None:
    """Require a collator where a teacher is asked: those of transformers make none of its columns."""
    if value is None and asked is not None:
        raise ValueError(
            "data_collator: expected a DistillationCollator, or one that makes batches as it does, got None"
        )


def unused(kwargs: Mapping[str, Any]) -> None:
    """Refuse what the Trainer would not use."""
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func: expected None, since there is criterion, got a function")


def settings_of_others(args: Any, kwargs: Mapping[str, Any]) -> None:
    """Let a Trainer that prepares data sets itself, such as TRL's, leave that to the collator.

    It would cut all columns of prepared examples to one length, pairs and the teacher's among them.

    Raises:
        ValueError: a setting of such a Trainer would have no effect.
    """
    if not hasattr(args, "dataset_kwargs"):
        return
    for name, wanted in (
        ("packing", (False,)),
        ("eval_packing", (None, False)),
        ("padding_free", (False,)),
        ("loss_type", ("nll",)),
        ("completion_only_loss", (None, True)),
    ):
        value = getattr(args, name, wanted[0])
        if value not in wanted:
            raise ValueError(
                f"{name}: expected {' or '.join(map(repr, wanted))} with a DistillationCollator, which makes "
                f"the batches, got {value!r}"
            )
    if kwargs.get("formatting_func") is not None:
        raise ValueError(
            "formatting_func: expected None with a DistillationCollator, which reads the examples, got one"
        )
    args.dataset_kwargs = dict(args.dataset_kwargs or {}) | {"skip_prepare_dataset": True}


def packed(value: bool, teacher: Any, args: MultiLevelOTTrainingArguments, criterion: Any) -> None:
    """Refuse what is not made for several sequences in one row."""
    if value and (len(given_teachers(teacher)) > 1 or criterion is not None or args.eval_distillation):
        raise ValueError(
            "data_collator: expected packed=False with several teachers, another criterion or "
            "eval_distillation, got packed=True"
        )


def not_empty(name: str, dataset: Any) -> None:
    """Refuse data sets that have a length of 0."""
    if isinstance(dataset, Mapping):
        for key, value in dataset.items():
            not_empty(f"{name}[{key!r}]", value)
    elif hasattr(dataset, "__len__") and len(dataset) == 0:
        raise ValueError(f"{name}: expected at least one example, got none")


def even_shares(args: MultiLevelOTTrainingArguments, dataset: Any) -> None:
    """Require as many batches for every process: they count together."""
    config: Any = args.accelerator_config
    if args.world_size == 1 or config.even_batches or config.split_batches or not hasattr(dataset, "__len__"):
        return
    rounding = math.floor if args.dataloader_drop_last else math.ceil
    batches = rounding(len(dataset) / args.train_batch_size)
    if batches % args.world_size:
        raise ValueError(
            f"accelerator_config: expected even_batches=True where {batches} batches do not fall evenly to "
            f"{args.world_size} processes, got even_batches=False"
        )


def saved_examples(value: Any, collator: Any, name: str, dataset: Any) -> None:
    """Require that saved teachers were made with the collator's tokenizer and have every example.

    Args:
        value: what was given as a teacher.
        collator: a `mlot.training.DistillationCollator`.
        name: of the data set, for messages.
        dataset: one, or a mapping of several; without a length, its examples cannot be looked for beforehand.
    """
    kept: list[Any] = [
        each.source for each in given_teachers(value) if not isinstance(each.source, nn.Module)
    ]
    if not kept:
        return
    from mlot.saved import fingerprint

    student, wanted = map(fingerprint, collator.tokenizers)
    for each in kept:
        if each.manifest.tokenizer_fingerprint != wanted:
            raise ValueError(
                "teacher: expected one saved with the tokenizer of data_collator, whose fingerprint is "
                f"{wanted!r}, got one saved with {each.manifest.tokenizer_fingerprint!r}"
            )
        if each.manifest.student_tokenizer_fingerprint not in (None, student):
            raise ValueError(
                "teacher: expected targets in the tokens of data_collator's student tokenizer, whose "
                f"fingerprint is {student!r}, got some for {each.manifest.student_tokenizer_fingerprint!r}"
            )
    if isinstance(dataset, Mapping):
        for key, each in dataset.items():
            saved_examples(value, collator, f"{name}[{key!r}]", each)
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return
    for each in kept:
        keys = set(collator.teacher_keys(dataset, each.manifest.keep))
        missing = each.missing(keys)
        if missing:
            raise ValueError(
                f"teacher: expected all {len(keys)} different examples of {name}, "
                f"{len(missing)} of them were not saved"
            )
