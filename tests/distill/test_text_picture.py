"""The picture of the plan from the text: of a teacher with the student's tokens, its own predictions."""

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

import mlot
from mlot._examples import Example
from mlot._hf.made import make_llama, train_bpe, train_unigram
from mlot.align import VocabularyMap
from mlot.distill import Examples, Piece
from mlot.training._inspect import spell
from mlot.training._inspect_text import paint_text

TEXTS = ["Return the sum of a sequence, however long it is. ☃", "Räume — naïve café\n\tdone 🤖"]
LENGTH = 96
CONFIG = mlot.MultiLevelOTConfig.text()


@pytest.fixture(scope="module")
def teacher():
    tokenizer = train_bpe(TEXTS, 310, LENGTH)
    model = make_llama(tokenizer, width=32, layers=1, length=LENGTH, seed=0)
    with torch.no_grad():  # predictions that differ from place to place
        model.double().lm_head.weight.mul_(20)
    return model, tokenizer


def examples(student, teacher, pieces):
    return Examples(
        pieces, student, teacher, LENGTH, vocabulary=VocabularyMap.from_tokenizers(student, teacher)
    )


def test_equal_tokenizers_show_the_teachers_own_likeliest_tokens(teacher):
    model, tokenizer = teacher
    made = examples(tokenizer, tokenizer, [Piece(TEXTS[0], 0, ends=True)])
    picture = paint_text(made, [0], (tokenizer, tokenizer), model, CONFIG)
    ids = torch.tensor(made[0]["input_ids"].tolist())[None]
    with torch.no_grad():
        chances = torch.softmax(model(ids).logits[0].double() / CONFIG.temperature, dim=-1).numpy()
    assert [each.token for each in picture.targets] == spell(tokenizer, ids[0, 1:].numpy())
    vocabulary = made.collator.vocabulary
    carried = [*vocabulary.order.tolist(), *vocabulary.roles[:, 0].tolist()]
    for position, each in enumerate(picture.targets):
        assert each.read == "∅"  # every position is a boundary of both
        own = chances[position, carried]
        order = np.argsort(-own)[:3]
        assert [token for token, _ in each.likeliest] == spell(tokenizer, np.array(carried)[order])
        assert [chance for _, chance in each.likeliest] == pytest.approx(own[order] / own.sum(), abs=1e-6)
    above, below, read = picture.drawing.splitlines()[:3]
    assert above.removeprefix("student") == below.removeprefix("teacher")
    assert read.startswith("read")


def test_what_has_been_read_is_told(teacher):
    model, tokenizer = teacher
    student = train_unigram(TEXTS, 290, LENGTH)
    made = examples(student, tokenizer, [Piece(text, 0, ends=True) for text in TEXTS])
    picture = paint_text(made, [0, 1], (student, tokenizer), model, CONFIG)
    read = [each.read for each in picture.targets]
    assert "∅" in read
    assert any(each not in ("∅", None) for each in read)
    for each in picture.targets:
        assert (each.read is None) == (not each.likeliest)
        assert 0 <= sum(chance for _, chance in each.likeliest) <= 1 + 1e-6
    drawn = "".join(line for line in picture.drawing.splitlines() if line.startswith("read"))
    assert all(each in drawn for each in read if each is not None)


def test_without_plain_text_there_is_none(teacher):
    model, tokenizer = teacher
    record = Example({"prompt": "Return ", "completion": "the sum"}, "line 1")
    piece = Piece("the sum", 0, ends=True, record=record)
    made = examples(tokenizer, tokenizer, [piece])
    assert paint_text(made, [0], (tokenizer, tokenizer), model, CONFIG) is None
    plain = Examples([Piece(TEXTS[0], 0, ends=True)], tokenizer, tokenizer, LENGTH)
    assert paint_text(plain, [0], (tokenizer, tokenizer), model, CONFIG) is None
