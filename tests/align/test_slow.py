"""byte_ranges of transformers' tokenizers and of objects that only turn ids into strings."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, CanineTokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from mlot.align import byte_ranges, pairs
from slow_cases import Slow
from tokenizer_cases import ALL, BYTE_LEVEL, SENTENCES, TEXTS, tokenizer


def _rows(tokens):
    return list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True))


def _words(*words, **attributes):
    """An object with convert_ids_to_tokens for words 0, 1, and so on."""
    return SimpleNamespace(convert_ids_to_tokens=lambda ids: [words[i] for i in ids], **attributes)


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama_no_prefix"])
@given(text=TEXTS.filter(lambda text: "<0x" not in text))
@example(text="<s>\u3000")
def test_without_offsets_ranges_of_kept_text_are_the_same(name, text):
    fast, slow = byte_ranges(tokenizer(name), text), byte_ranges(Slow(tokenizer(name)), text)
    assert _rows(slow) == _rows(fast)
    assert slow.ids.tolist() == fast.ids.tolist()
    assert slow.special.tolist() == fast.special.tolist()
    if not ("<s>" in text or "</s>" in text):
        assert slow.exact


_PLAIN = st.lists(
    st.sampled_from("the quick Brown fox SÜSS naïve hello, World! print(x) 東京".split()), max_size=9
)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("unigram_strip", "unigram_words")])
@given(words=_PLAIN, blank=st.sampled_from([" ", "\n", "  "]))
def test_without_offsets_ranges_of_ordinary_text_are_the_same(name, words, blank):
    text = blank.join(words)
    fast, slow = byte_ranges(tokenizer(name), text), byte_ranges(Slow(tokenizer(name)), text)
    unknown = [n for n, i in enumerate(fast.ids.tolist()) if i == Slow(tokenizer(name)).unk_token_id]
    if not unknown:
        assert slow.ends.tolist() == fast.ends.tolist()


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_every_text_has_ranges(name, text):
    slow = Slow(tokenizer(name))
    assert byte_ranges(slow, text).ids.tolist() == slow.encode(text)  # TokenBytes checks order and bounds


@given(text=st.text(max_size=20), words=st.lists(st.text(max_size=4), min_size=1, max_size=6), data=st.data())
def test_any_strings_for_any_text_have_ranges(text, words, data):
    ids = data.draw(st.lists(st.integers(0, len(words) - 1), max_size=8))
    special = data.draw(st.sets(st.integers(0, len(words) - 1), max_size=2))
    byte_ranges(_words(*words, all_special_ids=special, unk_token_id=0), text, ids=ids)


def test_strings_are_tried_in_every_spelling():
    cases = [
        (["Ġdog", "sÃ", "¼"], " dogsü", [(0, 4), (4, 6), (6, 7)]),
        (["▁dog", "▁s", "<0xC3>", "<0xBC>"], "dog sü", [(0, 3), (3, 5), (5, 6), (6, 7)]),
        (["dog", "##gy", "!"], "DOGGY!", [(0, 3), (3, 5), (5, 6)]),
        (["do", "g</w>", "s</w>"], "dog s", [(0, 2), (2, 3), (4, 5)]),
        (["do@@", "g", "s"], "dog s", [(0, 2), (2, 3), (4, 5)]),
        (["s", "Ã", "¼"], "sü", [(0, 1), (1, 2), (2, 3)]),
        ([b"s\xc3", b"\xbc"], "sü", [(0, 2), (2, 3)]),
        (["sü", "ß"], "süß", [(0, 3), (3, 5)]),
    ]
    for words, text, expected in cases:
        tokens = byte_ranges(_words(*words), text, ids=list(range(len(words))))
        assert _rows(tokens) == expected, words


def test_unknown_words_cover_what_is_between_their_neighbours():
    bert = _words("[UNK]", "the", "dog", "##s", "[CLS]", ",", unk_token_id=0, all_special_ids=[0, 4])
    tokens = byte_ranges(bert, "Zebras the Ärger dogs", ids=[4, 0, 1, 0, 2, 3])
    assert _rows(tokens) == [(0, 0), (0, 6), (7, 10), (11, 17), (18, 21), (21, 22)]
    assert tokens.special.tolist() == [True] + [False] * 5
    # A word is not found inside of an unknown one, and several unknown ones share by words or signs.
    assert _rows(byte_ranges(bert, "bathe thes", ids=[0, 1, 3])) == [(0, 5), (6, 9), (9, 10)]
    assert _rows(byte_ranges(bert, "the the,", ids=[0, 1, 5])) == [(0, 3), (4, 7), (7, 8)]
    assert _rows(byte_ranges(bert, "a. b the", ids=[0, 0, 0, 1])) == [(0, 1), (1, 2), (3, 4), (5, 8)]
    assert _rows(byte_ranges(bert, "a b c the", ids=[0, 0, 1])) == [(0, 1), (2, 5), (6, 9)]
    assert _rows(byte_ranges(bert, "the x y", ids=[1, 0])) == [(0, 3), (4, 5)]


def test_text_that_spells_special_tokens():
    words = _words("<s>", "</s>", "a", all_special_ids=[0, 1], added_tokens_decoder={0: "<s>", 1: "</s>"})
    assert _rows(byte_ranges(words, "<s>a", ids=[0, 0, 2, 1])) == [(0, 0), (0, 3), (3, 4), (4, 4)]
    assert _rows(byte_ranges(words, "a</s>", ids=[2, 1, 1])) == [(0, 1), (1, 5), (5, 5)]


def test_added_tokens_are_spelled_as_they_are():
    tokens = byte_ranges(_words("wörld", "Ġa", added_tokens_decoder={0: "wörld"}), "wörld a", ids=[0, 1])
    assert (_rows(tokens), tokens.exact) == ([(0, 6), (6, 8)], True)


def test_a_changed_character_in_several_tokens():
    words = _words("f", "i", "n", "ä")
    assert _rows(byte_ranges(words, "ﬁin", ids=[0, 1, 1, 2])) == [(0, 3), (3, 3), (3, 4), (4, 5)]
    assert _rows(byte_ranges(words, "a\u0308n", ids=[3, 2])) == [(0, 3), (3, 4)]


def test_bytes_that_are_no_text_have_no_place():
    words = _words(b"\xe4", b"n", b"\xc3")
    assert _rows(byte_ranges(words, "än", ids=[0, 1, 2])) == [(0, 0), (2, 3), (3, 3)]


@given(text=TEXTS.filter(lambda text: "<s>" not in text and "</s>" not in text))
def test_byt5_has_a_token_for_each_byte(text):
    slow = ByT5Tokenizer()
    tokens = byte_ranges(slow, text)
    count = len(text.encode())
    assert tokens.exact
    assert tokens.ids.tolist() == slow.encode(text)
    assert _rows(tokens) == [(n, n + 1) for n in range(count)] + [(count, count)]
    assert tokens.special.tolist() == [False] * count + [True]


_canine = cache(CanineTokenizer)


@given(text=TEXTS.filter(lambda text: not any("\ue000" <= character <= "\ue005" for character in text)))
def test_canine_has_a_token_for_each_character(text):
    tokens = byte_ranges(_canine(), text)
    ends = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist()
    assert tokens.ends.tolist() == [*ends, ends[-1]]


def test_slow_bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld", "naive", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    tokens = byte_ranges(slow, "Hello,  Naïve zz WORLD[MASK]")
    assert slow.convert_ids_to_tokens(tokens.ids.tolist())[4:7] == ["[UNK]", "wor", "##ld"]
    assert _rows(tokens) == [
        (0, 0),
        (0, 5),
        (5, 6),
        (8, 14),
        (15, 17),
        (18, 21),
        (21, 23),
        (23, 29),
        (29, 29),
    ]
    assert tokens.special.tolist() == [True, *[False] * 6, True, True]
    assert not tokens.exact


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_fast_tokenizers_of_transformers(name, text):
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    if name.startswith("word_piece"):
        names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if name.startswith("byte_level"):
        del names["unk_token"]
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer(name), **names)
    plain, tokens = byte_ranges(tokenizer(name), text), byte_ranges(wrapped, text)
    assert (_rows(tokens), tokens.exact) == (_rows(plain), plain.exact)
    assert tokens.special.tolist() == plain.special.tolist()
    assert tokens.ids.tolist() == wrapped(text).input_ids
    encoding = wrapped(text)[0]
    assert _rows(byte_ranges(wrapped, text, encoding=encoding)) == _rows(plain)
    if "<s>" in text or "</s>" in text or "[CLS]" in text:
        return  # ids alone do not tell which of several special tokens the text spells
    cut = wrapped(text, truncation=True, max_length=5)
    assert _rows(byte_ranges(wrapped, text, encoding=cut[0])) == _rows(
        byte_ranges(wrapped, text, ids=cut.input_ids)
    )


def test_fast_and_slow_pair(tmp_path):
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer("llama"), bos_token="<s>", eos_token="</s>")
    for text in SENTENCES:
        student, teacher = byte_ranges(fast, text), byte_ranges(ByT5Tokenizer(), text)
        inner = [
            [n, end - 1] for n, end in enumerate(student.ends.tolist()) if end > 0 and not student.special[n]
        ]
        assert pairs(student, teacher).tolist() == inner


def test_an_object_without_encode_needs_ids():
    with pytest.raises(TypeError, match="ids: expected token ids, since SimpleNamespace has no encode"):
        byte_ranges(_words("a"), "a")
