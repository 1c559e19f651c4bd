"""Streamed responses: chunks put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlot.serving._values import attribute, is_list, list_of, shown

#: Lists that chunks continue: those of a choice's log-probabilities, and those of a response.
_OF_LOGPROBS = ("content", "tokens", "token_logprobs", "top_logprobs", "text_offset")
_OF_RESPONSE = ("completion_probabilities", "logprobs")
#: What the last chunk that has it tells.
_LAST = ("usage", "tokens_evaluated", "prompt_eval_count", "prompt_logprobs")


def merge_chunks(chunks: Iterable[Any]) -> dict[str, Any]:
    """The response that one stream of chunks makes, for `from_openai`, `from_llama_cpp` or `from_ollama`.

    Args:
        chunks: parsed chunks of one response in order, of OpenAI-style servers (chat or completions, with one
            choice or several), of llama.cpp's ``/completion``, or of Ollama. Those that carry no
            log-probabilities are passed over.

    Returns:
        The log-probabilities of all chunks, and what they tell of the prompt's tokens.

    Raises:
        TypeError, ValueError: ``chunks`` is no list of chunks.

    >>> chunks = [
    ...     {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": [each]}}]} for each in ("a", "b")
    ... ]
    >>> merge_chunks(chunks)
    {'choices': [{'index': 0, 'logprobs': {'content': ['a', 'b']}}]}
    """
    if isinstance(chunks, str | bytes | dict) or not isinstance(chunks, Iterable):
        raise TypeError(f"chunks: expected a list of chunks, got {type(chunks).__name__}")
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for n, chunk in enumerate(chunks):
        where = f"chunks[{n}]"
        if chunk is None or isinstance(chunk, str | bytes | int | float) or is_list(chunk):
            raise TypeError(f"{where}: expected a parsed chunk, got {shown(chunk)}")
        given = attribute(chunk, "choices")
        if given is not None:
            for choice in list_of(given, f"{where}: expected a list of choices"):
                _add_choice(choices, choice, where)
        for name in _OF_RESPONSE:
            _extend(whole, name, attribute(chunk, name), where)
        whole |= {name: value for name in _LAST if (value := attribute(chunk, name)) is not None}
    if choices:
        whole["choices"] = [choices[index] for index in sorted(choices)]
    return whole


def _add_choice(choices: dict[int, dict[str, Any]], choice: Any, where: str) -> None:
    index = attribute(choice, "index")
    index = 0 if index is None else index
    if type(index) is not int:
        raise ValueError(f"{where}: expected the index of a choice, got {shown(index)}")
    made = choices.setdefault(index, {"index": index})
    logprobs = attribute(choice, "logprobs")
    if logprobs is None:
        return
    for name in _OF_LOGPROBS:
        _extend(made.setdefault("logprobs", {}), name, attribute(logprobs, name), f"{where}.logprobs")


def _extend(whole: dict[str, Any], name: str, value: Any, where: str) -> None:
    if value is not None:
        whole.setdefault(name, []).extend(list_of(value, f"{where}: expected a list {name}"))
