"""byte_ranges: what it costs, what it needs, and what it says about bad arguments."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mlot.align import byte_ranges
from tokenizer_cases import BYTE_LEVEL, SENTENCES, tokenizer


def _lines_run(name, text):
    """Lines of this package that run for one text."""
    encoding, seen = tokenizer(name).encode(text), Counter()

    def trace(frame, event, argument):
        if "align" not in Path(frame.f_code.co_filename).parts:
            return None
        seen[event] += 1
        return trace

    sys.settrace(trace)
    try:
        byte_ranges(tokenizer(name), text, encoding=encoding)
    finally:
        sys.settrace(None)
    return seen["line"]


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "llama", "unigram", "byte_level_nfkc", "word_piece"])
def test_work_in_python_does_not_grow_with_the_text(name):
    """Every step over tokens or bytes is one call into compiled code."""
    text = SENTENCES[0] + " " + SENTENCES[1]
    _lines_run(name, text * 10)  # the tokenizer, and its tokens, are read once
    few = _lines_run(name, text * 10)
    assert _lines_run(name, text * 100) == few > 20


def test_importing_needs_numpy_alone():
    code = (
        "import sys, mlot.align\n"
        "print([name for name in ('torch', 'tokenizers', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((object(), "a"), TypeError, "tokenizer: expected one of the tokenizers or transformers library"),
        (("byte_level", b"a"), TypeError, "text: expected a string, got bytes"),
        (("byte_level", "a\ud800"), ValueError, "text: expected valid Unicode, got a lone surrogate at 1"),
    ],
)
def test_bad_tokenizer_or_text(arguments, error, message):
    first = tokenizer(arguments[0]) if isinstance(arguments[0], str) else arguments[0]
    with pytest.raises(error, match=message):
        byte_ranges(first, arguments[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ids": [[1, 2]]}, ValueError, r"ids: expected one row of integers, got shape \(1, 2\)"),
        ({"ids": [0.5]}, TypeError, "ids: expected integers, got float64"),
        ({"ids": [1, -100]}, ValueError, "ids: expected token ids >= 0, got -100"),
        ({"ids": [1], "encoding": 1}, ValueError, "ids: expected None beside an encoding"),
        ({"encoding": [1]}, TypeError, "encoding: expected a tokenizers.Encoding, got list"),
        ({"add_special_tokens": 1}, TypeError, "add_special_tokens: expected True or False, got int 1"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        byte_ranges(tokenizer("byte_level"), "a", **options)
