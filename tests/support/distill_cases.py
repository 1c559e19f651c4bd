"""Texts, models and arguments that the tests of the command share."""

import random

import pytest

pytest.importorskip("transformers")

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mlot.distill import run as run_module
from mlot.distill.setup import read_documents

MADE = [
    "--teacher-vocabulary",
    "320",
    "--teacher-width",
    "32",
    "--teacher-layers",
    "1",
    "--teacher-steps",
    "3",
]


MADE += ["--student-vocabulary", "280", "--student-width", "32", "--student-layers", "1"]

SHORT = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--length",
    "32",
    "--k",
    "8",
    "--evaluations",
    "2",
    "--threads",
    "1",
]


def write_text(folder, documents=30):
    """Write a file of so many documents."""
    path = folder / "text.txt"
    words = (
        "the of and Größe to in is you that it he was for on are as with they ☃ be at one have this".split()
    )
    rng = random.Random(0)
    lines = [
        " ".join(rng.choices(words, k=12)) + ("\n\n" if n % 30 == 29 else "\n") for n in range(30 * documents)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    assert len(texts_of(path)) == documents
    return path


def texts_of(path):
    """Texts of the documents of a file."""
    return [document.text for document in read_documents([path])]


def run_without_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a training was started")

    monkeypatch.setattr(run_module, "MultiLevelOTTrainer", fail)


def save_llama(folder, tokenizer, kind=LlamaForCausalLM, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 32} | settings
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, **settings
    )
    kind(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gpt2(folder, tokenizer, dtype=torch.float32):
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer) + 5, n_positions=48, n_embd=24, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
