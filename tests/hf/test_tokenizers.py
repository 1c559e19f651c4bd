"""What any tokenizer needs: a pad token, and a token that starts a text."""

import pytest

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlot._hf.tokenizers import complete_special_tokens as complete
from mlot._hf.tokenizers import start_token


def _bare(**special):
    tokenizer = Tokenizer(
        models.WordLevel({"a": 0, "b": 1, "<e>": 2, "<p>": 3, "[UNK]": 4}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_missing_pad_and_bos_are_made_up_for_with_a_notice():
    tokenizer = _bare(eos_token="<e>")
    notices = complete(tokenizer, "--student")
    assert tokenizer.pad_token_id == 2
    assert start_token(tokenizer) == 2
    assert notices == [
        "--student: the tokenizer has no pad token; its eos token '<e>' pads",
        "--student: the tokenizer has no bos token; texts start with its eos token",
    ]
    whole = _bare(eos_token="<e>", pad_token="<p>", bos_token="a")
    assert complete(whole, "--student") == []
    assert (whole.pad_token_id, start_token(whole)) == (3, 0)


def test_tokenizer_without_special_tokens_is_refused():
    with pytest.raises(ValueError, match="--teacher: expected a tokenizer with an eos token"):
        complete(_bare(), "--teacher")
    with pytest.raises(ValueError, match="--teacher: expected a tokenizer with an eos token"):
        complete(_bare(bos_token="<e>"), "--teacher")
    assert complete(_bare(bos_token="<e>", pad_token="<p>"), "--teacher") == []
