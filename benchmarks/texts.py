"""A student, a teacher and a text in the tokens of both, for the plan from the text."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mlot
import mlot.nn
from benchmarks.inputs import predictions
from mlot import align

_BYTES = 300  # of sources for each token of a vocabulary


class TextCase(NamedTuple):
    """What the plan from the text is computed of."""

    teacher: Tensor
    labels: Tensor
    teacher_labels: Tensor
    text: mlot.TextPositions


def criterion_by_text(options: argparse.Namespace, logits: Tensor) -> Callable[[], Tensor]:
    """The criterion with ``matching="text"``, targets included, on the given logits of the student."""
    case = text_case(options, logits)
    module = mlot.nn.MultiLevelOTLoss(mlot.MultiLevelOTConfig.text())
    return lambda: module(logits, case.teacher, case.labels, case.teacher_labels, text=case.text)


def targets(options: argparse.Namespace, logits: Tensor) -> Callable[[], Tensor]:
    """Targets alone."""
    case = text_case(options, logits)
    masks = {
        "student_mask": mlot.mask_from_labels(case.labels),
        "teacher_mask": mlot.mask_from_labels(case.teacher_labels),
    }
    return lambda: mlot.text_targets(case.teacher, case.text, **masks).served.sum()


def teacher_of_135_million(options: argparse.Namespace) -> Callable[[], Tensor]:
    """The forward pass of a model of SmolLM2-135M's shape, with random weights, over as many tokens."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(options.device, getattr(torch, options.dtype)).eval()
    ids = torch.randint(49152, (options.batch, options.length), device=options.device)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(ids).logits[0, 0, 0]

    return forward


def text_case(options: argparse.Namespace, logits: Tensor) -> TextCase:
    """A text in the tokens of two tokenizers, and random predictions of the teacher."""
    sources = _sources()
    student, teacher = (
        _tokenizer(sources[n::2], size)
        for n, size in enumerate((options.student_vocabulary, options.teacher_vocabulary))
    )
    vocabulary = align.VocabularyMap.from_tokenizers(student, teacher)
    plan = vocabulary.plan()
    rows, sides = [], ([], [])
    for source in sources[-options.batch :]:
        text = source.read_text(encoding="utf-8", errors="ignore")[: 40 * options.length]
        tokens = [align.byte_ranges(tokenizer, text) for tokenizer in (student, teacher)]
        found = align.text_positions(*tokens, text, vocabulary)
        inside = (found[:, 0] < options.length - 1) & (
            found[:, 1] + np.maximum(found[:, 8], 1) < options.length - 1
        )
        rows.append(found[inside])
        for side, each in zip(sides, tokens, strict=True):
            ids = each.ids[: options.length]
            side.append(np.pad(ids, (0, options.length - len(ids)), constant_values=-100))
    labels, taught = (torch.from_numpy(np.stack(side)).to(logits.device) for side in sides)
    made = predictions(
        options.batch, options.length, plan.teacher_vocab_size, options.hidden, seed=options.seed + 1,
        dtype=logits.dtype, device=logits.device,
    ).logits  # fmt: skip
    positions = torch.from_numpy(align.batch_text_positions(rows)).to(logits.device)
    text = mlot.TextPositions(positions, taught.clamp(min=0), plan)
    return TextCase(made, labels, taught, text)


def _sources() -> list[Path]:
    """Sources of the standard library, in the order of their names."""
    return sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))


def _tokenizer(sources: list[Path], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on some sources."""
    chosen, total = [], 0
    for source in sources:
        total += source.stat().st_size
        if total > _BYTES * size:
            break
        chosen.append(source.read_text(encoding="utf-8", errors="ignore"))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(chosen, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
