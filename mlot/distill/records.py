"""Records of a JSONL file: texts, prompts with completions, or conversations, one a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlot._text import line_of, read_json_lines
from mlot.distill.errors import DistillError

_FORMS = "text, prompt and completion, or messages"


@dataclass(frozen=True)
class Record:
    """One line of a JSONL file.

    Attributes:
        text: what there is to learn: the text, the completion, or what the assistant says.
        content: the line without what is passed over, in one spelling; equal records have equal ones.
        line: its number in the file, from 1.
        example: the same as a mapping, as `mlot.training.DistillationCollator` takes it.
    """

    text: str
    content: str
    line: int = field(compare=False)
    example: Mapping[str, Any] = field(compare=False, repr=False)

    @property
    def plain(self) -> bool:
        """Whether it is a text and nothing else, which may be cut like any other."""
        return "text" in self.example

    def __len__(self) -> int:
        return len(self.content)


def read_records(path: str | Path) -> list[Record]:
    """Read a JSONL file; empty lines are passed over.

    Raises:
        DistillError: there is no such file, a line is no record (the message says which and why), or there
            is none.
    """
    path = Path(path)
    try:
        entries = read_json_lines(path)
    except (OSError, ValueError) as error:
        raise DistillError(str(error)) from error
    records = []
    for number, value in entries:
        try:
            found = _record(value, number)
        except (TypeError, ValueError) as error:
            raise DistillError(f"{line_of(path, number)}: {error}") from error
        if found is not None:
            records.append(found)
    if not records:
        raise DistillError(f"--text: expected some text to learn, but {str(path)!r} has none")
    return records


def _record(value: Any, line: int) -> Record | None:
    """The record of a line; ``None`` if there is nothing to learn in it."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object with {_FORMS}, got {_kind(value)}")
    # The same order of precedence as that of the collator.
    if "messages" in value:
        example: dict[str, Any] = {"messages": _messages("messages", value["messages"])}
        learnt = _said(example["messages"])
    elif "prompt" in value and "completion" in value:
        example = {name: value[name] for name in ("prompt", "completion")}
        if all(isinstance(part, str) for part in example.values()):
            learnt = [example["completion"]]
        else:
            example = {name: _messages(name, part) for name, part in example.items()}
            learnt = _said(example["completion"])
    elif "text" in value:
        example = {"text": value["text"]}
        if not isinstance(value["text"], str):
            raise TypeError(f"text: expected a string, got {_kind(value['text'])}")
        learnt = [value["text"]]
    else:
        raise ValueError(
            f"expected an object with {_FORMS}, got one with {', '.join(sorted(value)) or 'nothing'}"
        )
    content = json.dumps(example, ensure_ascii=False, sort_keys=True)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"expected valid Unicode, got a lone surrogate: {error}") from error
    text = "\n".join(learnt)
    return Record(text, content, line, example) if text.strip() else None


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        wanted = "a list" if name == "messages" else "a string like its counterpart, or a list of messages"
        raise TypeError(f"{name}: expected {wanted}, got {_kind(value)}")
    for message in value:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and (message["role"] != "assistant" or isinstance(message.get("content"), str))
            and "content" in message
        ):
            raise ValueError(
                f"{name}: expected messages with a role and a content, got {json.dumps(message)[:80]}"
            )
    return value


def _said(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
