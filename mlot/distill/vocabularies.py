"""Tokenizers trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
#: By how much the Unigram trainer sets scores of added bytes apart.
_TRAINER_STEP = 1e-4


def train_bpe(documents: Sequence[str], size: int, length: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most ``size`` tokens, for a model that reads ``length``."""
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(**_settings(size)))
    return _wrap(tokenizer, length)


def train_unigram(documents: Sequence[str], size: int, length: int) -> PreTrainedTokenizerFast:
    """Train a Unigram tokenizer over bytes, so that it can write any text, too; else as `train_bpe`."""
    tokenizer = _byte_level(models.Unigram())
    tokenizer.train_from_iterator(documents, trainers.UnigramTrainer(**_settings(size)))
    tokenizer.model = models.Unigram(_in_order(json.loads(tokenizer.to_str())["model"]["vocab"]))
    return _wrap(tokenizer, length)


def _in_order(vocabulary: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Vocabulary of a Unigram model in an order, and with scores, that training repeats.

    The trainer gives bytes that it had to add the lowest score and, one after the other in the order of a
    hash table, a little more: each run differs. All single bytes in that range get the lowest score instead.
    """
    special, rest = vocabulary[:3], vocabulary[3:]
    lowest = min(score for _, score in rest)
    highest_added = lowest + 256 * _TRAINER_STEP + 1e-9
    scored = [
        (token, round(lowest if len(token) == 1 and score <= highest_added else score, 6))
        for token, score in rest
    ]
    return [(token, float(score)) for token, score in special] + sorted(
        scored, key=lambda item: (-item[1], item[0])
    )


def _byte_level(model: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _settings(size: int) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "special_tokens": [PAD, BOS, EOS],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }


def _wrap(tokenizer: Tokenizer, length: int) -> PreTrainedTokenizerFast:
    make: Any = PreTrainedTokenizerFast  # its constructor carries no annotations
    wrapped: PreTrainedTokenizerFast = make(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
    return wrapped
