"""Examples as strings: what each model reads, and where in it the text is that both are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: What an example may hold, as the messages say it.
FORMS = "text, prompt and completion, or messages"

#: Stands for a turn of the assistant while a chat template is read; a character for private use.
_MARK = "\ue000"


@dataclass(frozen=True)
class Rendered:
    """What one model reads of an example.

    Attributes:
        text: the characters.
        spans: where in them the targets are, in characters; the strings there are the same for both models.
        framed: whether a start and an end token are put around; chat templates bring their own.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    framed: bool


def render(
    example: Mapping[str, Any],
    tokenizers: Sequence[Any],
    settings: Mapping[str, Any],
    names: Sequence[str] = ("student", "teacher"),
) -> list[Rendered]:
    """Render an example for each tokenizer.

    Args:
        example: ``text``; or ``prompt`` and ``completion``, both strings or both lists of messages; or
            ``messages``.
        tokenizers: of the models.
        settings: what chat templates are given besides.
        names: of the models, for messages.

    Raises:
        TypeError, ValueError: an example that is none of these, or a chat template that changes what the
            assistant says in other ways than by stripping it.
    """
    if not isinstance(example, Mapping):
        raise TypeError(f"example: expected a mapping with {FORMS}, got {type(example).__name__}")
    if "messages" in example:
        return _conversation(_messages("messages", example["messages"]), 0, tokenizers, settings, names)
    if "prompt" in example and "completion" in example:
        prompt, completion = example["prompt"], example["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            span = (len(prompt), len(prompt) + len(completion))
            return [Rendered(prompt + completion, (span,), True)] * len(tokenizers)
        before = _messages("prompt", prompt)
        return _conversation(
            [*before, *_messages("completion", completion)], len(before), tokenizers, settings, names
        )
    if "text" in example:
        text = example["text"]
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        return [Rendered(text, ((0, len(text)),), True)] * len(tokenizers)
    raise ValueError(f"example: expected {FORMS}, got {', '.join(sorted(map(str, example))) or 'nothing'}")


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        wanted = "messages" if name == "messages" else "a string like its counterpart, or messages"
        raise TypeError(f"{name}: expected {wanted}, got {type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(f"{name}: expected messages with a role and a content, got {message!r}")
    return [dict(message) for message in value]


def _conversation(
    messages: list[dict[str, Any]],
    first: int,
    tokenizers: Sequence[Any],
    settings: Mapping[str, Any],
    names: Sequence[str],
) -> list[Rendered]:
    """Render messages, of which the assistant's from number ``first`` on are targets."""
    said = [n for n, message in enumerate(messages) if n >= first and message["role"] == "assistant"]
    for n in said:
        if not isinstance(messages[n]["content"], str):
            type_name = type(messages[n]["content"]).__name__
            raise TypeError(f"messages: expected the assistant to say a string, got {type_name}")
    marked = _with_contents(messages, {n: f"{_MARK}{n}{_MARK}" for n in said})
    sides = list(zip(tokenizers, names, strict=True))
    frames = [_template(tokenizer, name, marked, settings) for tokenizer, name in sides]
    # A template may strip what is said; then both models get what remains of it.
    for strip in (False, True):
        contents = {n: messages[n]["content"].strip() if strip else messages[n]["content"] for n in said}
        given = _with_contents(messages, contents)
        renderings = []
        for (tokenizer, name), frame in zip(sides, frames, strict=True):
            rendered = _fill(frame, contents)
            if rendered is None or rendered.text != _template(tokenizer, name, given, settings):
                break
            renderings.append(rendered)
        else:
            return renderings
    raise ValueError(
        "messages: expected chat templates that hold what the assistant says as it is, "
        f"got one of the {name}'s tokenizer that changes it"
    )


def _with_contents(messages: list[dict[str, Any]], contents: Mapping[int, str]) -> list[dict[str, Any]]:
    return [
        message | {"content": contents[n]} if n in contents else message for n, message in enumerate(messages)
    ]


def _template(tokenizer: Any, name: str, messages: list[dict[str, Any]], settings: Mapping[str, Any]) -> str:
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


def _fill(frame: str, contents: Mapping[int, str]) -> Rendered | None:
    """Put contents where their marks are; ``None`` if one is not there."""
    text, rest = "", frame
    spans = []
    for n, content in contents.items():
        before, mark, rest = rest.partition(f"{_MARK}{n}{_MARK}")
        if not mark:
            return None
        text += before
        spans.append((len(text), len(text) + len(content)))
        text += content
    return Rendered(text + rest, tuple(spans), framed=False)
