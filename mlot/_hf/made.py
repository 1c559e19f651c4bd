"""Small models, tokenizers and text made on the spot: for the demonstration, benchmarks and tests."""

from __future__ import annotations

import ast
import json
import sysconfig
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    set_seed,
)

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
#: By how much the Unigram trainer sets scores of added bytes apart.
_TRAINER_STEP = 1e-4
#: Folders that hold tests, generated or foreign code.
_LEFT_OUT = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"})


def make_llama(
    tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, length: int, seed: int
) -> LlamaForCausalLM:
    """Make an untrained Llama for a tokenizer.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        width: of the hidden states, a multiple of 32; heads are 32 wide.
        layers: number of blocks.
        length: longest input in tokens.
        seed: of the initial weights.
    """
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=8 * width // 3 // 16 * 16,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


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


def standard_library_documents(root: Path | None = None) -> list[str]:
    """Collect docstrings of Python's standard library, one document for each source file.

    A docstring that several places share is kept at the first. Tests and idlelib are left out, and so is what
    is installed beside the library.

    Args:
        root: folder to search; ``None`` means that of the running Python.

    Returns:
        Documents in the order of the files' names, the same on each call.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    seen: set[str] = set()
    documents = []
    for name in sorted(files):
        if not _LEFT_OUT.isdisjoint(name.split("/")[:-1]):
            continue
        fresh = []
        for docstring in _docstrings(files[name]):
            if docstring not in seen:
                seen.add(docstring)
                fresh.append(docstring)
        if fresh:
            documents.append("\n\n".join(fresh) + "\n")
    return documents


def _docstrings(path: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in a source are no business of ours
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some files are broken on purpose
            return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        (getattr(node, "lineno", 0), ast.get_docstring(node))
        for node in ast.walk(tree)
        if isinstance(node, documented)
    ]
    docstrings.sort(key=lambda item: item[0])
    return [text for _, text in docstrings if text and text.strip() and _is_unicode(text)]


def _is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
