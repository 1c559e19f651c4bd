"""A tokenizer is read once, and anew where something about it has changed."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlot.align import byte_ranges
from mlot.align._reader import Reader
from tokenizer_cases import tokenizer


def _fast(name="byte_level"):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer(name).to_str()))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.add_tokens(["Ġwörld"]),
        lambda made: made.add_special_tokens({"eos_token": "</s>"}),
        lambda made: made.add_special_tokens({"additional_special_tokens": ["fox"]}),
        lambda made: setattr(made, "unk_token", "e"),
        lambda made: setattr(made.backend_tokenizer, "normalizer", normalizers.NFC()),
        lambda made: setattr(made.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda made: setattr(made.backend_tokenizer, "decoder", decoders.WordPiece()),
        lambda made: made.backend_tokenizer.add_tokens([AddedToken("  ")]),
    ],
)
def test_what_has_changed_is_read_anew(change):
    made = _fast()
    before = Reader.of(made)
    assert Reader.of(made) is before
    change(made)
    after = Reader.of(made)
    assert after is not before
    fresh = Reader(made)
    for name in ("scheme", "added", "special", "unknown", "padding"):
        assert getattr(after, name) == getattr(fresh, name)


def test_roles_that_change_are_seen():
    made = _fast("llama")
    made.unk_token = "<unk>"
    assert Reader.of(made).unknown == {0}
    made.pad_token = "<unk>"
    assert Reader.of(made).padding == {0}
    made.bos_token = "<unk>"
    assert Reader.of(made).unknown == set()


def test_few_are_kept():
    made = [_fast() for _ in range(12)]
    first = Reader.of(made[0])
    for each in made:
        byte_ranges(each, "a")
    assert Reader.of(made[0]) is not first
    assert Reader.of(made[0]) is Reader.of(made[0])


def test_parts_written_in_python_are_read_each_time():
    class Same:
        def normalize(self, normalized):
            pass

    made = Tokenizer.from_str(tokenizer("byte_level").to_str())
    made.normalizer = normalizers.Normalizer.custom(Same())
    assert Reader.of(made) is not Reader.of(made)
    assert byte_ranges(made, "the fox").exact
