"""What a saved teacher reads is tokenised many examples at a time, and is the same as one by one."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from mlot.align import VocabularyMap
from mlot.saved._examples import read_examples, read_pairs
from mlot.training import DistillationCollator
from training_cases import TEXTS, chat_tokenizers, examples

SAID = [
    {"messages": [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text}]}
    for text in TEXTS
    if text.strip() == text
]
FORMS = [*TEXTS, *SAID, *examples(), {"prompt": "a — b", "completion": " the end"}, {"text": "né"}]


@pytest.fixture(scope="module")
def tokenizers():
    return chat_tokenizers()


@pytest.mark.parametrize("limit", [None, 9])
def test_examples_in_both_models_tokens(tokenizers, limit):
    vocabulary = VocabularyMap.from_tokenizers(*tokenizers)
    made = {
        example.key: example
        for each in FORMS
        for example in read_pairs([each], tokenizers, vocabulary, limit)
    }
    together = read_pairs(iter(FORMS), tokenizers, vocabulary, limit)
    assert [example.key for example in together] == list(made)
    for example in together:
        alone = made[example.key]
        assert np.array_equal(example.ids, alone.ids)
        assert np.array_equal(example.mask, alone.mask)
        assert np.array_equal(example.student.mask, alone.student.mask)
        assert np.array_equal(example.student.positions, alone.student.positions)


def test_prepared_examples_may_lie_between(tokenizers):
    collator = DistillationCollator(*tokenizers, pairs="text")
    mixed = [each if n % 2 else collator.prepare({"text": each}) for n, each in enumerate(TEXTS)]
    vocabulary = VocabularyMap.from_tokenizers(*tokenizers)
    keys = [example.key for example in read_pairs(mixed, tokenizers, vocabulary, None)]
    assert keys == [example.key for example in read_pairs(TEXTS, tokenizers, vocabulary, None)]


def test_examples_in_the_teachers_tokens(tokenizers):
    teacher = tokenizers[1]
    made = {example.key: example for each in FORMS for example in read_examples([each], teacher)}
    together = read_examples(FORMS, teacher)
    assert [example.key for example in together] == list(made)
    for example in together:
        assert np.array_equal(example.ids, made[example.key].ids)
        assert np.array_equal(example.mask, made[example.key].mask)


def test_a_tokenizer_is_called_once_for_many(tokenizers, monkeypatch):
    teacher, calls = tokenizers[1], []
    whole = type(teacher).__call__
    monkeypatch.setattr(
        type(teacher), "__call__", lambda self, *a, **k: calls.append(self) or whole(self, *a, **k)
    )
    texts = [f"the cat {n}" for n in range(100)]
    read_pairs(texts, tokenizers, VocabularyMap.from_tokenizers(*tokenizers), None)
    assert len(calls) == 2
    calls.clear()
    read_examples([{"prompt": "the", "completion": text} for text in texts], teacher)
    assert len(calls) <= 2  # once more for those that a token of lies across the border
    calls.clear()
    keys = DistillationCollator(*tokenizers, pairs="text", keys=True).teacher_keys(
        [{"text": each} for each in texts]
    )
    assert len(calls) == 2
    assert len(set(keys)) == 100


def test_the_one_at_fault_is_named(tokenizers, monkeypatch):
    class Broken(type(tokenizers[1])):
        def __call__(self, texts, **settings):
            if "broken" in texts:
                raise ValueError("cannot read this")
            return super().__call__(texts, **settings)

    monkeypatch.setattr(tokenizers[1], "__class__", Broken)
    vocabulary = VocabularyMap.from_tokenizers(*tokenizers)
    with pytest.raises(ValueError, match=r"^examples\[2\]: cannot read this"):
        read_pairs(["a", "b", "broken", "c"], tokenizers, vocabulary, None)
    collator = DistillationCollator(*tokenizers, pairs="text", keys=True)
    row = collator.prepare({"text": "a"})
    with pytest.raises(ValueError, match=r"^dataset\[3\]: cannot read this"):
        collator.teacher_keys([{"text": "a"}, row, {"text": "b"}, {"text": "broken"}, row])
    assert len(collator.teacher_keys([{"text": "a"}, row, {"text": "b"}, row])) == 4
