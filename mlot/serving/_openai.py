"""Responses of OpenAI-style servers, which name tokens by text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlot._typing import Tail
from mlot.serving._entries import Served, Settings, SkipCounts
from mlot.serving._lookup import Lookup
from mlot.serving._texts import (
    Row,
    described_row,
    finder_of,
    keyed_row,
    mark_inside,
    sequence_lengths,
    sequence_of,
)
from mlot.serving._values import attribute, is_list, list_of


def from_openai(
    responses: Any,
    vocabulary: Any,
    *,
    prompt_lengths: int | Sequence[int],
    k: int | None = None,
    vocab_size: int | None = None,
    tail: Tail = "fitted",
    temperature: float = 1.0,
    length: int | None = None,
    padding_side: str = "right",
    backend: str | None = None,
) -> Served:
    r"""Read ``logprobs`` of chat completions (``content``) or of the older completions (``top_logprobs``).

    A token is named by its id where there is one (``id`` of llama.cpp and KoboldCpp, ``token_id`` of
    Fireworks, a text ``token_id:17``, which vLLM writes if asked for ``return_tokens_as_token_ids``), else by
    its bytes or its text, which are looked up in ``vocabulary``. A text may be of several tokens: servers
    write pieces of characters as U+FFFD, some leave leading spaces out or write the vocabulary's own
    spelling. Which of these a server does is told by all texts of a response together; what is still
    ambiguous is not guessed. A token that has no id, or several, ends the list of its position, since a token
    that is absent must be no likelier than one that is kept; `Served` counts such positions.

    The token that stands at a position, where it is the least likely of its list, is left out: some servers
    list it in place of a likelier one.

    Args:
        responses: one response or a list of them, each an object of the client or the parsed JSON; each of
            its ``choices`` is a sequence. Streamed chunks go through `merge_chunks` first.
        vocabulary: the teacher's tokenizer, a mapping of text or bytes to ids, or ``None`` if all tokens are
            given with ids. What was made of it is kept for the next call.
        prompt_lengths: tokens that come before the first one that a choice describes, one number for all or
            one for each choice: those of the prompt (``usage.prompt_tokens``), or 0 for completions with
            ``echo``.
        k: how many tokens were asked for; less likely ones are left out. The older completions add the token
            that was drawn, so give it there.
        vocab_size: width of the teacher's vocabulary; see `mlot.TopKLogprobs`.
        tail: what to suppose of the missing mass; see `mlot.TopKLogprobs`.
        temperature: temperature that the log-probabilities were taken at.
        length: positions of the source, at least the tokens of the longest sequence; ``None``: just those.
        padding_side: ``"right"`` or ``"left"``: where shorter sequences are padded.
        backend: name of the backend whose arrays are wanted; ``None`` means NumPy's.

    Returns:
        `Served`.

    Raises:
        TypeError, ValueError: a response has not the form described, or an argument is out of range; a server
            ignored ``echo``, so that only the answer is described where ``prompt_lengths`` is 0.

    >>> top = [{"token": "a", "bytes": [97], "logprob": -0.2}, {"token": "b", "bytes": [98], "logprob": -2.0}]
    >>> choice = {"logprobs": {"content": [{"token": "a", "logprob": -0.2, "top_logprobs": top}]}}
    >>> served = from_openai({"choices": [choice]}, {"a": 0, "b": 1}, prompt_lengths=2)
    >>> served.source.ids
    array([[[-1, -1],
            [ 0,  1],
            [-1, -1]]])
    """
    settings = Settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    lookup, skipped = Lookup.of(vocabulary), SkipCounts()
    each = list(responses) if is_list(responses) else [responses]
    choices = [
        list_of(
            attribute(response, "choices"),
            f"responses[{n}]: expected a completion with a list of choices",
        )
        for n, response in enumerate(each)
    ]
    lengths = iter(sequence_lengths(prompt_lengths, sum(map(len, choices))))
    sequences = []
    for n, (response, given) in enumerate(zip(each, choices, strict=True)):
        where = f"responses[{n}]"
        described = [_rows(choice, f"{where}.choices[{c}]") for c, choice in enumerate(given)]
        before = [next(lengths) for _ in given]
        _check_echo(response, described, before, where)
        find = finder_of(described, lookup)
        sequences += [
            sequence_of(rows, count, find, lookup, k, skipped)
            for rows, count in zip(described, before, strict=True)
        ]
    return settings.served(sequences, skipped)


def _rows(choice: Any, where: str) -> list[Row | None]:
    """What is listed for each token of a choice."""
    if attribute(choice, "delta") is not None:
        raise ValueError(f"{where}: expected a whole response, got a streamed chunk; see merge_chunks")
    logprobs = attribute(choice, "logprobs")
    content = attribute(logprobs, "content")
    rows: list[Row | None]
    if is_list(content):
        rows = [
            described_row(each, ("top_logprobs",), f"{where}.logprobs.content[{t}]")
            for t, each in enumerate(content)
        ]
    else:
        what = f"{where}: expected logprobs with a list content (chat) or top_logprobs (completions)"
        listed = list_of(attribute(logprobs, "top_logprobs"), what)
        tokens = attribute(logprobs, "tokens")
        if not is_list(tokens) or len(tokens) != len(listed):
            tokens = [None] * len(listed)
        rows = [
            keyed_row(row, token, f"{where}.logprobs.top_logprobs[{t}]")
            for t, (row, token) in enumerate(zip(listed, tokens, strict=True))
        ]
    mark_inside(rows)
    return rows


def _check_echo(
    response: Any, described: Sequence[Sequence[Row | None]], before: Sequence[int], where: str
) -> None:
    """Require that a response describes its prompt where, and only where, that is what the caller says."""
    for c, (rows, count) in enumerate(zip(described, before, strict=True)):
        if count and rows and rows[0] is None:
            raise ValueError(
                f"prompt_lengths: expected 0 for {where}.choices[{c}], which describes its prompt from the "
                f"first token on (echo), got {count}"
            )
    usage = attribute(response, "usage")
    prompt, answer = (attribute(usage, f"{name}_tokens") for name in ("prompt", "completion"))
    if type(prompt) is not int or any(before) or any(rows and rows[0] is None for rows in described):
        return
    tokens = sum(map(len, described))
    if tokens < prompt or (type(answer) is int and tokens <= answer and prompt > 0):
        raise ValueError(
            f"{where}: expected the tokens of the prompt, too, since prompt_lengths is 0 (echo), got "
            f"{tokens} described tokens where usage tells {prompt} of the prompt: the server ignored echo; "
            "give prompt_lengths=usage.prompt_tokens, or ask a server that describes prompts"
        )
