"""How the strings of a vocabulary spell bytes: byte maps, space marks, byte fallback, continuation marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
#: Byte that each character of a byte-level vocabulary stands for: itself where visible, else 256 and up.
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}

#: Parts of a fast tokenizer that say how its tokens spell text.
PARTS = ("normalizer", "pre_tokenizer", "decoder")
_FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class Scheme:
    """Spelling of one vocabulary: marks are stripped, then characters are turned into bytes."""

    byte_map: bool = False
    latin: bool = False
    space: str = ""
    fallback: bool = False
    prefix: str = ""
    suffix: str = ""

    def surface(self, token: str | bytes) -> bytes:
        """Bytes of text that a token stands for."""
        if isinstance(token, bytes):
            return token
        if self.prefix and token.startswith(self.prefix) and token != self.prefix:
            token = token[len(self.prefix) :]
        if self.suffix and token.endswith(self.suffix) and token != self.suffix:
            token = token[: -len(self.suffix)]
        if self.byte_map:
            try:
                return bytes(map(BYTE_OF.__getitem__, token))
            except KeyError:  # a token from outside the byte map is spelled as it is
                return token.encode()
        if self.latin:
            return token.encode("latin-1", "replace")
        if self.fallback and (match := _FALLBACK.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(self.space, " ") if self.space else token).encode("utf-8", "replace")

    def starts_word(self, token: str | bytes) -> bool:
        """Whether a token can only begin a word: one without the mark, where continuations are marked."""
        return bool(self.prefix) and isinstance(token, str) and not token.startswith(self.prefix)

    def drops_spaces(self, token: str | bytes) -> bool:
        """Whether a token begins a word, and no token shows the space before it."""
        return self.starts_word(token) and not (self.byte_map or self.space)


def declared(backend: Any) -> Scheme | None:
    """Spelling that the parts of a fast tokenizer declare; ``None`` where they say nothing."""
    opaque, scheme = False, Scheme()
    for name in PARTS:
        part = getattr(backend, name, None)
        if part is None:
            continue
        try:
            state = json.loads(part.__getstate__())
        except Exception:  # parts written in Python cannot tell; tokenizers raises a bare Exception for them
            opaque = True
            continue
        for component in _components(state):
            scheme = _with_component(scheme, component)
    model = getattr(backend, "model", None)
    prefix = getattr(model, "continuing_subword_prefix", None) or scheme.prefix
    suffix = getattr(model, "end_of_word_suffix", None) or scheme.suffix
    fallback = all(backend.token_to_id(token) is not None for token in ("<0x00>", "<0xFF>"))
    silent = opaque and not (scheme.byte_map or scheme.space or prefix or suffix)
    return None if silent else replace(scheme, prefix=prefix, suffix=suffix, fallback=fallback)


def _components(state: Any) -> Iterator[dict[str, Any]]:
    if isinstance(state, dict):
        yield state
        for value in state.values():
            yield from _components(value)
    elif isinstance(state, list):
        for value in state:
            yield from _components(value)


def _with_component(scheme: Scheme, component: dict[str, Any]) -> Scheme:
    type_name = component.get("type")
    if type_name == "ByteLevel":
        return replace(scheme, byte_map=True)
    if type_name == "Metaspace":
        return replace(scheme, space=component.get("replacement") or _SPACE)
    if type_name == "Replace":
        pattern, content = component["pattern"].get("String"), component["content"]
        mark = content if pattern == " " else pattern if content == " " else None
        if mark == _SPACE:
            return replace(scheme, space=mark)
    if type_name == "WordPiece":
        return replace(scheme, prefix=component.get("prefix") or "")
    if type_name == "BPEDecoder":
        return replace(scheme, suffix=component.get("suffix") or "")
    return scheme


def plausible(tokens: Iterable[str | bytes | None]) -> list[Scheme]:
    """Spellings whose marks some tokens show, the most telling first; never empty."""
    words = [token for token in tokens if isinstance(token, str) and token]
    schemes = []
    suffix = "</w>" if any(word.endswith("</w>") for word in words) else ""
    inner = [word.removesuffix(suffix) for word in words]
    # A few added tokens may lie outside the byte map, and so do those of blanks alone.
    shown = [word for word in inner if not word.isspace()]
    mapped = sum(all(character in BYTE_OF for character in word) for word in shown)
    if mapped >= 0.9 * len(shown):
        schemes.append(Scheme(byte_map=True, suffix=suffix))
    fallback = any(_FALLBACK.fullmatch(word) for word in words)
    if fallback or any(_SPACE in word for word in words):
        schemes.append(Scheme(space=_SPACE, fallback=fallback))
    if any(word.startswith("##") for word in words):
        schemes.append(Scheme(prefix="##"))
    if suffix:
        schemes.append(Scheme(suffix=suffix))
    if any(word.endswith("@@") for word in words):
        schemes.append(Scheme(suffix="@@"))
    schemes.append(Scheme())
    if all(ord(character) < 256 for word in words for character in word):
        schemes.append(Scheme(latin=True))
    return schemes


def guess(tokens: Iterable[str | bytes | None]) -> Scheme:
    """Spelling of a whole vocabulary by its marks, where there is no text to try it on."""
    words = [token for token in tokens if isinstance(token, str) and token]
    if any(word.startswith(_SPACE) for word in words):
        return Scheme(space=_SPACE, fallback="<0x00>" in words)
    mapped = sum(all(character in BYTE_OF for character in word) for word in words)
    if any("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}" in word for word in words) and mapped >= 0.9 * len(
        words
    ):
        return Scheme(byte_map=True, suffix="</w>" if any(word.endswith("</w>") for word in words) else "")
    for mark, scheme in (
        ("##", Scheme(prefix="##")),
        ("</w>", Scheme(suffix="</w>")),
        ("@@", Scheme(suffix="@@")),
    ):
        if sum(mark in word and word != mark for word in words) > 0.05 * len(words):
            return scheme
    return Scheme()
