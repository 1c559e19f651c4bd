"""Whole vocabularies: each id as each server writes it, read back: the same id, or ambiguous and counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mlot import serving
from mlot._hf.made import standard_library_documents
from mlot.align._reader import Reader
from mlot.serving._lookup import AMBIGUOUS, Lookup

FOLDER = Path(__file__).parents[2] / ".tokenizers"
PUBLISHED = ("llama2", "llama3", "qwen3", "gemma3", "gpt4o")
REPLACED = "\N{REPLACEMENT CHARACTER}"
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]


def _texts() -> Iterator[str]:
    yield from standard_library_documents()[:6]
    yield (
        "東京は日本の首都である。 Ça va, naïve café — “déjà vu” 😀😃🎉 слово за слово \ufffd\ufffd  \t\n\n    x"
        * 20
    )


@cache
def tokenizer(name: str) -> Any:
    """Small ones that are trained here, and published ones where they are."""
    if name in PUBLISHED:
        return AutoTokenizer.from_pretrained(FOLDER / name)
    if name == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=SPECIAL)
    elif name == "byte-level":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        return _with_byte_tokens(stripping=name == "stripping")
    made.train_from_iterator(_texts(), trainer)
    return made


def _with_byte_tokens(*, stripping: bool) -> Tokenizer:
    """As SentencePiece's: spaces as a mark, a token for each byte, and a decoder that strips a space or not."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=2500, max_token_length=12))
    state = json.loads(trained.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    merges = [tuple(each) for each in state["merges"]]
    vocabulary = {token: i for i, token in enumerate(names)}
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if stripping else parts)
    made.add_special_tokens(SPECIAL)
    made.add_tokens(["▁▁▁▁▁▁▁▁▁", "\n\n\n\n"])
    return made


NAMES = ["byte-level", "sentencepiece", "stripping", "wordpiece"]
ALL = [
    *NAMES,
    *(
        pytest.param(
            name,
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not FOLDER.is_dir(), reason="published tokenizers: make tokenizers"),
            ],
        )
        for name in PUBLISHED
    ),
]


@cache
def surfaces(given: Any) -> dict[int, bytes]:
    """Bytes of each token, as servers that keep pieces know them."""
    reader = Reader.of(given)
    tokens = {i: token for token, i in reader.backend.get_vocab().items()}
    return dict(reader.surfaces(reader.scheme, tokens))


def piece(raw: bytes) -> dict[str, object]:
    """llama.cpp: the piece, with its own bytes."""
    return {"token": raw.decode("utf-8", "replace"), "bytes": list(raw)}


def replaced(raw: bytes) -> dict[str, object]:
    """Ollama: the piece as Go writes it, with the bytes of that: each bad byte is U+FFFD."""
    text = "".join(
        REPLACED if 0xDC80 <= ord(c) <= 0xDCFF else c for c in raw.decode("utf-8", "surrogateescape")
    )
    return {"token": text, "bytes": list(text.encode())}


def escaped(raw: bytes) -> dict[str, object]:
    """OpenAI: pieces of characters are escaped, and bytes are given."""
    try:
        return {"token": raw.decode(), "bytes": list(raw)}
    except UnicodeDecodeError:
        return {"token": "".join(f"\\x{byte:02x}" for byte in raw), "bytes": list(raw)}


def as_text(text: str) -> dict[str, object]:
    return {"token": text, "bytes": list(text.encode())}


def written(given: Any, server: str) -> dict[int, dict[str, object]]:
    """Each token as a server writes it."""
    backend = Reader.of(given).backend
    spelled = {i: token for token, i in backend.get_vocab().items()}
    if server == "spelled":  # vLLM 0.8
        return {i: as_text(token) for i, token in spelled.items()}
    if server in ("decoded", "restored"):  # SGLang; vLLM before July 2026, and since
        alone = backend.decode_batch([[i] for i in spelled], skip_special_tokens=False)
        texts = dict(zip(spelled, alone, strict=True))
        if server == "restored":
            for i, token in spelled.items():
                spaces = len(token) - len(token.lstrip("▁"))
                texts[i] = " " * (spaces - len(texts[i]) + len(texts[i].lstrip(" "))) + texts[i]
        return {i: as_text(text) for i, text in texts.items()}
    way: Callable[[bytes], dict[str, object]] = {"pieces": piece, "ollama": replaced, "openai": escaped}[
        server
    ]
    return {i: way(raw) for i, raw in surfaces(given).items()}


def read_back(given: Any, entries: dict[int, dict[str, object]], alone: bool, server: str) -> dict[int, int]:
    """The id read for each, -1 where there is none; in one response, or each in its own."""
    likely = {"logprob": -0.1}
    rows = [{"token": "?", "logprob": -9.0, "top_logprobs": [each | likely]} for each in entries.values()]
    groups = [[row] for row in rows] if alone else [rows]
    if server == "ollama":
        responses: list[Any] = [{"logprobs": group, "prompt_eval_count": 1} for group in groups]
        served = serving.from_ollama(responses, given)
    else:
        responses = [{"choices": [{"logprobs": {"content": group}}]} for group in groups]
        served = serving.from_openai(responses, given, prompt_lengths=1)
    ids = served.source.ids
    first = ids[:, 0, 0] if alone else ids[0, :-1, 0]
    none = int((first < 0).sum())
    assert (served.ambiguous + served.unknown, served.beyond) == (none, 0)
    assert served.unknown == 0
    return dict(zip(entries, first.tolist(), strict=True))


@cache
def never_written(given: Any) -> set[int]:
    """Byte tokens of what has a piece of its own: no text is tokenized to them."""
    raws, words = surfaces(given), Reader.of(given).backend.get_vocab()
    of_bytes = {i for word, i in words.items() if len(word) == 6 and word.startswith("<0x")}
    pieces = {raw for i, raw in raws.items() if i not in of_bytes}
    return {i for i in of_bytes if raws[i] in pieces}


@pytest.mark.parametrize("server", ["decoded", "restored", "spelled", "pieces", "ollama", "openai"])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_token_is_read_as_itself_or_not_at_all(name: str, alone: bool, server: str) -> None:
    given = tokenizer(name)
    entries = written(given, server)
    if alone:  # one response each: nothing but its own text shows how the server writes
        some = np.random.default_rng(0).permutation(list(entries))[:400].tolist()
        entries = {i: entries[i] for i in some}
    back = read_back(given, entries, alone, server)
    hidden = never_written(given)
    wrong = {i: got for i, got in back.items() if got not in (i, -1) and i not in hidden}
    assert not wrong, [(entries[i], got) for i, got in list(wrong.items())[:5]]
    if not alone and server in ("pieces", "openai") and name != "wordpiece":
        missed = [i for i, got in back.items() if got == -1 and i not in hidden]
        assert len(missed) <= 0.002 * len(back), [entries[i] for i in missed[:9]]
    if not alone and server == "restored":
        assert sum(got == i for i, got in back.items()) > 0.85 * len(
            back
        )  # the rest are pieces of characters


@pytest.mark.parametrize("name", ["sentencepiece", "stripping"])
def test_no_text_is_tokenized_to_a_byte_token_that_has_a_piece(name: str) -> None:
    given = tokenizer(name)
    hidden, raws = never_written(given), surfaces(given)
    assert hidden
    for i in hidden:
        for text in (raws[i].decode(), f"x{raws[i].decode()}x"):
            assert i not in given.encode(text, add_special_tokens=False).ids
    seen = {i for text in _texts() for i in given.encode(text, add_special_tokens=False).ids}
    assert not hidden & seen


@pytest.mark.parametrize("name", ALL)
def test_ids_need_no_text(name: str) -> None:
    given = tokenizer(name)
    entries = {i: {**each, "id": i} for i, each in written(given, "decoded").items()}
    assert read_back(given, entries, False, "decoded") == {i: i for i in entries}


def test_the_tables_of_a_vocabulary_are_kept() -> None:
    """Until it changes."""
    given = tokenizer("sentencepiece")
    made = Lookup.of(given)
    began = time.perf_counter()
    assert all(Lookup.of(given) is made for _ in range(20))
    assert time.perf_counter() - began < 1.0  # some 0.2 ms each
    mapping = {f"t{i}": i for i in range(1000)}
    first = Lookup.of(mapping)
    assert Lookup.of(mapping) is first
    mapping["new"] = 1000
    assert Lookup.of(mapping).finder()["new"] == 1000
    changed = Tokenizer.from_str(tokenizer("byte-level").to_str())
    Lookup.of(changed)
    changed.add_tokens(["entirely new"])
    assert Lookup.of(changed).finder()["entirely new"] == changed.token_to_id("entirely new")


def test_a_tokenizer_that_only_has_a_vocabulary() -> None:
    """Slow ones: the decoders of SentencePiece take a leading space away."""
    words = {"▁true": 0, "true": 1, "▁only": 2, "<0x61>": 3, "a": 4, "▁": 5}
    slow = SimpleNamespace(get_vocab=lambda: words, convert_ids_to_tokens=list, all_special_ids=[])
    made = Lookup.of(slow)
    assert Lookup.of(slow) is made
    lost, kept = made.finder(["only"]), made.finder([" only", "true"])
    assert (lost["true"], lost["only"], lost["a"]) == (AMBIGUOUS, 2, 4)
    assert (kept["true"], kept[" true"], kept[" "]) == (1, 0, 5)
    words["▁new"] = 6
    assert Lookup.of(slow).finder()["new"] == 6


def test_reading_takes_little_beside_parsing() -> None:
    """Some 1.5 microseconds an entry on a free core, as parsing the JSON takes."""
    given = tokenizer("byte-level")
    texts = [each for each in written(given, "decoded").values() if REPLACED not in str(each["token"])]
    rng = np.random.default_rng(0)
    content = []
    for _ in range(300):
        row = [texts[i] | {"logprob": -1.0 - n} for n, i in enumerate(rng.permutation(len(texts))[:20])]
        content.append(row[0] | {"top_logprobs": row})
    text = json.dumps({"choices": [{"logprobs": {"content": content}}]})
    seconds: dict[str, float] = {}
    for _ in range(7):
        began = time.perf_counter()
        response = json.loads(text)
        parsed = time.perf_counter()
        served = serving.from_openai(response, given, prompt_lengths=1)
        ended = time.perf_counter()
        for name, took in (("parse", parsed - began), ("read", ended - parsed)):
            seconds[name] = min(took, seconds.get(name, took))
    assert (served.source.ids >= 0).sum() > 5500
    assert seconds["read"] < 4 * seconds["parse"]
