"""Chat templates: their application, and where in what they write the parts of messages are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

#: The first of the characters for private use, of which one that no message has marks the parts.
_PRIVATE = 0xE000
#: What a template ends a turn with, where it ends calls in another way than answers.
_LAST_TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])$")


@dataclass(frozen=True)
class Frame:
    """Marks in place of parts of messages.

    Attributes:
        sign: the character that marks begin and end with.
    """

    sign: str

    @staticmethod
    def of(messages: Any) -> Frame:
        """Marks that are in none of the messages."""
        text = json.dumps(messages, ensure_ascii=False, default=str)
        return Frame(next(sign for n in range(_PRIVATE, 0xF8FF) if (sign := chr(n)) not in text))

    def mark(self, n: int, kind: str) -> str:
        """The mark of a part of a message."""
        return f"{self.sign}{n}{kind}{self.sign}"

    def match(
        self, framed: str, given: str, parts: Mapping[tuple[int, str], str]
    ) -> dict[tuple[int, str], tuple[int, int]] | None:
        """Find the parts in what a template wrote.

        Args:
            framed: what it wrote with the marks.
            given: what it wrote without.
            parts: what the marks stand for; a template may strip it.

        Returns:
            Where in ``given`` the parts are that it shows; ``None`` where the two differ in more.
        """
        pieces = re.split(f"{self.sign}(\\d+)(\\w){self.sign}", framed)
        literals = pieces[::3]
        order = list(zip(map(int, pieces[1::3]), pieces[2::3], strict=True))
        if not given.startswith(literals[0]) or not parts.keys() >= set(order):
            return None
        # Each way to go on: how many marks are placed, where the rest of the text begins, and where they are.
        ways: list[tuple[int, int, tuple[Any, ...] | None]] = [(0, len(literals[0]), None)]
        while ways:
            count, at, placed = ways.pop()
            if count == len(order):
                if at == len(given):
                    return _first(order, placed)
                continue
            literal, last = literals[count + 1], count + 1 == len(order)
            for text in reversed(_trimmed(parts[order[count]])):
                end = at + len(text)
                fits = given[end:] == literal if last else given.startswith(literal, end)
                if fits and given.startswith(text, at):
                    ways.append((count + 1, end + len(literal), (placed, (at, end))))
        return None


def _first(
    order: list[tuple[int, str]], placed: tuple[Any, ...] | None
) -> dict[tuple[int, str], tuple[int, int]]:
    """Where each part is; names of calls may be told again with their results."""
    places: dict[tuple[int, str], tuple[int, int]] = {}
    for part in reversed(order):
        assert placed is not None
        placed, place = placed
        places[part] = place
    return places


def _trimmed(text: str) -> list[str]:
    """What a template may leave of a text, the longest first."""
    made = (text, text.lstrip("\n"), text.rstrip("\n"), text.strip("\n"), text.lstrip(), text.rstrip())
    return sorted({*made, text.strip()}, key=len, reverse=True)


def apply_template(
    tokenizer: Any, name: str, messages: list[dict[str, Any]], settings: Mapping[str, Any]
) -> str:
    """What a chat template writes.

    Raises:
        ValueError: there is none, or it fails; the message names the side.
    """
    if getattr(tokenizer, "chat_template", None) is None and "chat_template" not in settings:
        raise ValueError(
            f"{name}_tokenizer: expected a chat template, since examples hold messages, found none"
        )
    try:
        rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception as error:  # a template is a program, and raises what it likes
        raise ValueError(
            f"{name}_tokenizer: expected a chat template that reads these messages, got "
            f"{type(error).__name__}: {error}"
        ) from error
    return rendered


def answer_frame(tokenizer: Any, name: str, settings: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a template asks for an answer with, ends answers with, and calls; empty where it does not tell."""
    settings = {key: value for key, value in settings.items() if key != "tools"}
    key = json.dumps([getattr(tokenizer, "chat_template", None), settings], default=repr, sort_keys=True)
    return _answer_frame(key, _Probe(tokenizer, name, settings))


@dataclass(frozen=True)
class _Probe:
    tokenizer: Any
    name: str
    settings: Mapping[str, Any]

    def __hash__(self) -> int:
        return id(self.tokenizer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Probe) and other.tokenizer is self.tokenizer

    def written(self, messages: list[dict[str, Any]], **more: Any) -> str:
        try:
            return apply_template(self.tokenizer, self.name, messages, {**self.settings, **more})
        except ValueError:
            return ""


@lru_cache(maxsize=64)
def _answer_frame(_: str, probe: _Probe) -> tuple[str, str, str]:
    asked = [{"role": "user", "content": "a"}]
    whole = probe.written(asked, add_generation_prompt=True)
    before = probe.written(asked, add_generation_prompt=False)
    header = whole[len(before) :] if whole.startswith(before) and before else ""
    mark = chr(_PRIVATE)
    answered = probe.written([*asked, {"role": "assistant", "content": mark}])
    end = answered.rpartition(mark)[2].strip() if mark in answered else ""
    called = ""
    for arguments in ({"a": mark}, json.dumps({"a": mark}, ensure_ascii=False)):
        call = {"id": "callcall1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        text = probe.written([*asked, {"role": "assistant", "content": "", "tool_calls": [call]}])
        if mark in text:
            called = text.rpartition(mark)[2].strip()
            break
    if not (end and called.endswith(end)):
        tag = _LAST_TAG.search(called)
        return header, end, tag[0] if tag else ""
    return header, end, end


@lru_cache(maxsize=64)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None


def special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the special tokens of a tokenizer in a text; ``None``: it has none."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    added = added if isinstance(added, Mapping) else {}
    special = {str(token) for token in added.values() if getattr(token, "special", False)}
    return _pattern(tuple(sorted(special | set(map(str, tokenizer.all_special_tokens)))))
