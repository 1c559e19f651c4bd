"""The collator on text, and on prompts with completions: tokens, labels, pairs, cuts, padding."""

import pickle

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlot.training import DistillationCollator, PreparedDataset, Truncation
from training_cases import (
    TEXTS,
    bytes_of,
    examples,
    make_collator,
    student_tokenizer,
    teacher_tokenizer,
)

STUDENT, TEACHER = student_tokenizer(), teacher_tokenizer()
PROMPTS = [
    {"prompt": "Say the", "completion": " cat and the hat"},
    {"prompt": "", "completion": "then"},
    {"prompt": "über ☃ ", "completion": "Ende ☃☃"},
    {"prompt": "what is", "completion": ""},
]


def learnt(tokenizer, row, prefix=""):
    """Ids of a prepared example that are labels, and the position of the first."""
    labels = row[prefix + "labels"]
    assert all(label in (-100, token) for label, token in zip(labels, row[prefix + "input_ids"], strict=True))
    found = [n for n, label in enumerate(labels) if label != -100]
    assert found == list(range(found[0], found[0] + len(found))) if found else True
    return [labels[n] for n in found], (found[0] if found else None)


def expected_pairs(row, common):
    """All positions at which both have read the same bytes of the common text, by looking at all of them."""
    sides = []
    for tokenizer, prefix in ((STUDENT, ""), (TEACHER, "teacher_")):
        ids, first = learnt(tokenizer, row, prefix)
        sides.append({first - 1 + n: bytes_of(tokenizer, ids[:n]) for n in range(len(ids))})
    return [[i, j] for i, a in sides[0].items() for j, b in sides[1].items() if a == b]


# -- what is learnt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_all_of_a_text_is_learnt_and_its_end(text):
    row = make_collator().prepare({"text": text})
    for tokenizer, prefix in ((STUDENT, ""), (TEACHER, "teacher_")):
        ids, first = learnt(tokenizer, row, prefix)
        assert row[prefix + "input_ids"][0] == tokenizer.bos_token_id
        assert first == 1
        assert ids == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert row["target_bytes"] == len(text.encode())
    assert row["text_mask"] == [False, *[True] * (len(row["input_ids"]) - 2), False]
    assert row["pairs"] == expected_pairs(row, text)
    assert row["pairs"][0] == [0, 0]
    assert row["pairs"][-1] == [len(row["input_ids"]) - 2, len(row["teacher_input_ids"]) - 2]


@pytest.mark.parametrize("example", PROMPTS)
def test_a_completion_is_learnt_and_its_end_but_no_prompt(example):
    row = make_collator().prepare(example)
    for tokenizer, prefix in ((STUDENT, ""), (TEACHER, "teacher_")):
        ids, first = learnt(tokenizer, row, prefix)
        assert bytes_of(tokenizer, ids) == example["completion"].encode() + b"</s>"
        assert bytes_of(tokenizer, row[prefix + "input_ids"][1:first]) == example["prompt"].encode()
    assert row["target_bytes"] == len(example["completion"].encode())
    assert sum(row["text_mask"]) == len(learnt(STUDENT, row)[0]) - 1
    assert row["pairs"] == expected_pairs(row, example["completion"])


def test_a_completion_is_tokenised_with_its_prompt_where_tokens_keep_to_the_border():
    def student(prompt, completion):
        row = make_collator().prepare({"prompt": prompt, "completion": completion})
        return STUDENT.convert_ids_to_tokens(row["input_ids"]), [
            n for n, x in enumerate(row["labels"]) if x != -100
        ]

    tokens, labels = student("to", " the")
    assert tokens == ["<s>", "t", "o", "Ġthe", "</s>"]
    assert labels == [3, 4]
    # " the" would be one token with the border inside
    tokens, labels = student("to ", "the")
    assert tokens == ["<s>", "t", "o", "Ġ", "the", "</s>"]
    assert labels == [4, 5]


text = st.text(alphabet="the and☃ü\n", max_size=30)


@given(prompt=text, completion=text)
@settings(max_examples=60)
def test_pairs_are_all_positions_that_have_read_the_same_completion(prompt, completion):
    row = make_collator().prepare({"prompt": prompt, "completion": completion})
    assert row["pairs"] == expected_pairs(row, completion)
    for tokenizer, prefix in ((STUDENT, ""), (TEACHER, "teacher_")):
        ids, _ = learnt(tokenizer, row, prefix)
        assert bytes_of(tokenizer, ids) == completion.encode() + b"</s>"


def spaced_tokenizer():
    """One that marks spaces, puts one before every text, and spells what it does not know in bytes."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = ["\u2581", *"theand\n"]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("n", "d")]
    tokens = [*special, *(f"<0x{n:02X}>" for n in range(256)), *letters, *(a + b for a, b in merges)]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def spelled(tokenizer, ids):
    """Bytes of tokens, of either kind of tokenizer."""
    if tokenizer.unk_token is None:
        return bytes_of(tokenizer, ids)
    tokens = tokenizer.convert_ids_to_tokens([int(n) for n in ids])
    return b"".join(
        bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.replace("\u2581", " ").encode()
        for token in tokens
    )


@given(prompt=text, completion=text)
@settings(max_examples=40)
def test_pairs_of_tokenizers_that_put_spaces_before_and_split_characters(prompt, completion):
    """What a paired position has read is the same text but for a space put before it."""
    spaced = spaced_tokenizer()
    for tokenizers in ((spaced, TEACHER), (STUDENT, spaced)):
        row = DistillationCollator(*tokenizers).prepare({"prompt": prompt, "completion": completion})
        sides = []
        for tokenizer, prefix in zip(tokenizers, ("", "teacher_"), strict=True):
            ids, first = learnt(tokenizer, row, prefix)
            assert ids[-1] == tokenizer.eos_token_id
            sides.append((tokenizer, ids, first))
            assert spelled(tokenizer, ids[:-1]).lstrip(b" ") == completion.lstrip(" ").encode()
        for i, j in row["pairs"]:
            read = [
                spelled(tokenizer, ids[: at + 1 - first])
                for (tokenizer, ids, first), at in zip(sides, (i, j), strict=True)
            ]
            assert read[0].lstrip(b" ") == read[1].lstrip(b" ")
        # the beginning and the end are always paired
        assert row["pairs"][-1] == [len(row["input_ids"]) - 2, len(row["teacher_input_ids"]) - 2]
        assert row["target_bytes"] == len(completion.encode())


@given(words=text, student=st.integers(2, 20), teacher=st.integers(2, 20))
@settings(max_examples=100)
def test_what_is_too_long_is_cut_at_the_last_place_that_both_have(words, student, teacher):
    collator = make_collator(max_length=student, teacher_max_length=teacher)
    row, whole = collator.prepare({"text": words}), make_collator().prepare({"text": words})
    fits = len(whole["input_ids"]) <= student and len(whole["teacher_input_ids"]) <= teacher
    if fits:
        assert row == whole
        assert collator.truncation == Truncation(1, 0, 0, len(words.encode()), 0)
        return
    sizes = len(row["input_ids"]), len(row["teacher_input_ids"])
    read = [bytes_of(t, row[p + "input_ids"][1:]) for t, p in ((STUDENT, ""), (TEACHER, "teacher_"))]
    assert read[0] == read[1]
    assert words.encode().startswith(read[0])
    # the last such place: no later pair of the whole fits
    later = [[i, j] for i, j in whole["pairs"] if i + 1 <= student and j + 1 <= teacher]
    assert list(sizes) == [later[-1][0] + 1, later[-1][1] + 1]
    assert row["pairs"] == later[:-1]
    assert row["target_bytes"] == len(read[0])
    assert 2 not in row["labels"]
    assert collator.truncation.cut == 1
    assert collator.truncation.cut_bytes == len(words.encode()) - len(read[0])
    assert collator.truncation.empty == (len(read[0]) == 0)


def test_what_was_cut_is_counted_and_told():
    collator = make_collator(max_length=8)
    for words in ("the cat", "a man and a mat and a hat"):
        collator.prepare({"text": words})
    assert str(collator.truncation) == (
        "1 of 2 examples were too long and were cut, 16 of 32 bytes of text with them; of 0 nothing was left"
    )
    assert collator.truncation + Truncation(1, 1, 1, 5, 5) == Truncation(3, 2, 1, 37, 21)


def test_starts_and_ends():
    plain = make_collator(add_start=False, add_end=False).prepare({"text": "the cat"})
    assert STUDENT.convert_ids_to_tokens(plain["input_ids"]) == ["the", "Ġ", "c", "a", "t"]
    # nothing predicts the first token, so that it is in neither the labels nor the bytes
    assert plain["labels"] == [-100, *plain["input_ids"][1:]]
    assert plain["target_bytes"] == 4
    assert plain["teacher_labels"][0] == -100
    # position 0 has read "the" of the student, and "t" of the teacher's
    read = [
        np.cumsum([len(bytes_of(t, [n])) for n in plain[p + "input_ids"]])
        for t, p in ((STUDENT, ""), (TEACHER, "teacher_"))
    ]
    both = [[i, j] for i in range(4) for j in range(len(read[1]) - 1) if read[0][i] == read[1][j]]
    assert plain["pairs"] == both
    without = student_tokenizer(bos_token=None)
    row = DistillationCollator(without, TEACHER).prepare({"text": "the"})
    assert without.convert_ids_to_tokens(row["input_ids"]) == ["</s>", "the", "</s>"]
    neither = student_tokenizer(bos_token=None, eos_token=None)
    row = DistillationCollator(neither, TEACHER).prepare({"text": "the cat"})
    assert neither.convert_ids_to_tokens(row["input_ids"]) == ["the", "Ġ", "c", "a", "t"]
    # the teacher alone predicts an end, and a beginning
    assert row["pairs"][0][0] == 0
    assert row["teacher_labels"][-1] == TEACHER.eos_token_id


def test_index_pairs_need_no_pairs():
    collator = make_collator(pairs="index")
    assert "pairs" not in collator.prepare({"text": "the cat"})
    assert "pairs" not in collator(examples())


def test_one_tokenizer_for_both_pairs_everything():
    row = DistillationCollator(STUDENT, STUDENT).prepare({"text": "the cat — ☃"})
    assert row["pairs"] == [[n, n] for n in range(len(row["input_ids"]) - 1)]


# -- padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_padding(side, multiple):
    collator = make_collator(padding_side=side, pad_to_multiple_of=multiple)
    rows = [collator.prepare(example) for example in [*examples(), *PROMPTS]]
    batch = collator(rows)
    for n, row in enumerate(rows):
        offsets = []
        for prefix in ("", "teacher_"):
            kept = batch[prefix + "attention_mask"][n].bool()
            assert batch[prefix + "input_ids"][n][kept].tolist() == row[prefix + "input_ids"]
            assert batch[prefix + "labels"][n][kept].tolist() == row[prefix + "labels"]
            assert (batch[prefix + "labels"][n][~kept] == -100).all()
            offset = int(kept.long().argmax())
            assert offset == (0 if side == "right" else len(kept) - len(row[prefix + "input_ids"]))
            offsets.append(offset)
            assert not multiple or len(kept) % multiple == 0
            if side == "left":
                assert batch[prefix + "position_ids"][n][kept].tolist() == list(range(int(kept.sum())))
        found = batch["pairs"][n]
        found = found[found[:, 0] >= 0]
        assert (found - torch.tensor(offsets)).tolist() == row["pairs"]
        assert batch["text_mask"][n].sum() == sum(row["text_mask"])
        assert batch["target_bytes"][n] == row["target_bytes"]
    assert (side == "left") == ("position_ids" in batch)


def test_padding_by_a_token_that_texts_contain():
    """eos pads where there is no pad token; the labels of real ends stay."""
    student, teacher = student_tokenizer(pad_token=None), teacher_tokenizer(pad_token="t")
    batch = DistillationCollator(student, teacher)([{"text": "the cat"}, {"text": "that"}])
    assert student.pad_token is None
    for n, size in enumerate((7, 5)):
        assert int(batch["attention_mask"][n].sum()) == size
        assert batch["input_ids"][n, size - 1 :].eq(student.eos_token_id).all()
        assert batch["labels"][n, size - 1] == student.eos_token_id
        assert (batch["labels"][n, size:] == -100).all()
        t = teacher.convert_tokens_to_ids("t")
        kept = batch["teacher_attention_mask"][n].bool()
        assert (batch["teacher_input_ids"][n][~kept] == t).all()
        assert (batch["teacher_labels"][n] == t).sum() == (batch["teacher_input_ids"][n][kept] == t).sum()


def test_prepared_and_raw_examples_give_one_batch():
    collator = make_collator()
    prepared = PreparedDataset(collator.prepare(example) for example in examples())
    mapped = Dataset.from_list(examples()).map(collator.prepare, remove_columns=["text"])
    batches = [
        collator(examples()),
        collator(list(prepared)),
        collator([mapped[n] for n in range(len(mapped))]),
    ]
    for batch in batches[1:]:
        assert batch.keys() == batches[0].keys()
        for name, tensor in batches[0].items():
            assert torch.equal(batch[name], tensor), name
            assert batch[name].dtype == tensor.dtype


def test_the_collator_can_be_sent_to_workers():
    collator = pickle.loads(pickle.dumps(make_collator()))
    loader = torch.utils.data.DataLoader(examples(), batch_size=4, collate_fn=collator)
    assert [len(batch["labels"]) for batch in loader] == [4, 4]


# -- data sets -------------------------------------------------------------------------------------------


def test_examples_of_which_nothing_is_left_are_dropped_and_told(caplog):
    collator = make_collator(max_length=6)
    data = [{"prompt": "a" * 9, "completion": "b"}, {"prompt": "a", "completion": "cat"}]
    found = collator.prepare_all("train_dataset", data)
    assert len(found) == 1
    assert found[0]["target_bytes"] == 3
    assert caplog.messages == [
        "train_dataset: 1 of 2 examples were too long and were cut, 1 of 4 bytes of text with them; of 1 nothing was left"
    ]
    both = collator.prepare_all("eval_dataset", {"one": data, "two": data[1:]}, tell=False)
    assert [len(each) for each in both.values()] == [1, 1]
    assert len(caplog.messages) == 1
    with pytest.raises(
        ValueError, match="data: expected examples with something to learn, found none: 1 of 1"
    ):
        collator.prepare_all("data", data[:1])


def test_data_sets_that_are_left_alone():
    collator = make_collator()
    prepared = collator.prepare_all("data", examples())
    assert collator.prepare_all("data", prepared) is prepared
    stream = iter(examples())
    assert collator.prepare_all("data", stream) is stream
    assert collator.prepare_all("data", None) is None


# -- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "max_length: expected an integer >= 2 or None, got 1"),
        ({"teacher_max_length": 0}, "teacher_max_length: expected"),
        ({"pairs": "prefix"}, "pairs: expected one of"),
        ({"padding_side": "middle"}, "padding_side: expected one of"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected"),
        ({"keys": 1}, "keys: expected True or False"),
        ({"add_start": None}, "add_start: expected True or False"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_collator(**settings)


def test_tokenizers_that_are_refused():
    with pytest.raises(
        ValueError, match="student_tokenizer: expected a pad token, or an eos token to pad with"
    ):
        DistillationCollator(student_tokenizer(pad_token=None, eos_token=None), TEACHER)
    with pytest.raises(ValueError, match="teacher_tokenizer: expected a pad token"):
        DistillationCollator(STUDENT, teacher_tokenizer(pad_token=None, eos_token=None))
    with pytest.raises(
        TypeError, match="teacher_tokenizer: expected a tokenizer of transformers, got Tokenizer"
    ):
        DistillationCollator(STUDENT, TEACHER.backend_tokenizer)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({}, "example: expected text, prompt and completion, or messages, got nothing"),
        ({"prompt": "a", "document": "b"}, "example: expected .*, got document, prompt"),
        ({"text": 3}, "text: expected a string, got int"),
        ({"prompt": "a", "completion": None}, "completion: expected a string like .*, got NoneType"),
        ({"prompt": 3, "completion": "a"}, "prompt: expected a string like its counterpart"),
        ({"prompt": "a", "completion": 3}, "completion: expected a string like its counterpart"),
        (
            {"input_ids": [1]},
            "example: expected what DistillationCollator.prepare makes .* input_ids without labels",
        ),
    ],
)
def test_examples_that_are_refused(example, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_collator()([example])
