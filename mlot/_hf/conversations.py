"""Conversations as strings: each model's chat template, and what in it the models are asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from mlot._hf.templates import Frame, answer_frame, apply_template, special_pattern

OneSided = Literal["learn", "leave_out", "refuse"]

#: Names that templates have for what was thought before an answer.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_NAMES = {"r": "reasoning", "c": "content", "t": "tool calls"}
_STRIPPED = "bytes of white space around answers that a template strips"
#: A part of a message that is learnt: number of the message, and a key of ``_NAMES``.
_Part = tuple[int, str]


@dataclass(frozen=True)
class Rendered:
    """What one model reads of an example.

    Attributes:
        text: the characters.
        spans: where in them the targets are, in characters; the strings there are the same for both models.
        framed: whether a start and an end token are put around; chat templates bring their own.
        own: what is learnt besides, as this model's chat template alone writes it.
        spaced: numbers of the spans whose first token may take in the space before.
        notes: what is to be told of the example, counted.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    framed: bool
    own: tuple[tuple[int, int], ...] = ()
    spaced: frozenset[int] = frozenset()
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shown:
    """A conversation in one chat template, and where in its text the parts are."""

    text: str
    places: Mapping[_Part, tuple[int, int]]

    def part(self, part: _Part) -> str:
        start, end = self.places[part]
        return self.text[start:end]


@dataclass
class _Body:
    """What a template writes between an assistant's header and its end of turn."""

    start: int
    end: int
    places: dict[_Part, tuple[int, int]]
    headed: bool

    def gaps(self, common: set[_Part]) -> list[tuple[int, int]]:
        """What is before, between and after the parts that are common, in order."""
        cuts = sorted(place for part, place in self.places.items() if part in common)
        return list(zip([self.start, *(b for _, b in cuts)], [*(a for a, _ in cuts), self.end], strict=True))


def of_messages(name: str, value: Any) -> list[dict[str, Any]]:
    """Messages with contents that are strings.

    Raises:
        TypeError, ValueError: it is no list of messages, or what is said is no text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        wanted = "messages" if name == "messages" else "a string like its counterpart, or messages"
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    made = []
    for message in value:
        # An answer may be calls and nothing else.
        called = isinstance(message, Mapping) and message.get("tool_calls")
        if not isinstance(message, Mapping) or "role" not in message or not ("content" in message or called):
            raise ValueError(f"{name}: expected messages with a role and a content, got {message!r}")
        made.append({**message, "content": _content(name, message)})
    return made


def _content(name: str, message: Mapping[str, Any]) -> Any:
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
            for part in content
        ]
        if all(isinstance(each, str) for each in texts):
            return "".join(map(str, texts))
        if message["role"] == "assistant":
            raise TypeError(
                f"{name}: expected the assistant to say a string, got {type(content).__name__} "
                "with more than parts of text"
            )
    if message["role"] == "assistant" and not isinstance(content, str):
        if content is None and (message.get("tool_calls") or _reasoning(message)):
            return ""
        raise TypeError(f"{name}: expected the assistant to say a string, got {type(content).__name__}")
    return content


def _reasoning(message: Mapping[str, Any]) -> str:
    return next((message[name] for name in _REASONING if isinstance(message.get(name), str)), "")


def conversation(
    messages: list[dict[str, Any]],
    first: int,
    tokenizers: Sequence[Any],
    settings: Mapping[str, Any],
    names: Sequence[str],
    one_sided: OneSided,
) -> list[Rendered]:
    """Render messages, of which the assistant's from number ``first`` on are targets.

    Raises:
        ValueError: a template cannot be applied or changes what is said, nobody answers, or ``one_sided`` is
            ``"refuse"`` and there is something that not every template shows.
    """
    said = [n for n, message in enumerate(messages) if n >= first and message["role"] == "assistant"]
    if not said:
        roles = ", ".join(dict.fromkeys(repr(message["role"]) for message in messages[first:])) or "none"
        raise ValueError(f"messages: expected one whose role is 'assistant', got roles {roles}")
    parts, embedded = _parts(messages, said)
    sides = list(zip(tokenizers, names, strict=True))
    notes: Counter[str] = Counter()
    # A template may strip what is said; then all models get what remains of it.
    while True:
        shown = [_shown(messages, parts, embedded, *side, settings) for side in sides]
        shorter = {}
        for part, text in parts.items():
            left = min((each.part(part) for each in shown if part in each.places), key=len, default=text)
            if left != text:
                shorter[part] = left
                notes[_STRIPPED] += len(text.encode()) - len(left.encode())
        if not shorter:
            break
        parts |= shorter
    lost = _one_sided(messages, parts, shown, names, one_sided, notes)
    bodies = [_bodies(each, *side, settings) for each, side in zip(shown, sides, strict=True)]
    learnt = [_Learnt(each.text) for each in shown]
    for n in said:
        there = [each.get(n) for each in bodies]
        common = {part for part in parts if part[0] == n and part[1] != "t"} - lost
        common.intersection_update(*(each.places if each else () for each in there))
        gaps = [[] if each is None else each.gaps(common) for each in there]
        strings = [[each.text[low:high] for low, high in row] for each, row in zip(shown, gaps, strict=True)]
        same = [len(set(row)) == 1 for row in zip(*strings, strict=True)] if all(gaps) else []
        hidden = lost if one_sided == "leave_out" else set()
        for body, one, row in zip(there, learnt, gaps, strict=True):
            if body is not None:
                left_out = [body.places[part] for part in hidden if part in body.places]
                one.add(body, row, same or [False] * len(row), left_out)
    for one, name in zip(learnt, names, strict=True):
        if one.own:
            size = sum(len(one.text[low:high].encode()) for low, high in one.own)
            notes[f"bytes that the {name} learns as its template alone writes them"] += size
    return [
        Rendered(each.text, tuple(each.spans), False, tuple(each.own), frozenset(each.spaced), dict(told))
        for each, told in zip(learnt, [notes, *([{}] * len(learnt))], strict=False)
    ]


@dataclass
class _Learnt:
    """What of a text is learnt, as it is collected."""

    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    own: list[tuple[int, int]] = field(default_factory=list)
    spaced: set[int] = field(default_factory=set)

    def add(
        self,
        body: _Body,
        gaps: list[tuple[int, int]],
        same: list[bool],
        left_out: list[tuple[int, int]],
    ) -> None:
        joined = False
        space = self.text[body.start - 1 : body.start] == " " and not body.headed
        for n, ((low, high), common) in enumerate(zip(gaps, same, strict=True)):
            if n:
                part = (gaps[n - 1][1], low)
                self._span(part, joined)
                if space:
                    self.spaced.add(len(self.spans) - 1)
                joined, space = True, False
            if common and high > low:
                self._span((low, high), joined)
                joined = True
            elif high > low:
                # A space before an answer is a part of its first token.
                space = self.text[low:high] == " " and n + 1 < len(gaps)
                joined = False
                if not space and not any(low <= start and end <= high for start, end in left_out):
                    self.own.append((low, high))

    def _span(self, place: tuple[int, int], joined: bool) -> None:
        if joined:
            place = (self.spans.pop()[0], place[1])
        self.spans.append(place)


def _parts(messages: list[dict[str, Any]], said: list[int]) -> tuple[dict[_Part, str], set[int]]:
    """What is said, by part, and the messages whose content holds the thinking, too."""
    parts: dict[_Part, str] = {}
    embedded = set()
    for n in said:
        content, reasoning = messages[n]["content"], _reasoning(messages[n])
        thought = None if reasoning else _THOUGHT.match(content)
        if thought:
            embedded.add(n)
            reasoning, content = thought[1], content[thought.end() :]
        calls = bool(messages[n].get("tool_calls"))
        if reasoning.strip():
            parts[n, "r"] = reasoning
        if calls:
            parts[n, "t"] = ""
        if content.strip() or not (reasoning.strip() or calls):
            parts[n, "c"] = content
    return parts, embedded


def _shown(
    messages: list[dict[str, Any]],
    parts: Mapping[_Part, str],
    embedded: set[int],
    tokenizer: Any,
    name: str,
    settings: Mapping[str, Any],
) -> _Shown:
    """A conversation in one template, in the first of its spellings that the template shows as it is."""
    forms = [(raw, parsed) for parsed in (True, False) for raw in (True, False)]
    if not any(kind == "t" for _, kind in parts):
        forms = forms[:2]
    if not embedded:
        forms = forms[1::2]
    problem: ValueError | None = None
    for raw, parsed in forms:
        inside = embedded if raw else set()
        try:
            given = apply_template(tokenizer, name, _spelled(messages, parts, inside, parsed), settings)
        except ValueError as error:
            problem = problem or error
            continue
        frame = Frame.of(messages)
        marked = {part: frame.mark(*part) + (text if part[1] == "t" else "") for part, text in parts.items()}
        framed = apply_template(tokenizer, name, _spelled(messages, marked, inside, parsed), settings)
        places = frame.match(framed, given, parts)
        if places is not None and all(part in places for part in parts if _must(part, parts)):
            return _Shown(given, places)
    raise problem or ValueError(
        "messages: expected chat templates that hold what the assistant says as it is, "
        f"got one of the {name}'s tokenizer that changes it"
    )


def _must(part: _Part, parts: Mapping[_Part, str]) -> bool:
    """Whether it is an answer that every template has to show; beside calls some leave it out."""
    return part[1] == "c" and (part[0], "t") not in parts


def _spelled(
    messages: list[dict[str, Any]], parts: Mapping[_Part, str], embedded: set[int], parsed: bool
) -> list[dict[str, Any]]:
    """Messages with these parts; calls begin with what is there for them."""
    numbers = {n for n, _ in parts}
    made = []
    for n, message in enumerate(messages):
        message = dict(message)
        if n in numbers:
            reasoning, content = parts.get((n, "r"), ""), parts.get((n, "c"), "")
            if n in embedded:
                content = f"<think>{reasoning}</think>{content}"
            elif reasoning:
                message |= dict.fromkeys(_REASONING, reasoning)
            message["content"] = content
        if message.get("tool_calls"):
            message["tool_calls"] = [
                _call(call, parts.get((n, "t"), "") if first else "", parsed)
                for first, call in zip(
                    [True, *[False] * (len(message["tool_calls"]) - 1)], message["tool_calls"], strict=True
                )
            ]
        made.append(message)
    return made


def _call(call: Any, mark: str, parsed: bool) -> Any:
    """A call with a mark before its name, and its arguments as a mapping or in JSON."""
    if not isinstance(call, Mapping):
        raise TypeError(f"tool_calls: expected mappings, got {type(call).__name__}")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(f"tool_calls: expected calls of a function with a name, got {call!r}")
    given = inner.get("arguments", {})
    if parsed and isinstance(given, str):
        with suppress(ValueError):  # what is no JSON is shown as it is
            given = json.loads(given)
    elif not parsed and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    made = {**inner, "name": mark + inner["name"], "arguments": given}
    return {**call, "function": made} if "function" in call else made


def _one_sided(
    messages: list[dict[str, Any]],
    parts: Mapping[_Part, str],
    shown: list[_Shown],
    names: Sequence[str],
    one_sided: OneSided,
    notes: Counter[str],
) -> set[_Part]:
    """The parts that not every template shows, which are counted."""
    lost = set()
    for part in parts:
        who = [name for name, each in zip(names, shown, strict=True) if part in each.places]
        if len(who) == len(names):
            continue
        lost.add(part)
        kind = _NAMES[part[1]]
        alone = f"{kind} that only the {' and '.join(who)}'s template shows"
        notes[alone if who else f"{kind} that no template shows"] += 1
        if one_sided == "refuse":
            raise ValueError(
                f"messages: expected templates that show the same of message {part[0]}, got {kind} that "
                f"{f'only the {who[0]}' if who else 'none'} shows; one_sided='learn' or 'leave_out' takes it"
            )
    return lost


def _bodies(shown: _Shown, tokenizer: Any, name: str, settings: Mapping[str, Any]) -> dict[int, _Body]:
    """By message, what stands between an assistant's header and its end of turn."""
    header, *ends_of_turn = answer_frame(tokenizer, name, settings)
    bodies: dict[int, _Body] = {}
    text, reached = shown.text, 0
    in_order = sorted(shown.places.items(), key=lambda item: item[1])
    for (n, _), (start, end) in in_order:
        if n in bodies:
            bodies[n].end = end
            continue
        at = text.rfind(header, reached, start) if header else -1
        headed = at >= 0
        opening = at + len(header) if headed else start
        bodies[n] = _Body(opening, end, {}, headed)
        reached = end
    for part, place in shown.places.items():
        bodies[part[0]].places[part] = place
    order = list(bodies.values())
    for body, following in zip(order, [*order[1:], None], strict=True):
        if all(kind != "t" for _, kind in body.places):
            continue
        special = special_pattern(tokenizer)
        if not body.headed and special is not None:
            before = [each.start() for each in special.finditer(text, 0, body.start)]
            if before and next(kind for (_, kind), place in in_order if place[0] == body.start) == "t":
                body.start = before[-1]
        limit = len(text) if following is None else following.start
        at = next(
            (at for end in reversed(ends_of_turn) if end and (at := text.find(end, body.end, limit)) >= 0), -1
        )
        if at < 0 and special is not None:
            match = special.search(text, body.end, limit)
            at = match.start() if match else -1
        if at >= 0:
            body.end += len(text[body.end : at].rstrip())
    return bodies
