"""Whole vocabularies: the bytes of every token, and tokenizations of byte strings inside a text."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mlot.align._match import CJK
from mlot.align._reader import Reader
from mlot.align._scheme import CHARACTER_OF, Scheme, guess, plausible
from mlot.align._strings import Strings
from mlot.align._tokens import Integers

#: Text to try spellings on: words with spaces, and a character of several bytes.
_PROBE = "the dog sees a na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve cat"
#: Ideographs, each of which is a word of its own, as BERT has them.
_ALONE = re.compile(f"[{CJK}]")
#: Character before a text that keeps wrappers from putting a space there.
_GUARD = "\n"


class Spelling:
    """What every token of a tokenizer spells.

    Where spaces leave no trace and continuations are marked, as with WordPiece, a token that begins a word
    spells the space before it: after a letter, nothing else does. Punctuation and ideographs, which are words
    of their own, may follow one or not.

    Attributes:
        reader: of the tokenizer.
        scheme: how its tokens spell bytes.
        strings: bytes of each id, empty for those that stand for no text.
        spaced: ids that may follow a space that is not in their bytes.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        tokens = _tokens(reader)
        self.scheme: Scheme = _tried(reader, tokens) if reader.scheme is None else reader.scheme
        surfaces = reader.surfaces(self.scheme, dict(enumerate(tokens)))
        silent = reader.special | reader.unknown
        spelled = [b"" if i in silent else surfaces[i] for i in range(len(tokens))]
        #: Ids that begin a word, or are one, with or without a space before: punctuation and the like.
        self.spaced: list[int] = []
        for i, token in enumerate(tokens):
            if token is None or not spelled[i] or i in reader.added or not self.scheme.drops_spaces(token):
                continue
            if _in_words(spelled[i].decode()[0]):
                spelled[i] = b" " + spelled[i]
            else:
                self.spaced.append(i)
        self.strings = Strings.of(spelled)

    @cached_property
    def preference(self) -> Integers:
        """0 for tokens that the tokenizer makes of their bytes, 1 for others of the same bytes, ``(V,)``."""
        every = self.strings.all()
        first: dict[bytes, int] = {}
        repeated: dict[bytes, list[int]] = {}
        for i, word in enumerate(every):
            if word and first.setdefault(word, i) != i:
                repeated.setdefault(word, [first[word]]).append(i)
        ranks = np.zeros(len(every), np.int64)
        for tokens, ids in zip(self.tokenize(list(repeated)), repeated.values(), strict=True):
            ranks[ids] = [int(list(tokens) != [i]) for i in ids]
        return ranks

    def tokenize(self, strings: Sequence[bytes]) -> list[Sequence[int]]:
        """Tokenizations of byte strings as they are inside a text: nothing is put before or around them.

        Bytes that are no whole characters have tokens with byte-level vocabularies alone; the others none.
        """
        made: list[Sequence[int]] = [()] * len(strings)
        texts: dict[int, str] = {}
        for n, each in enumerate(strings):
            try:
                texts[n] = each.decode()
            except UnicodeDecodeError:
                made[n] = self._of_bytes(each)
        for n, ids in zip(texts, self._of_texts(list(texts.values())), strict=True):
            made[n] = ids
        return made

    @cached_property
    def _inside(self) -> Any:
        return None if self.reader.backend is None else _inside(self.reader.backend)

    def _of_texts(self, texts: list[str]) -> list[Sequence[int]]:
        if self._inside is not None:
            encodings = self._inside.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        if not self.reader.fast and not hasattr(self.reader.tokenizer, "encode"):
            return [()] * len(texts)
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Sequence[int]:
        """Of a tokenizer that cannot be told to put no space first; if it puts none, no guard is needed."""
        ids = self._ids(text)
        spelled = b"".join(self.strings[i] for i in ids if i < len(self.strings))
        if spelled == text.encode():
            return ids
        guard, ids = self._guard_ids, self._ids(_GUARD + text)
        return ids[len(guard) :] if ids[: len(guard)] == guard else ()

    @cached_property
    def _guard_ids(self) -> list[int]:
        return self._ids(_GUARD)

    def _ids(self, text: str) -> list[int]:
        if self.reader.backend is not None:
            return list(self.reader.backend.encode(text, add_special_tokens=False).ids)
        return [int(i) for i in self.reader.encode(text, False)]

    def _of_bytes(self, data: bytes) -> Sequence[int]:
        model = getattr(self.reader.backend, "model", None)
        if model is None or not self.scheme.byte_map:
            return ()
        return [token.id for token in model.tokenize("".join(map(CHARACTER_OF.__getitem__, data)))]


def _in_words(character: str) -> bool:
    """Whether a character is part of words, and no word of its own."""
    marks = character in string.punctuation or unicodedata.category(character)[0] == "P"
    return not (marks or _ALONE.match(character))


def _tokens(reader: Reader) -> list[str | bytes | None]:
    """Strings of the ids 0 to the last."""
    spelled = reader.bytes_of is not None or not hasattr(reader.tokenizer, "get_vocab")
    if reader.backend is None and spelled:
        size = getattr(reader.tokenizer, "vocab_size", None)
        if size is None:
            raise TypeError(
                f"tokenizer: expected one with get_vocab or vocab_size, got {type(reader.tokenizer).__name__}"
            )
        return reader.tokens(range(int(size)))
    words = (reader.tokenizer if reader.backend is None else reader.backend).get_vocab()
    tokens: list[str | bytes | None] = [None] * (max([-1, *words.values(), *reader.added]) + 1)
    for word, i in words.items():
        tokens[i] = word
    return tokens


def _tried(reader: Reader, tokens: list[str | bytes | None]) -> Scheme:
    """The scheme under which the tokens of a text spell it; without one, what the vocabulary looks like."""
    silent = reader.added.keys() | reader.special | reader.unknown
    ordinary = [token for i, token in enumerate(tokens) if i not in silent]
    if hasattr(reader.tokenizer, "encode"):
        made = reader.encode(_PROBE, False)
        ids = [int(i) for i in getattr(made, "ids", made)]
        spelled = [tokens[i] for i in ids if 0 <= i < len(tokens) and i not in silent]
        for scheme in plausible(ordinary):
            text = b"".join(scheme.surface(token) for token in spelled if token is not None)
            if text.lstrip() == _PROBE.encode():
                return scheme
    return guess(ordinary)


def _inside(backend: Any) -> Any:
    """A fast tokenizer of the same model that reads text as if more text were before it.

    ``None`` where parts written in Python cannot be copied, or added tokens would have other ids.
    """
    try:
        normalizer, splitter = (
            None if part is None else json.loads(part.__getstate__())
            for part in (backend.normalizer, backend.pre_tokenizer)
        )
    except Exception:  # tokenizers raises a bare Exception for parts written in Python
        return None
    empty: dict[str, Any] = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    state = {
        **empty,
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None if normalizer is None else _without_edges(normalizer),
        "pre_tokenizer": None if splitter is None else _without_prefix(splitter),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    made = type(backend).from_str(json.dumps(state))
    made.model = backend.model
    added = sorted(backend.get_added_tokens_decoder().items())
    made.add_tokens([token for _, token in added])
    made.encode_special_tokens = True  # what is special is not text
    return made if all(made.token_to_id(token.content) == i for i, token in added) else None


def _without_prefix(splitter: dict[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer that puts no space before a text."""
    for part in [splitter, *splitter.get("pretokenizers", [])[:1]]:
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return splitter


def _without_edges(normalizer: dict[str, Any]) -> dict[str, Any] | None:
    """A normaliser without what it does to the first and the last character of a text."""
    if normalizer["type"] in ("Prepend", "Strip"):
        return None
    if normalizer["type"] != "Sequence":
        return normalizer
    kept = [part for part in map(_without_edges, normalizer["normalizers"]) if part is not None]
    return {**normalizer, "normalizers": kept} if kept else None
