"""Tokens that are special by role are never unknown text: at either end, padded by them, spelled in the text."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlot.align import VocabularyMap, byte_ranges, pairs
from slow_cases import Slow
from tokenizer_cases import BYTE_LEVEL, PIECES, tokenizer

END = "<|end|>"
_TEXTS = st.lists(
    st.one_of(PIECES.filter(lambda piece: piece not in ("<s>", "</s>")), st.just(END)), max_size=8
).map("".join)


@cache
def gpt2(name):
    """A byte-level tokenizer that has one token for start, end, and what it does not know, as GPT-2's."""
    backend = Tokenizer.from_str(tokenizer(name).to_str())
    backend.add_special_tokens([AddedToken(END, special=True)])
    roles = {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": END}
    backend.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


class SlowWrapper(Slow):
    """The same without offsets, and as transformers' slow tokenizers tell their roles."""

    def __init__(self, wrapped):
        super().__init__(wrapped.backend_tokenizer)
        for role in ("bos", "eos", "unk", "pad"):
            setattr(self, f"{role}_token_id", getattr(wrapped, f"{role}_token_id"))


def _rows(tokens):
    return list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True))


@pytest.mark.parametrize("name", BYTE_LEVEL)
@pytest.mark.parametrize("slow", [False, True])
@given(text=_TEXTS, before=st.integers(0, 3), after=st.integers(0, 3))
@example(text="eeks e", before=1, after=0)
@example(text=END + "a" + END, before=2, after=2)
def test_frames_and_padding_are_empty(name, slow, text, before, after):
    own = gpt2(name)
    inside = own(text, add_special_tokens=False)[0]
    end = own.eos_token_id
    assume(not text or any(i != end for i in inside.ids))  # of ends alone, who is to say which one is spelled
    wanted = byte_ranges(own, text, encoding=inside)
    assert wanted.exact
    total = len(text.encode())
    made = byte_ranges(
        SlowWrapper(own) if slow else own, text, ids=[*[end] * before, *inside.ids, *[end] * after]
    )
    assert _rows(made) == [*[(0, 0)] * before, *_rows(wanted), *[(total, total)] * after]
    assert made.exact
    assert made.special.tolist() == [*[True] * before, *(np.array(inside.ids) == end), *[True] * after]


@given(text=_TEXTS)
def test_pairs_are_those_of_a_tokenizer_whose_start_is_another_token(text):
    own, other = gpt2("byte_level"), tokenizer("unigram_fallback")
    end, start = own.eos_token_id, other.token_to_id("<s>")
    inside = own(text, add_special_tokens=False)[0]
    assume(any(i != end for i in inside.ids))
    teacher = byte_ranges(other, text, ids=[start, *other.encode(text).ids])
    framed = byte_ranges(own, text, ids=[end, *inside.ids])
    first = tokenizer("byte_level").token_to_id("<s>")
    plain = byte_ranges(own, text, ids=[first, *inside.ids])
    assert pairs(framed, teacher).tolist() == pairs(plain, teacher).tolist()


@cache
def _words():
    """WordPiece whose unknown token pads."""
    roles = {"unk_token": "[UNK]", "pad_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer("word_piece"), **roles)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("text", ["the dog", "the ꙮ dog", "ꙮ the dog", "the dog ꙮ", "ꙮ", "ꙮ ꙮ", ""])
def test_an_unknown_token_that_pads_is_unknown_inside_the_text(slow, text):
    own = _words()
    ids = own(text)["input_ids"]
    unknown = own.unk_token_id
    wanted = byte_ranges(own, text)
    assert (unknown in ids) is ("ꙮ" in text)
    given = SlowWrapper(own) if slow else own
    total = int(wanted.ends[-1])
    for before, after in ((0, 3), (2, 0), (1, 1)):
        made = byte_ranges(given, text, ids=[*[unknown] * before, *ids, *[unknown] * after])
        assert _rows(made) == [*[(0, 0)] * before, *_rows(wanted), *[(total, total)] * after]
        assert made.special.tolist() == [*[True] * before, *wanted.special, *[True] * after]


def test_added_tokens_decoder_may_be_a_method_that_raises():
    class Wrapper(Slow):
        def __init__(self, fast):
            super().__init__(fast)
            del self.added_tokens_decoder

        def added_tokens_decoder(self):
            raise NotImplementedError

    fast = tokenizer("byte_level_large")
    made = byte_ranges(Wrapper(fast), "the fox")
    assert _rows(made) == _rows(byte_ranges(fast, "the fox"))
    assert made.special.tolist() == [True] + [False] * (len(made) - 2) + [True]


@cache
def _blanks(name, known):
    backend = Tokenizer.from_str(tokenizer(name).to_str())
    blanks = ["  ", "   ", "    ", "\t\t"]
    backend.add_tokens([AddedToken(blank, normalized=False) for blank in blanks])
    slow = Slow(backend)
    if not known:
        slow.added_tokens_decoder = {
            i: token for i, token in slow.added_tokens_decoder.items() if token.content not in blanks
        }
    return backend, slow


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama_no_prefix"])
@given(
    text=st.lists(
        st.sampled_from(["  ", "   ", "\t", "\t\t", "\n", " the", "fox", " x", "é", " "]), max_size=9
    ).map("".join)
)
def test_added_tokens_of_blanks(name, known, text):
    fast, slow = _blanks(name, known)
    if not known and name in ("byte_level_prefix", "byte_level_trimmed"):
        return  # the spaces put after added tokens cannot be told
    made, wanted = byte_ranges(slow, text), byte_ranges(fast, text)
    assert wanted.exact
    assert made.exact
    assert _rows(made) == _rows(wanted)


def test_spaces_put_after_added_tokens_cover_nothing():
    backend = Tokenizer.from_str(tokenizer("byte_level").to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.add_tokens(["\t\t"])
    made = byte_ranges(backend, "the\t\tfox")
    assert made.exact
    at = backend.encode("the\t\tfox").tokens.index("\t\t")
    assert _rows(made)[at] == (3, 5)
    assert made.starts[at + 1] == 5


def test_bytes_of_mistrals_own_tokenizers():
    """Their strings lose pieces of characters, and they tell their bytes in a place of their own."""
    words = [b"", b"\xf0\x9f", b"\x98\x80", b" the"]
    inner = SimpleNamespace(id_to_byte_piece=words.__getitem__)
    own = SimpleNamespace(
        tokenizer=SimpleNamespace(instruct_tokenizer=SimpleNamespace(tokenizer=inner)),
        convert_ids_to_tokens=lambda ids: [words[i].decode("utf-8", "replace") for i in ids],
        get_vocab=lambda: {word.decode("utf-8", "replace"): i for i, word in enumerate(words)},
        vocab_size=len(words),
        encode=lambda text, add_special_tokens=True: [],
        all_special_ids=[0],
    )
    made = byte_ranges(own, "😀 the", ids=[0, 1, 2, 3])
    assert made.exact
    assert _rows(made) == [(0, 0), (0, 2), (2, 4), (4, 8)]
    vocabulary = VocabularyMap.from_tokenizers(own, tokenizer("byte_level"))
    assert vocabulary.student_bytes.all() == words
