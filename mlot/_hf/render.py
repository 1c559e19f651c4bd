"""Examples as strings: what each model reads, and where in it the text is that both are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlot._hf.conversations import OneSided, Rendered, conversation, of_messages

#: What an example may hold, as the messages say it.
FORMS = "text, prompt and completion, or messages"


def render(
    example: Mapping[str, Any],
    tokenizers: Sequence[Any],
    settings: Mapping[str, Any],
    names: Sequence[str] = ("student", "teacher"),
    one_sided: OneSided = "learn",
) -> list[Rendered]:
    """Render an example for each tokenizer.

    Args:
        example: ``text``; or ``prompt`` and ``completion``, both strings or both lists of messages; or
            ``messages``; with messages also ``tools`` and ``chat_template_kwargs``.
        tokenizers: of the models.
        settings: what chat templates are given besides.
        names: of the models, for messages.
        one_sided: what is done with reasoning and tool calls that not every template shows.

    Raises:
        TypeError, ValueError: an example that is none of these, or a chat template that changes what the
            assistant says in other ways than by stripping it.
    """
    if not isinstance(example, Mapping):
        raise TypeError(f"example: expected a mapping with {FORMS}, got {type(example).__name__}")
    if "messages" in example:
        messages = of_messages("messages", example["messages"])
        return conversation(messages, 0, tokenizers, _settings(example, settings), names, one_sided)
    if "prompt" in example and "completion" in example:
        prompt, completion = example["prompt"], example["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            span = (len(prompt), len(prompt) + len(completion))
            return [Rendered(prompt + completion, (span,), True)] * len(tokenizers)
        of_both = [("completion", completion), ("prompt", prompt)]
        if isinstance(completion, str):
            of_both.reverse()  # the one that is no string is to blame, or the only string
        read = {name: of_messages(name, value) for name, value in of_both}
        messages, before = [*read["prompt"], *read["completion"]], len(read["prompt"])
        return conversation(messages, before, tokenizers, _settings(example, settings), names, one_sided)
    if "text" in example:
        text = example["text"]
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        return [Rendered(text, ((0, len(text)),), True)] * len(tokenizers)
    raise ValueError(f"example: expected {FORMS}, got {', '.join(sorted(map(str, example))) or 'nothing'}")


def _settings(example: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What chat templates are given besides messages: for all examples, and what this one brings."""
    own = example.get("chat_template_kwargs")
    if own is not None and not isinstance(own, Mapping):
        raise TypeError(f"chat_template_kwargs: expected a mapping, got {type(own).__name__}")
    tools = example.get("tools")
    if isinstance(tools, str):  # a column of JSON, for tables cannot hold tools of several shapes
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"tools: expected a list of tools, or one in JSON: {error}") from error
    if tools is not None and not isinstance(tools, Sequence):
        raise TypeError(f"tools: expected a list of tools, got {type(tools).__name__}")
    return {**settings, **(own or {}), **({"tools": list(tools)} if tools else {})}
