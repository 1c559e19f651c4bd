"""Bits per byte against computations by hand."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mlot._hf.made import train_bpe
from mlot.distill import Piece, Score, difference_interval, evaluate_bits
from mlot.training import DistillationCollator

#: Text, document, token ids.
ROWS = [
    ("äb", 4, (0, 1, 2, 3)),
    ("a", 2, (0, 4)),
    ("☃ is snow", 4, (0, 2, 2, 4, 1, 3)),
]
SIZES = {2: 1, 4: 3 + 11}


class Handmade:
    """Examples of given tokens."""

    def __init__(self, rows, pad=0):
        self.pieces = [Piece(text, document, False) for text, document, _ in rows]
        self._rows = [
            {
                "input_ids": list(ids),
                "labels": [-100, *ids[1:]],
                "text_mask": [False] + [True] * (len(ids) - 1),
                "target_bytes": len(text.encode()),
                "teacher_input_ids": [0],
                "teacher_labels": [-100],
                "pairs": [],
            }
            for text, _, ids in rows
        ]
        tokenizer = train_bpe(["a"], 259, 64)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        self.collator = DistillationCollator(tokenizer, tokenizer)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return self._rows[index]


class Bigram(nn.Module):
    """Logits that depend on the last token alone; whatever it reads beyond a mask is counted."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.as_tensor(table, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.table[input_ids])


def test_uniform_predictions_cost_log2_of_the_vocabulary():
    score = evaluate_bits(Bigram(np.zeros((6, 6))), Handmade(ROWS), 8)
    assert score.sizes.tolist() == [1, 14]
    np.testing.assert_allclose(score.bits, [math.log2(6), 8 * math.log2(6)], rtol=1e-14)
    assert score.bits_per_byte == pytest.approx(9 * math.log2(6) / 15, rel=1e-14)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 50])
@pytest.mark.parametrize("pad", [0, 3])
def test_bits_of_a_bigram_model(batch_size, pad):
    table = np.random.default_rng(0).normal(size=(6, 6))
    log_probs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    bits = {2: 0.0, 4: 0.0}
    for _, document, ids in ROWS:
        for before, token in itertools.pairwise(ids):
            bits[document] -= log_probs[before, token] / math.log(2)
    score = evaluate_bits(Bigram(table), Handmade(ROWS, pad), batch_size)
    np.testing.assert_allclose(score.bits, [bits[2], bits[4]], rtol=1e-12)
    assert score.sizes.tolist() == list(SIZES.values())


def test_prompts_and_ends_are_in_neither_bits_nor_bytes():
    table = np.random.default_rng(0).normal(size=(6, 6))
    log_probs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    examples = Handmade([("ab", 0, (0, 1, 2, 3, 4))])
    row = examples[0]
    row["labels"][1] = -100  # a prompt of two tokens; the last label ends a turn
    row["text_mask"] = [False, False, True, True, False]
    score = evaluate_bits(Bigram(table), examples, 1)
    expected = -(log_probs[1, 2] + log_probs[2, 3]) / math.log(2)
    np.testing.assert_allclose(score.bits, [expected], rtol=1e-12)
    assert score.sizes.tolist() == [2]


def test_bits_do_not_depend_on_batches_order_or_padding():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).double()
    model.train()
    rng = np.random.default_rng(1)
    rows = [("x" * (n + 1), n // 3, (0, *rng.integers(20, size=1 + n).tolist())) for n in range(12)]
    whole = evaluate_bits(model, Handmade(rows), 12)
    for batch_size, pad, order in ((1, 0, 1), (5, 7, 1), (12, 19, -1), (4, 2, -1)):
        other = evaluate_bits(model, Handmade(rows[::order], pad), batch_size)
        np.testing.assert_allclose(other.bits, whole.bits, rtol=1e-12)
        np.testing.assert_array_equal(other.sizes, whole.sizes)
    assert model.training


def test_a_model_in_evaluation_mode_stays_there_and_dropout_is_off():
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5)
    model = GPT2LMHeadModel(config)
    scores = [evaluate_bits(model.train(mode), Handmade(ROWS), 3).bits for mode in (True, False)]
    np.testing.assert_array_equal(*scores)
    assert not model.training


def test_low_precision_logits_are_summed_in_float32():
    table = np.random.default_rng(0).normal(size=(6, 6))
    model = Bigram(table).to(torch.bfloat16)
    exact = evaluate_bits(Bigram(model.table.detach().double().numpy()), Handmade(ROWS), 3)
    np.testing.assert_allclose(evaluate_bits(model, Handmade(ROWS), 3).bits, exact.bits, rtol=1e-6)


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="examples: expected at least one, got none"):
        evaluate_bits(Bigram(np.zeros((6, 6))), Handmade([]), 1)


def test_interval_of_a_constant_difference_is_that_difference():
    sizes = np.array([10.0, 20.0, 5.0])
    first, second = Score(3 * sizes, sizes), Score(2.75 * sizes, sizes)
    np.testing.assert_allclose(difference_interval(first, second), (0.25, 0.25), rtol=1e-12)


def test_interval_is_that_of_the_normal_distribution_for_many_documents():
    rng = np.random.default_rng(0)
    sizes = np.full(400, 100.0)
    gap = rng.normal(0.1, 1.0, size=400)
    first, second = Score(200 + 100 * gap, sizes), Score(np.full(400, 200.0), sizes)
    low, high = difference_interval(first, second)
    half = 1.96 * gap.std() / 20
    assert low == pytest.approx(gap.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(gap.mean() + half, abs=0.1 * half)
    assert difference_interval(second, first) == pytest.approx((-high, -low), rel=1e-12)
    narrow = difference_interval(first, second, level=0.5)
    assert low < narrow[0] < gap.mean() < narrow[1] < high


def test_interval_needs_the_same_documents():
    with pytest.raises(ValueError, match="second: expected a score on the documents of first"):
        difference_interval(Score(np.ones(2), np.ones(2)), Score(np.ones(2), np.array([1.0, 2.0])))
