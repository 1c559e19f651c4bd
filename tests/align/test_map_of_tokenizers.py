"""The map of two tokenizers: trained ones of every kind, transformers' wrappers, files."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from mlot.align import VocabularyMap
from slow_cases import Slow
from tokenizer_cases import ALL, BYTE_LEVEL, TEXTS, TILING, tokenizer

SPECIAL = ("<s>", "</s>", "<unk>", "[UNK]", "[CLS]", "[SEP]")
#: What vocabularies themselves spell otherwise.
MARKS = ("▁", "<0x")


@cache
def mapped(student, teacher):
    return VocabularyMap.from_tokenizers(tokenizer(student), tokenizer(teacher))


@pytest.mark.parametrize("name", TILING)
@given(text=TEXTS.filter(lambda text: not any(name in text for name in (*MARKS, *SPECIAL))))
def test_bytes_are_those_that_a_text_is_made_of(name, text):
    made = tokenizer(name)
    ids = made.encode(text, add_special_tokens=False).ids
    if made.token_to_id("<unk>") in ids:
        return
    spelled = b"".join(mapped(name, name).student_bytes[i] for i in ids)
    assert spelled in (text.encode(), b" " + text.encode())


@pytest.mark.parametrize("name", ALL)
def test_what_is_special_spells_nothing(name):
    made = mapped(name, name)
    for word in SPECIAL:
        i = tokenizer(name).token_to_id(word)
        assert i is None or made.student_bytes[i] == b""


@pytest.mark.parametrize("name", ALL)
def test_a_tokenizer_is_mapped_to_itself(name):
    made = mapped(name, name)
    assert made.longest[made.offsets[:-1]].tolist() == made.order.tolist()
    known = made.canonical[made.offsets[:-1]]
    alone = made.segmentation == 0
    assert (known[alone & (known >= 0)] == made.order[alone & (known >= 0)]).all()


@pytest.mark.parametrize("student", ["byte_level", "llama", "unigram", "unigram_fallback"])
@pytest.mark.parametrize(
    "teacher", ["byte_level_large", "llama_no_prefix", "unigram_first", "word_piece_cased"]
)
def test_canonical_is_the_tokenization_inside_a_text(student, teacher):
    """As after a line break, where that is a token of its own."""
    made, own = mapped(student, teacher), tokenizer(student)
    lead = own.encode("\n", add_special_tokens=False).ids
    tried = 0
    for n, i in enumerate(made.order.tolist()):
        string = made.teacher_bytes[i].decode("utf-8", "replace")
        if (
            "\N{REPLACEMENT CHARACTER}" in string
            or not string.lstrip(" ")
            or "  " in string
            or "\n" in string
        ):
            continue
        ids = own.encode("\n" + string, add_special_tokens=False).ids
        if ids[: len(lead)] != lead:
            continue
        spelled = [made.student_bytes[i] for i in ids[len(lead) :]]
        entries = made.canonical[made.offsets[n] : made.offsets[n + 1]].tolist()
        if b"".join(spelled) != string.encode():
            assert set(entries) == {-1}
            continue
        tried += 1
        at = 0
        for word in spelled:
            assert made.student_bytes[entries[at]] == word
            entries[at] = -1
            at += len(word)
        assert set(entries) == {-1}
    assert tried > 0.5 * len(made)


def test_partial_characters_have_a_canonical_token_in_byte_level_vocabularies():
    made = mapped("byte_level", "byte_level_large")
    partial = [n for n, i in enumerate(made.order.tolist()) if not _whole(made.teacher_bytes[i])]
    assert partial
    assert (made.canonical[made.offsets[partial]] >= 0).all()


def _whole(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_of_tokens_with_the_same_bytes_the_one_that_text_has_is_taken():
    """A vocabulary with byte fallback has two tokens for each letter."""
    own = tokenizer("llama")
    made = mapped("llama", "byte_level")
    place = made.rank[tokenizer("byte_level").token_to_id("e")]
    assert own.token_to_id("e") > own.token_to_id("<s>")
    assert made.longest[made.offsets[place]] == made.canonical[made.offsets[place]] == own.token_to_id("e")


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama", "llama_no_prefix", "unigram_fallback"])
def test_slow_tokenizers_give_the_same_map(name):
    slow = Slow(tokenizer(name))
    one = VocabularyMap.from_tokenizers(slow, slow)
    other = mapped(name, name)
    for array in ("order", "offsets", "longest"):
        assert np.array_equal(getattr(one, array), getattr(other, array)), array
    # Pieces of characters are no text that a slow tokenizer could be asked for.
    whole = [_whole(other.teacher_bytes[i]) for i in other.order.tolist()]
    entries = np.repeat(whole, np.diff(other.offsets))
    known = entries & (one.canonical >= 0)
    assert np.array_equal(one.canonical[known], other.canonical[known])
    # Nor is what joins the character that is put before to keep a space away.
    assert known.sum() > 0.95 * (other.canonical[entries] >= 0).sum()


def test_a_byte_level_student_of_transformers():
    byt5 = ByT5Tokenizer()
    made = VocabularyMap.from_tokenizers(byt5, tokenizer("byte_level"))
    strings = [made.teacher_bytes[i] for i in made.order.tolist()]
    assert made.longest.tolist() == [3 + byte for byte in b"".join(strings)]


def _chat(turn, text="<|endoftext|>", eos=None, template=None):
    words = {"a": 0, "b": 1, text: 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(text, special=True), AddedToken(turn, special=True)])
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos or text)
    made.chat_template = template
    return made, backend.token_to_id(turn)


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}END\n{% endfor %}"


def test_ends_correspond_by_role():
    one, turn = _chat("<turn/>", template=TEMPLATE.replace("END", "<turn/>"))
    other, other_turn = _chat("<over>", "<end>", template=TEMPLATE.replace("END", "\n<over>"))
    assert VocabularyMap.from_tokenizers(one, other).roles.tolist() == [[2, 2], [other_turn, turn]]
    # Without a template, by name; eos may be either.
    one, turn = _chat("<|im_end|>", eos="<|im_end|>")
    assert VocabularyMap.from_tokenizers(one, other).roles.tolist() == [[2, 2], [other_turn, turn]]
    # One end for all corresponds to what the student is told to end with.
    llama = PreTrainedTokenizerFast(tokenizer_object=tokenizer("llama"), eos_token="</s>", bos_token="<s>")
    end = llama.eos_token_id
    assert [end, turn] in VocabularyMap.from_tokenizers(one, llama).roles.tolist()
    assert [[2, end], [other_turn, end]] == VocabularyMap.from_tokenizers(llama, other).roles.tolist()


def test_one_end_for_all_is_what_the_student_ends_a_text_with(tmp_path):
    llama = PreTrainedTokenizerFast(tokenizer_object=tokenizer("llama"), eos_token="</s>", bos_token="<s>")
    end = llama.eos_token_id
    for template, eos, role in (
        (TEMPLATE.replace("END", "<|im_end|>"), None, "turn"),
        (None, None, "text"),
        (None, "<|im_end|>", "turn"),
    ):
        two, turn = _chat("<|im_end|>", eos=eos, template=template)
        ids = {"turn": turn, "text": 2}
        made = VocabularyMap.from_tokenizers(two, llama, folder=tmp_path)
        assert [end, ids.pop(role)] in made.roles.tolist()
        assert made.ends.tolist() == [[end, *ids.values()]]
        made.save(tmp_path / "map")
        assert VocabularyMap.load(tmp_path / "map").ends.tolist() == made.ends.tolist()
        # The student's is one: the teacher's two correspond to it, and nothing else does.
        assert not len(VocabularyMap.from_tokenizers(llama, two).ends)
        assert not len(VocabularyMap.from_tokenizers(llama, llama).ends)


def test_a_start_is_not_an_end():
    one = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer("byte_level"), bos_token="</s>", eos_token="</s>", pad_token="</s>"
    )
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer("llama"), bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )
    ends = [other.eos_token_id, one.eos_token_id]
    made = VocabularyMap.from_tokenizers(one, other).roles.tolist()
    assert ends in made
    assert all(row == ends or row[1] != one.eos_token_id for row in made)


def test_maps_are_kept(tmp_path):
    one, other = tokenizer("byte_level"), tokenizer("unigram")
    made = VocabularyMap.from_tokenizers(one, other)
    again = VocabularyMap.from_tokenizers(Tokenizer.from_str(one.to_str()), other, folder=tmp_path)
    assert again.longest is made.longest
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-7])  # made anew, if it is damaged
    assert VocabularyMap.from_tokenizers(one, other, folder=tmp_path).longest is made.longest


def _equal(one, other):
    assert one.fingerprints == other.fingerprints
    for name in ("order", "offsets", "longest", "canonical", "segmentation", "roles"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    for name in ("student_bytes", "teacher_bytes"):
        assert getattr(one, name).all() == getattr(other, name).all()


def test_saved_and_loaded(tmp_path):
    one, other = tokenizer("byte_level"), tokenizer("unigram")
    made, path = VocabularyMap.from_tokenizers(one, other), tmp_path / "map"
    made.save(path)
    _equal(VocabularyMap.load(path), made)
    _equal(VocabularyMap.load(path, student_tokenizer=one, teacher_tokenizer=other), made)
    with pytest.raises(ValueError, match="student_tokenizer: expected that of the map"):
        VocabularyMap.load(path, student_tokenizer=other)
    with pytest.raises(ValueError, match="teacher_tokenizer: expected that of the map"):
        VocabularyMap.load(path, student_tokenizer=one, teacher_tokenizer=one)
    plain = VocabularyMap.from_bytes([b"a", None], [b"ab"], roles=[[0, 1]])
    plain.save(path)
    _equal(VocabularyMap.load(path), plain)
    with pytest.raises(ValueError, match="student_tokenizer: expected that of the map"):
        VocabularyMap.load(path, student_tokenizer=one)
    assert [each.name for each in tmp_path.iterdir()] == ["map"]


@given(data=st.data())
def test_damaged_files_are_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "map"
    VocabularyMap.from_bytes([b"a", None], [b"ab"], roles=[[0, 1]]).save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged or another"):
        VocabularyMap.load(path)


def test_bad_arguments(tmp_path):
    own = tokenizer("byte_level")
    with pytest.raises(TypeError, match="tokenizer: expected one of the tokenizers or transformers library"):
        VocabularyMap.from_tokenizers(own, "gpt2")
    with pytest.raises(TypeError, match="folder: expected a path, got int"):
        VocabularyMap.from_tokenizers(own, own, folder=3)
    with pytest.raises(FileNotFoundError, match="folder: expected an existing folder"):
        VocabularyMap.from_tokenizers(own, own, folder=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="path: expected a file"):
        VocabularyMap.load(tmp_path / "none")
    (tmp_path / "json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="is damaged or another"):
        VocabularyMap.load(tmp_path / "json")
