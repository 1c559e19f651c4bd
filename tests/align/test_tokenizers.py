"""The tokenizers of the tests are what their names say."""

import pytest

from tokenizer_cases import ALL, BYTE_LEVEL, tokenizer


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_tokenizers_split_characters(name):
    tokens = tokenizer(name).encode("😀𝕏", add_special_tokens=False).tokens
    assert len(tokens) > 2


@pytest.mark.parametrize("name", ["llama", "llama_no_prefix", "unigram_fallback"])
def test_fallback_tokenizers_fall_back(name):
    assert {"<0xF0>", "<0x9D>"} <= set(tokenizer(name).encode("a𝕏").tokens)


@pytest.mark.parametrize("name", ALL)
def test_tokenizers_learnt_words(name):
    tokens = tokenizer(name).encode("the quick brown fox").tokens
    assert max(map(len, tokens)) >= 3
