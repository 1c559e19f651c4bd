"""A real server: its predictions beside those of the same weights, and from it to a student that learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import transformers

from mlot.saved import SavedTeacher, save_from_server
from mlot.serving import Server
from mlot.training import DistillationCollator
from training_cases import make_trainer

K = 20
TEXTS = [
    "The capital of France is Paris, and that of Japan is Tokyo.",
    "Water boils at 100 degrees Celsius – at sea level. 🙂",
    "def add(a, b):\n    return a + b\n",
]


@pytest.fixture(scope="module")
def model(weights: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name).eval()


def test_predictions_are_those_of_the_weights(url: str, weights: Path, tokenizer: Any, model: Any) -> None:
    """Within what 4 bits and the server's own rounding of activations explain."""
    server = Server(url, tokenizer)
    assert server.kind == "llama.cpp"
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        got, _ = server.likeliest(ids, range(len(ids) - 1), k=K, vocab_size=len(tokenizer))
        with torch.no_grad():
            truth = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        apart, kept = [], []
        for t in range(len(ids) - 1):
            listed = got.ids[0, t]
            assert (listed >= 0).all()
            assert len(set(listed.tolist())) == K
            own = np.exp(truth[t, listed])
            apart.append(np.abs(np.exp(got.logprobs[0, t]) - own).sum())
            kept.append(own.sum() / np.sort(np.exp(truth[t]))[-K:].sum())
        assert np.mean(apart) < 0.12, np.mean(apart)  # of 2, the most that two distributions can differ by
        assert np.mean(kept) > 0.97


def test_the_server_writes(url: str) -> None:
    server = Server(url)
    assert "Paris" in server.answer("The capital of France is", max_tokens=5, temperature=0.0)
    assert server.answer([{"role": "user", "content": "Say hello."}], max_tokens=8, seed=1)


def test_from_a_server_to_a_student(url: str, tokenizer: Any, tmp_path: Path) -> None:
    """Its predictions saved, and three steps of a student with another tokenizer by the plan from the text."""
    from mlot._hf.made import train_bpe

    student_tokenizer = train_bpe(TEXTS, 280, 256)
    collator = DistillationCollator(student_tokenizer, tokenizer, pairs="text", keys=True)
    data = [{"text": text} for text in TEXTS]
    saved = save_from_server(
        url, tokenizer, collator.teacher_examples(data), tmp_path / "teacher", k=K, concurrency=2
    )
    assert len(saved) == len(TEXTS)
    assert not SavedTeacher(tmp_path / "teacher").missing(
        collator.teacher_keys(list(map(collator.prepare, data)), "likeliest")
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(student_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    student = transformers.LlamaForCausalLM(config)
    before = [p.detach().clone() for p in student.parameters()]
    trainer = make_trainer(
        tmp_path, model=student, teacher=saved, collator=collator, dataset=data, matching="text", k=K,
        max_steps=3, learning_rate=1e-2,
    )  # fmt: skip
    losses = [trainer.compute_loss(student, collator(data)).item()]
    trainer.train()
    losses.append(trainer.compute_loss(student, collator(data)).item())
    assert losses[1] < losses[0] - 0.05
    assert any(not torch.equal(p, old) for p, old in zip(student.parameters(), before, strict=True))
