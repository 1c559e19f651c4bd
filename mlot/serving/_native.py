"""Responses of the own endpoints of llama.cpp's server and of Ollama, which write each token's own piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlot._typing import Tail
from mlot.serving._entries import Served, Settings, SkipCounts
from mlot.serving._lookup import Lookup
from mlot.serving._texts import described_row, mark_inside, sequence_lengths, sequence_of
from mlot.serving._values import attribute, is_list, list_of, token_count


def from_llama_cpp(
    responses: Any,
    vocabulary: Any = None,
    *,
    prompt_lengths: int | Sequence[int] | None = None,
    k: int | None = None,
    vocab_size: int | None = None,
    tail: Tail = "fitted",
    temperature: float = 1.0,
    length: int | None = None,
    padding_side: str = "right",
    backend: str | None = None,
) -> Served:
    """Read ``completion_probabilities`` of ``/completion`` of llama.cpp's server, asked for ``n_probs``.

    Tokens have ids, and with ``top_logprobs`` log-probabilities before sampling. ``probs`` of older servers
    and ``top_probs`` (``post_sampling_probs``) are probabilities after sampling, those of the model only
    where nothing changes them: temperature 1, and no sampler that leaves tokens out. Its OpenAI-style
    endpoints are for `from_openai`.

    Args:
        responses: one response or a list of them, each the parsed JSON; streamed ones go through
            `merge_chunks` first.
        vocabulary: the teacher's tokenizer or a mapping of text or bytes to ids, for older servers, which
            give no ids.
        prompt_lengths: tokens of the prompts, one number for all or one for each response; ``None``: the
            responses' ``tokens_evaluated``.
        k: how many tokens were asked for; less likely ones are left out.
        vocab_size: width of the teacher's vocabulary; see `mlot.TopKLogprobs`.
        tail: what to suppose of the missing mass; see `mlot.TopKLogprobs`.
        temperature: temperature that the log-probabilities were taken at.
        length: positions of the source, at least the tokens of the longest sequence; ``None``: just those.
        padding_side: ``"right"`` or ``"left"``: where shorter sequences are padded.
        backend: name of the backend whose arrays are wanted; ``None`` means NumPy's.

    Returns:
        `Served`.

    Raises:
        TypeError, ValueError: a response has not the form described, or an argument is out of range.

    >>> top = [{"id": 5, "token": "a", "logprob": -0.2}, {"id": 7, "token": "b", "logprob": -2.0}]
    >>> described = [{"id": 5, "token": "a", "logprob": -0.2, "top_logprobs": top}]
    >>> served = from_llama_cpp({"completion_probabilities": described, "tokens_evaluated": 1})
    >>> served.source.ids
    array([[[ 5,  7],
            [-1, -1]]])
    """
    settings = Settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    return _read(
        responses,
        Lookup.of(vocabulary),
        prompt_lengths,
        settings,
        listed="completion_probabilities",
        names=("top_logprobs", "top_probs", "probs"),
        prompt="tokens_evaluated",
    )


def from_ollama(
    responses: Any,
    vocabulary: Any,
    *,
    prompt_lengths: int | Sequence[int] | None = None,
    k: int | None = None,
    vocab_size: int | None = None,
    tail: Tail = "fitted",
    temperature: float = 1.0,
    length: int | None = None,
    padding_side: str = "right",
    backend: str | None = None,
) -> Served:
    """Read ``logprobs`` of ``/api/generate`` and ``/api/chat`` of Ollama, asked for ``top_logprobs``.

    Ollama gives no ids, and writes pieces of characters as U+FFFD: positions that list one end there.

    Args:
        responses: one response or a list of them, each the parsed JSON; streamed ones go through
            `merge_chunks` first.
        vocabulary: the teacher's tokenizer, or a mapping of text or bytes to ids.
        prompt_lengths: tokens of the prompts, one number for all or one for each response; ``None``: the
            responses' ``prompt_eval_count``.
        k: how many tokens were asked for; less likely ones are left out.
        vocab_size: width of the teacher's vocabulary; see `mlot.TopKLogprobs`.
        tail: what to suppose of the missing mass; see `mlot.TopKLogprobs`.
        temperature: temperature that the log-probabilities were taken at.
        length: positions of the source, at least the tokens of the longest sequence; ``None``: just those.
        padding_side: ``"right"`` or ``"left"``: where shorter sequences are padded.
        backend: name of the backend whose arrays are wanted; ``None`` means NumPy's.

    Returns:
        `Served`.

    Raises:
        TypeError, ValueError: a response has not the form described, or an argument is out of range.

    >>> top = [{"token": "a", "logprob": -0.2}, {"token": " b", "logprob": -2.0}]
    >>> described = [{"token": "a", "logprob": -0.2, "top_logprobs": top}]
    >>> response = {"response": "a", "logprobs": described, "prompt_eval_count": 1}
    >>> from_ollama(response, {"a": 0, " b": 1}).source.ids
    array([[[ 0,  1],
            [-1, -1]]])
    """
    settings = Settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    return _read(
        responses,
        Lookup.of(vocabulary),
        prompt_lengths,
        settings,
        listed="logprobs",
        names=("top_logprobs",),
        prompt="prompt_eval_count",
    )


def _read(
    responses: Any,
    lookup: Lookup,
    prompt_lengths: Any,
    settings: Settings,
    *,
    listed: str,
    names: Sequence[str],
    prompt: str,
) -> Served:
    """Read responses with a list of what describes each token, and the number of the prompt's."""
    each = list(responses) if is_list(responses) else [responses]
    if prompt_lengths is None:
        lengths = [token_count(attribute(x, prompt), f"responses[{n}].{prompt}") for n, x in enumerate(each)]
    else:
        lengths = sequence_lengths(prompt_lengths, len(each))
    skipped, sequences = SkipCounts(), []
    find = lookup.finder(pieces=True)
    for n, (response, before) in enumerate(zip(each, lengths, strict=True)):
        where = f"responses[{n}]"
        described = list_of(attribute(response, listed), f"{where}: expected a list {listed}")
        rows = [described_row(x, names, f"{where}.{listed}[{t}]") for t, x in enumerate(described)]
        mark_inside(rows)
        sequences.append(sequence_of(rows, before, find, lookup, settings.k, skipped))
    return settings.served(sequences, skipped)
