"""byte_ranges of fast tokenizers: exact where the text is kept, defined where it is changed."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mlot.align import byte_ranges
from tokenizer_cases import (
    ALL,
    BYTE_LEVEL,
    CHANGING,
    TEXTS,
    TILING,
    _byte_level,
    tokenizer,
)

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _rows(tokens):
    return list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True))


def _same(first, second):
    assert first.ids.tolist() == second.ids.tolist()
    assert _rows(first) == _rows(second)
    assert first.special.tolist() == second.special.tolist()
    assert (first.total, first.exact) == (second.total, second.exact)


def _token_bytes(name, i):
    """Bytes of a token of a byte-level vocabulary, or of an added token."""
    added = tokenizer(name).get_added_tokens_decoder()
    if i in added:
        return added[i].content.encode()
    return bytes(BYTE_OF[character] for character in tokenizer(name).id_to_token(i))


@pytest.mark.parametrize("name", TILING)
@given(text=TEXTS)
def test_ranges_tile_the_text(name, text):
    tokens = byte_ranges(tokenizer(name), text)
    assert tokens.total == len(text.encode())
    assert tokens.ids.tolist() == tokenizer(name).encode(text).ids
    if not len(tokens):
        assert not text
        return
    assert tokens.starts[0] == 0
    assert tokens.starts[1:].tolist() == tokens.ends[:-1].tolist()
    assert tokens.ends[-1] == tokens.total


@pytest.mark.parametrize("name", [name for name in TILING if name not in ("unigram", "unigram_first")])
@given(text=TEXTS.filter(lambda text: "<0x" not in text))
def test_ranges_that_tile_are_exact(name, text):
    """Text that spells a byte token may be read as one; its range is right, but not known to be so."""
    assert byte_ranges(tokenizer(name), text).exact


@pytest.mark.parametrize("name", BYTE_LEVEL)
@given(text=TEXTS)
def test_byte_level_tokens_are_the_bytes_of_their_ranges(name, text):
    tokens, data = byte_ranges(tokenizer(name), text), text.encode()
    inserted = tokenizer(name).encode(text).special_tokens_mask
    for i, (start, end), framing in zip(tokens.ids.tolist(), _rows(tokens), inserted, strict=True):
        spelled = b"" if framing else _token_bytes(name, i)
        invented = "prefix" in name or "trimmed" in name
        assert data[start:end] == spelled or (invented and b" " + data[start:end] == spelled)


@pytest.mark.parametrize("name", ["llama", "llama_no_prefix", "unigram_fallback"])
@given(text=TEXTS.filter(lambda text: "<0x" not in text))
def test_fallback_tokens_are_one_byte_each(name, text):
    tokens, data = byte_ranges(tokenizer(name), text), text.encode()
    for i, (start, end) in zip(tokens.ids.tolist(), _rows(tokens), strict=True):
        token = tokenizer(name).id_to_token(i)
        if token.startswith("<0x"):
            assert data[start:end] == bytes.fromhex(token[3:5])


@pytest.mark.parametrize(
    "name", ["byte_level_nfkc", "byte_level_nfc_trimmed", "byte_level_lower", "llama_lower"]
)
@given(text=TEXTS.map(lambda text: text.replace("<s>", "").replace("</s>", "")))
def test_what_was_read_at_the_end_of_a_range_is_the_text_up_to_there(name, text):
    """A model that has read tokens up to byte e has read what the tokenizer makes of the first e bytes."""
    tokens, data = byte_ranges(tokenizer(name), text), text.encode()
    spaces = bytes.maketrans(b"", b"")
    for n in np.flatnonzero(np.diff(tokens.ends) > 0).tolist():
        try:
            prefix = data[: tokens.ends[n]].decode()
        except UnicodeDecodeError:
            continue
        read = _spelled(name, tokens.ids[: n + 1].tolist())
        expected = _spelled(name, tokenizer(name).encode(prefix).ids)
        # An invented space before the text is read before any byte of it.
        assert read.translate(spaces, b" ") == expected.translate(spaces, b" ")


def _spelled(name, ids):
    if name.startswith("byte_level"):
        return b"".join(_token_bytes(name, i) for i in ids)
    strings = [tokenizer(name).id_to_token(i) for i in ids]
    return b"".join(
        bytes.fromhex(token[3:5])
        if token.startswith("<0x") and len(token) == 6
        else token.replace("▁", " ").encode()
        for token in strings
    )


@pytest.mark.parametrize("name", ["word_piece", "word_piece_cased"])
@given(text=TEXTS.map(lambda text: "".join(c for c in text if not unicodedata.combining(c))))
def test_word_piece_ranges_are_its_offsets(name, text):
    encoding = tokenizer(name).encode(text)
    tokens = byte_ranges(tokenizer(name), text, encoding=encoding)
    data, reached = text.encode(), 0
    for n, (start, end) in enumerate(_rows(tokens)):
        if encoding.special_tokens_mask[n]:
            assert start == end == reached
            continue
        first, last = (len(text[:place].encode()) for place in encoding.offsets[n])
        shared = n and encoding.offsets[n][0] < encoding.offsets[n - 1][1]
        following = encoding.offsets[n + 1] if n + 1 < len(encoding) else (0, 0)
        if shared or (following[0] < encoding.offsets[n][1] and following != (0, 0)):
            reached = end
            continue
        # Only dropped characters that are not white space may be added to what the offsets say.
        assert start == first
        assert data[start:end].startswith(data[first:last])
        assert not any(character.isspace() for character in data[last:end].decode())
        reached = end


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS)
def test_every_way_to_give_the_tokens_agrees(name, text):
    tokens = byte_ranges(tokenizer(name), text)
    encoding = tokenizer(name).encode(text)
    _same(tokens, byte_ranges(tokenizer(name), text, encoding=encoding))
    if not any(mark in text for mark in ("<s>", "</s>", "[CLS]", "[UNK]")):
        _same(tokens, byte_ranges(tokenizer(name), text, ids=encoding.ids))
        _same(tokens, byte_ranges(tokenizer(name), text, ids=np.array(encoding.ids, np.int32)))


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS, data=st.data())
def test_any_ids_for_any_text_have_ranges(name, text, data):
    size = tokenizer(name).get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2), max_size=12))
    tokens = byte_ranges(tokenizer(name), text, ids=ids)  # TokenBytes checks order and bounds
    assert tokens.ids.tolist() == ids


@pytest.mark.parametrize("name", CHANGING)
@given(text=TEXTS)
def test_tokens_of_changed_text_lie_in_characters(name, text):
    tokens = byte_ranges(tokenizer(name), text)
    data = text.encode()
    if not tokens.exact:
        for start, end in _rows(tokens):
            piece = data[start:end]
            if name in ("word_piece", "word_piece_cased", "unigram_nfkc", "unigram_words", "unigram_strip"):
                assert piece.decode().encode() == piece


# fmt: off
CASES = {
    "split emoji": ("byte_level", "a😀b", [("a", 0, 1), ("ðŁ", 1, 3), ("ĺĢ", 3, 5), ("b", 5, 6)]),
    "frame": ("llama", "the", [("<s>", 0, 0), ("▁the", 0, 3), ("</s>", 3, 3)]),
    "bytes": (
        "llama", "𝕏",
        [("<s>", 0, 0), ("▁", 0, 0), ("<0xF0>", 0, 1), ("<0x9D>", 1, 2), ("<0x95>", 2, 3), ("<0x8F>", 3, 4), ("</s>", 4, 4)],
    ),
    "leading space": ("llama", " fox", [("<s>", 0, 0), ("▁▁", 0, 1), ("fox", 1, 4), ("</s>", 4, 4)]),
    "invented space": ("byte_level_prefix", "the dog", [("Ġthe", 0, 3), ("Ġdog", 3, 7)]),
    "special in text": ("byte_level_trimmed", "a<s>a", [("Ġa", 0, 1), ("<s>", 1, 4), ("Ġa", 4, 5)]),
    "ligature": ("byte_level_nfkc", "aﬁb", [("a", 0, 1), ("f", 1, 4), ("i", 4, 4), ("b", 4, 5)]),
    "composed": ("unigram_nfkc", "xe\u0301x", [("▁", 0, 0), ("x", 0, 1), ("é", 1, 4), ("x", 4, 5)]),
    "trimmed blanks": (
        "byte_level_trimmed", "\n  <s>0", [("Ġ", 0, 0), ("ĊĠĠ", 0, 3), ("<s>", 3, 6), ("Ġ", 6, 6), ("0", 6, 7)],
    ),
    "invented mark": ("llama_lower", "Ж", [("▁", 0, 0), ("<0xD0>", 0, 2), ("<0xB6>", 2, 2)]),
    "one mark in many": (
        "llama_lower", "VKXBWMPYZGJCЖ",
        [("▁", 0, 0), *((letter, n, n + 1) for n, letter in enumerate("vkxbwmpyzgjc")), ("<0xD0>", 12, 14), ("<0xB6>", 14, 14)],
    ),
    "composed at the end": ("unigram_nfkc", "x\u1100\u1161", [("▁", 0, 0), ("x", 0, 1), ("<unk>", 1, 7)]),
    # The mark after the letter is read before the letter's own.
    "reordered": (
        "byte_level_lower", "Ä\ufe27x",
        [("a", 0, 5), ("ï", 5, 5), ("¸", 5, 5), ("§", 5, 5), ("ÌĪ", 5, 5), ("x", 5, 6)],
    ),
    "unknown": ("unigram_never", "Ж\u0301", [("<unk>", 0, 2), ("\u0301", 2, 4)]),
    # NFKC makes a space and a mark of a lone diaeresis: that space is no invented one.
    "expanded": ("unigram_nfkc", "x¨x", [("▁", 0, 0), ("x", 0, 1), ("▁", 1, 3), ("<unk>", 3, 3), ("x", 3, 4)]),
    "own marks": ("llama", "the▁fox", [("<s>", 0, 0), ("▁the", 0, 3), ("▁fox", 3, 9), ("</s>", 9, 9)]),
    "words": ("word_piece", "The  DOG", [("[CLS]", 0, 0), ("the", 0, 3), ("dog", 5, 8), ("[SEP]", 8, 8)]),
    "strip": ("unigram_strip", "  the ", [("▁the", 1, 5)]),
    "collapsed": ("unigram_nfkc", "the  the", [("▁the", 0, 3), ("▁the", 4, 8)]),
}
# fmt: on


@pytest.mark.parametrize("case", CASES)
def test_ranges_by_hand(case):
    name, text, expected = CASES[case]
    tokens = byte_ranges(tokenizer(name), text)
    found = [tokenizer(name).id_to_token(i) for i in tokens.ids.tolist()]
    assert list(zip(found, *zip(*_rows(tokens), strict=True), strict=True)) == expected


def test_special_tokens_are_marked():
    assert byte_ranges(tokenizer("llama"), "the").special.tolist() == [True, False, True]
    assert byte_ranges(tokenizer("llama"), "the", add_special_tokens=False).special.tolist() == [False]
    assert byte_ranges(tokenizer("byte_level"), "a<s>").special.tolist() == [False, True]
    unknown = byte_ranges(tokenizer("word_piece"), "ж", add_special_tokens=False)
    assert (unknown.special.tolist(), _rows(unknown)) == ([False], [(0, 2)])


@given(text=TEXTS, seed=st.integers(0, 99))
def test_sampled_tokens_are_exact(text, seed):
    """Any split into tokens of the vocabulary will do, not only the one that the tokenizer finds."""
    source, ids, start = random.Random(seed), [], 0
    while start < len(text):
        stop = start + source.randint(1, 3)
        ids += tokenizer("byte_level").encode(text[start:stop]).ids
        start = stop
    tokens = byte_ranges(tokenizer("byte_level"), text, ids=ids)
    assert tokens.exact
    assert tokens.ends.tolist() == np.cumsum([len(_token_bytes("byte_level", i)) for i in ids]).tolist()


@pytest.mark.parametrize(
    "name", ["byte_level", "llama_no_prefix", "unigram_words", "unigram_nfkc", "llama_lower"]
)
def test_framed_and_cut_ids_keep_their_places(name):
    text = "The Naïve dog\nsleeps ﬁne"
    plain = byte_ranges(tokenizer(name), text, add_special_tokens=False)
    first, last = (tokenizer(name).token_to_id(token) for token in ("<s>", "</s>"))
    ids = [last, last, first, *plain.ids.tolist(), last, last]
    framed = byte_ranges(tokenizer(name), text, ids=ids)
    end = int(plain.ends[-1])
    assert _rows(framed) == [(0, 0)] * 3 + _rows(plain) + [(end, end)] * 2
    assert framed.special.tolist() == [True] * 3 + [False] * len(plain) + [True] * 2
    cut = byte_ranges(tokenizer(name), text, ids=plain.ids[:3])
    assert _rows(cut) == _rows(plain)[:3]
    assert cut.total == plain.total
    assert cut.exact or not plain.exact


@pytest.mark.parametrize(
    ("model", "ids"),
    [
        (models.WordPiece({"dog": 0, "##s": 1, "do": 2, "##gs": 3, "?": 4}, unk_token="?"), [2, 3]),
        (models.BPE({"d": 0, "o": 1, "gs</w>": 2, "do": 3}, [], end_of_word_suffix="</w>"), [0, 1, 2]),
        (models.BPE({"d": 0, "@o": 1, "@gs": 2}, [], continuing_subword_prefix="@"), [0, 1, 2]),
    ],
)
def test_marks_of_the_model_are_known_without_a_decoder(model, ids):
    tokens = byte_ranges(Tokenizer(model), "dogs", ids=ids)
    assert tokens.exact
    assert _rows(tokens)[-1] == (2, 4)


def test_a_frame_of_ordinary_tokens_covers_nothing():
    framing = Tokenizer(models.WordLevel({"[B]": 0, "a": 1, "?": 2}, unk_token="?"))
    framing.normalizer = normalizers.Lowercase()
    framing.post_processor = processors.TemplateProcessing(single="[B] $A", special_tokens=[("[B]", 0)])
    tokens = byte_ranges(framing, "A", ids=[0, 1])
    assert (_rows(tokens), tokens.special.tolist(), tokens.exact) == ([(0, 0), (0, 1)], [True, False], True)
    _same(tokens, byte_ranges(framing, "A"))


def test_ids_of_another_text_are_not_exact():
    ids = tokenizer("byte_level").encode("the dog").ids
    for text in ("he dog", "the do", "xthe dog", "cat"):
        assert not byte_ranges(tokenizer("byte_level"), text, ids=ids).exact


def test_truncation_and_padding_of_the_tokenizer():
    cutting = _byte_level(300, False, normalizers.Lowercase())
    cutting.enable_truncation(4)
    assert _rows(byte_ranges(cutting, "ABCDEFG")) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    padding = _byte_level(300, False, normalizers.Lowercase())
    padding.enable_padding(length=4, direction="left", pad_token="<s>")
    tokens = byte_ranges(padding, "AB")
    assert _rows(tokens) == [(0, 0), (0, 0), (0, 1), (1, 2)]
    assert tokens.special.tolist() == [True, True, False, False]


@pytest.mark.parametrize("name", ALL)
def test_an_encoding_without_offsets_is_enough(name):
    text = "The Quick  fox\tsagt süß 😀"
    encoding = tokenizer(name).encode_batch_fast([text])[0]
    assert set(encoding.offsets) == {(0, 0)}
    _same(byte_ranges(tokenizer(name), text), byte_ranges(tokenizer(name), text, encoding=encoding))


def test_added_tokens_cover_the_text_that_spells_them():
    adding = _byte_level(300, False)
    adding.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    adding.add_tokens(["Ġünter", "wörld"])
    tokens = byte_ranges(adding, "ab  <mask> wörldĠünter")
    found = [adding.id_to_token(i) for i in tokens.ids.tolist()]
    assert found == ["a", "b", "<mask>", "Ġ", "wörld", "Ġünter"]
    assert _rows(tokens)[0::5] == [(0, 1), (17, 25)]
    assert _rows(tokens)[2][1] == 10
    assert _rows(tokens)[3:5] == [(10, 11), (11, 17)]


def test_parts_written_in_python_are_worked_around():
    class Split:
        def pre_tokenize(self, text):
            text.split(lambda n, string: [string])

    trained = tokenizer("llama_no_prefix")
    opaque = Tokenizer.from_str(trained.to_str())
    opaque.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Split())
    opaque.normalizer = normalizers.Replace(" ", "▁")
    opaque.decoder = decoders.Fuse()
    _same(byte_ranges(trained, "the 😀 dog"), byte_ranges(opaque, "the 😀 dog"))
    silent = Tokenizer(models.WordLevel({"ab": 0, "▁c": 1, "?": 2}, unk_token="?"))
    silent.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Split())
    assert _rows(byte_ranges(silent, "ab")) == [(0, 2)]


def test_long_runs_of_marks_and_of_unknown_characters():
    for name in ALL:
        for text in ("A" + "\u0301\u0323" * 3000, "\x00" * 4000, "ﷺ" * 500, "▁" * 3000, " " * 5000):
            byte_ranges(tokenizer(name), text)
