"""Running a model over a data set: what is saved is what the model predicts."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import mlot
import saved_models
from mlot.saved import SavedTeacher, example_key, fingerprint, save_teacher
from problems import as_numpy
from saved_cases import FIELDS, files_of, in_dtype
from saved_models import LONGEST, TEXTS, VOCABULARY, WithoutHead, alone, assert_saved, llama

TINY_BERT = BertConfig(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return saved_models.tokenizer()


def test_texts(tokenizer: object, tmp_path: Path) -> None:
    """Every token but the first is predicted; the padding of batches does not show."""
    model = llama()
    saved = save_teacher(model, tokenizer, TEXTS, tmp_path, k=20, dtype="float32", batch_size=4)
    assert len(saved) == len(TEXTS)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        mask = np.arange(len(ids)) < len(ids) - 1
        assert_saved(saved, example_key(ids, mask), alone(model, ids, mask, 20), 2e-5)
    made = saved.manifest
    assert (made.vocab_size, made.k, made.dtype) == (VOCABULARY, 20, "float32")
    assert made.tokenizer_fingerprint == fingerprint(tokenizer)
    assert made.settings == {"computed_in": "float32", "computed_from": "hidden states"}


def test_alone_in_their_batch_examples_are_exact(tokenizer: object, tmp_path: Path) -> None:
    """Without padding, traces from logits are bit for bit those of a call of one's own."""
    model = llama()
    for dtype in ("float16", "float32"):
        saved = save_teacher(
            WithoutHead(model), tokenizer, TEXTS[:3], tmp_path / dtype, k=20, dtype=dtype, batch_size=1
        )
        assert saved.manifest.settings["computed_from"] == "logits"
        for text in TEXTS[:3]:
            ids = tokenizer(text)["input_ids"]
            mask = np.arange(len(ids)) < len(ids) - 1
            want = in_dtype(alone(model, ids, mask, 20), dtype)
            got = saved.batch([example_key(ids, mask)], backend="torch")
            for name in FIELDS:
                assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_forms_of_examples(tokenizer: object, tmp_path: Path) -> None:
    """Labels, masks, mappings and tensors that mean the same have one key; each is saved once."""
    ids = tokenizer(TEXTS[3])["input_ids"]
    labels = [-100] * 5 + ids[5:]
    mask = np.array([False] * 4 + [True] * (len(ids) - 5) + [False])
    forms = [
        (ids, labels),
        (ids, mask),
        (np.array(ids), np.array(labels)),
        (torch.tensor(ids), torch.tensor(labels)),
        [ids, mask.tolist()],
        {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)},
        {"input_ids": torch.tensor(ids), "mask": torch.from_numpy(mask)},
    ]
    model = llama()
    saved = save_teacher(model, tokenizer, forms, tmp_path / "t", k=9, dtype="float32")
    assert saved.keys == [example_key(ids, mask)]
    assert_saved(saved, saved.keys[0], alone(model, ids, mask, 9), 1e-5)
    gaps = np.random.default_rng(0).random(len(ids)) < 0.5
    saved = save_teacher(
        model, tokenizer, [(ids, gaps), (ids, None), TEXTS[3]], tmp_path / "t", k=9, dtype="float32"
    )
    assert len(saved) == 3
    assert_saved(saved, example_key(ids, gaps), alone(model, ids, gaps, 9), 1e-5)


def test_tokenizers_of_either_library(tokenizer: object, tmp_path: Path) -> None:
    """One that was told to pad and the wrapper of transformers read texts alike."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_padding(length=40)
    one = save_teacher(llama(), tokenizer, TEXTS, tmp_path / "one", k=9)
    two = save_teacher(llama(), backend, TEXTS, tmp_path / "two", k=9)
    assert files_of(one.folder) == files_of(two.folder)


def test_examples_with_nothing_to_predict(tokenizer: object, tmp_path: Path) -> None:
    examples = [([], []), ([5], [5]), ([5, 6, 7], [-100] * 3), ([], None), TEXTS[1]]
    saved = save_teacher(llama(), tokenizer, examples, tmp_path, k=9)
    assert saved.lengths.tolist()[:3] == [0, 1, 3]
    empty = saved.batch([0, 1, 2])
    logits = np.zeros((3, 3, VOCABULARY))
    want = in_dtype(mlot.select(logits, np.zeros((3, 3), bool), k=9), "float16")
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(empty, name), getattr(want, name), err_msg=name)
    config = mlot.MultiLevelOTConfig(k=9)
    student = np.random.default_rng(0).normal(size=(3, 4, 50))
    assert mlot.multi_level_ot(student, empty, config=config).loss == 0
    nothing = save_teacher(llama(), tokenizer, [([5], [5])], tmp_path / "nothing", k=9)
    assert nothing.positions == 0
    nothing.verify()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.5, "extra_temperatures": (2.0, 1.0)}, {"standardize": True}]
)
def test_settings(settings: dict, tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    saved = save_teacher(model, tokenizer, TEXTS[:2], tmp_path, k=None, dtype="float32", **settings)
    assert saved.manifest.k == VOCABULARY
    ids = tokenizer(TEXTS[0])["input_ids"]
    mask = np.arange(len(ids)) < len(ids) - 1
    got, want = saved.batch([0]), alone(model, ids, mask, None, **settings)
    order = np.argsort(got.columns[0])
    other = np.argsort(as_numpy(want.columns)[0])
    np.testing.assert_allclose(
        got.log_probs[0][mask][:, order], as_numpy(want.log_probs)[0][mask][:, other], atol=1e-4
    )
    np.testing.assert_allclose(got.log_normalizers, as_numpy(want.log_normalizers), atol=1e-4)


def test_the_model_stays_as_it_was(tokenizer: object, tmp_path: Path) -> None:
    model = llama().train()
    save_teacher(model, tokenizer, TEXTS[:2], tmp_path / "a")
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    save_teacher(model, tokenizer, TEXTS[:2], tmp_path / "b")
    assert not model.training
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert not model.lm_head._forward_hooks


def test_what_is_refused_before_any_work(tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    long = "a long text " * 40
    for examples, settings, error, message in (
        (
            [*TEXTS, long],
            {},
            ValueError,
            r"^examples: expected at most 48 tokens, all that the model reads, got",
        ),
        (
            [([1, 999], None)],
            {},
            ValueError,
            "^examples: expected token ids below 270, as the model knows, got 999",
        ),
        ([], {}, ValueError, "^examples: expected at least one, got none"),
        ("a text", {}, TypeError, "^examples: expected several examples, got one str"),
        ([3], {}, TypeError, r"^examples\[0\]: expected a text, \(ids, labels or mask\)"),
        ([TEXTS[0], ([1, 2], [1])], {}, ValueError, r"^examples\[1\]: expected labels or a mask \(2,\)"),
        ([([1, 2], [0.5, 1.0])], {}, TypeError, r"^examples\[0\]: expected labels \(integers\) or a mask"),
        ([{"input_ids": [1]}], {}, ValueError, r"^examples\[0\]: expected input_ids with labels or mask"),
        ([{"input_ids": [1, 2], "mask": [0, 1]}], {}, TypeError, "expected booleans for mask, got int64"),
        ([{"input_ids": [1, 2], "labels": [True, False]}], {}, TypeError, "expected integers for labels"),
        (
            [{"input_ids": [1, 2], "labels": [1, 2], "mask": [True, False]}],
            {},
            ValueError,
            r"^examples\[0\]: expected input_ids with labels or mask, got input_ids, labels, mask",
        ),
        ([([1.5], None)], {}, TypeError, r"^examples\[0\]: ids: expected integers"),
        (TEXTS, {"k": 0}, ValueError, "^k: expected an integer >= 1 or None, got 0"),
        (TEXTS, {"dtype": "int8"}, ValueError, "^dtype: expected one of"),
        (TEXTS, {"batch_size": 0}, ValueError, "^batch_size: expected"),
        (TEXTS, {"examples_per_shard": 1.5}, TypeError, "^examples_per_shard: expected"),
        (TEXTS, {"max_length": 0}, ValueError, "^max_length: expected"),
        (TEXTS, {"temperature": -1.0}, ValueError, "^temperature: expected"),
        (TEXTS, {"extra_temperatures": 2.0}, TypeError, "^extra_temperatures: expected"),
        (TEXTS, {"standardize": 1}, TypeError, "^standardize: expected"),
    ):
        with pytest.raises(error, match=message):
            save_teacher(model, tokenizer, examples, tmp_path / "t", **settings)
    with pytest.raises(
        TypeError, match="^model: expected a causal language model of transformers, got Linear"
    ):
        save_teacher(nn.Linear(2, 2), tokenizer, TEXTS, tmp_path / "t")
    masked = BertForMaskedLM(TINY_BERT)
    for other, kind in ((model.model, "LlamaModel"), (masked, "BertForMaskedLM")):
        with pytest.raises(ValueError, match=f"^model: expected a model with a causal head, .*, got {kind}$"):
            save_teacher(other, tokenizer, TEXTS, tmp_path / "t")
    assert not calls
    assert not (tmp_path / "t").exists()
    cut = save_teacher(model, tokenizer, [long], tmp_path / "cut", k=9, max_length=LONGEST)
    ids = tokenizer(long, verbose=False)["input_ids"][:LONGEST]
    assert cut.keys == [example_key(ids, np.arange(LONGEST) < LONGEST - 1)]


def test_a_teacher_that_predicts_nonsense(tokenizer: object, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="^traces: expected log-probabilities, got NaN"):
        save_teacher(model, tokenizer, TEXTS[:2], tmp_path)
    assert len(SavedTeacher(tmp_path)) == 0
