"""Examples prepared together are the same as one by one: any text, prompts, conversations, limits, padding."""

import numpy as np
import pytest

pytest.importorskip("transformers")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mlot.training import DistillationCollator, PreparedDataset, Truncation
from tokenizer_cases import TEXTS, tokenizer
from training_cases import chat_tokenizers


def wrapped(name, start, end):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(name), bos_token=start, eos_token=end, pad_token=end
    )


PAIRS = {
    "chat": chat_tokenizers(),
    "spaces": (wrapped("llama", "<s>", "</s>"), wrapped("byte_level_large", "<s>", "</s>")),
    "changed": (wrapped("word_piece", "[CLS]", "[SEP]"), wrapped("llama", "<s>", "</s>")),
}
#: Texts, and what tokens of neighbours join with.
STRINGS = st.one_of(TEXTS, st.sampled_from(["", " ", "\r\n", "the ", "<|im_end|>", "</s> a", "e\u0301", "☃"]))


@st.composite
def examples(draw, chat):
    form = draw(st.sampled_from(["text", "prompt", "messages"] if chat else ["text", "prompt"]))
    if form == "text":
        return {"text": draw(STRINGS)}
    if form == "prompt":
        return {"prompt": draw(STRINGS), "completion": draw(STRINGS)}
    turns = draw(st.lists(st.tuples(STRINGS, STRINGS), min_size=1, max_size=3))
    roles = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a, b in turns]
    return {"messages": [message for pair in roles for message in pair]}


@pytest.mark.parametrize("positions", ["boundary", "text"])
@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=60)
@given(data=st.data())
def test_examples_prepared_together_are_those_prepared_alone(pair, positions, data):
    batch = data.draw(st.lists(examples(pair == "chat"), min_size=1, max_size=5))
    limits = st.one_of(st.none(), st.integers(2, 24))
    options = {"max_length": data.draw(limits), "teacher_max_length": data.draw(limits)}
    options |= {name: data.draw(st.booleans()) for name in ("add_start", "add_end", "keys")}
    options["padding_side"] = data.draw(st.sampled_from(["left", "right"]))
    one, other = (DistillationCollator(*PAIRS[pair], pairs=positions, **options) for _ in range(2))
    together, alone = one.prepare_batch(batch), [other.prepare(example) for example in batch]
    for mine, expected in zip(together, alone, strict=True):
        assert mine.keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(mine[name], value), name
    assert one.truncation == other.truncation
    assert one.unserved == other.unserved
    prepared = PreparedDataset(alone)
    made, expected = one(batch), other([prepared[n] for n in range(len(alone))])
    for name, value in expected.items():
        assert made[name].tolist() == value.tolist(), name


def test_data_sets_are_prepared_in_batches_that_are_one_whole():
    texts = [{"text": "the cat " * (n % 7)} for n in range(150)]
    collator = DistillationCollator(*PAIRS["chat"], pairs="text", max_length=12, add_end=False)
    made = collator.prepare_all("data", texts, tell=False)
    left = [n for n in range(150) if n % 7]
    assert len(made) == len(left)
    alone = DistillationCollator(*PAIRS["chat"], pairs="text", max_length=12, add_end=False)
    for n, row in zip(left, made, strict=True):
        assert row["input_ids"].tolist() == alone.prepare(texts[n])["input_ids"]
    total = sum((Truncation(1, empty=1) for _ in range(150 - len(left))), alone.truncation)
    assert collator.truncation == total


def test_nothing_to_prepare_is_nothing():
    collator = DistillationCollator(*PAIRS["chat"])
    assert collator.prepare_batch([]) == []
    assert collator.truncation == Truncation()


def test_the_example_that_cannot_be_read_is_named():
    data = [{"text": "a"}] * 70 + [{"texts": "b"}] + [{"text": "c"}] * 10
    with pytest.raises(ValueError, match=r"data\[70\]: example: expected"):
        DistillationCollator(*PAIRS["chat"]).prepare_all("data", data)
