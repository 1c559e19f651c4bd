"""Teachers behind an inference server: responses of vLLM, SGLang and OpenAI-style servers become sources.

A server describes a token by the distribution that it was drawn from; that distribution was predicted at the
position *before* the token. The sources made here follow the convention of this library, in which position t
predicts token t + 1: the entries that a server lists for token t + 1 stand at position t, nothing stands at
the last position, and what is listed for the very first token, if anything, is left out. So a source has one
position for each token, and labels and pairs that belong to the tokens fit it as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlot import _checks
from mlot._typing import Tail
from mlot.serving._entries import (
    Described,
    Entry,
    Lookup,
    SkipCounts,
    assemble,
    attribute,
    is_list,
    likeliest,
    number,
    resolved,
    token_id,
)
from mlot.topk import TopKLogprobs

__all__ = ["Served", "from_openai", "from_sglang", "from_vllm"]


@dataclass(frozen=True, eq=False)
class Served:
    """What was read from responses.

    Attributes:
        source: the predictions, ``(B, T, K)``; position t predicts token t + 1.
        beyond: entries left out because they are not among the most likely of their position (servers add the
            token that stands there), or come after one that could not be resolved.
        unknown: positions whose entries end at a token that the vocabulary lacks.
        ambiguous: positions whose entries end at a token that several ids share.
    """

    source: TopKLogprobs
    beyond: int = 0
    unknown: int = 0
    ambiguous: int = 0


def from_vllm(
    responses: Any,
    *,
    k: int | None = None,
    generated: bool = False,
    vocab_size: int | None = None,
    tail: Tail = "fitted",
    temperature: float = 1.0,
    length: int | None = None,
    padding_side: str = "right",
    backend: str | None = None,
) -> Served:
    """Read ``prompt_logprobs`` of vLLM, offline or from its OpenAI-compatible server.

    For each token of a prompt there is ``None`` or a mapping of ids to log-probabilities with ranks, and the
    token itself is in it even if it is not among the most likely. Such an addition is left out by its rank.

    Args:
        responses: one response or a list of them, each a ``RequestOutput``, the parsed JSON of the server (of
            whose ``choices`` each is a sequence), or the list of one prompt's ``prompt_logprobs``.
        k: how many tokens were asked for; less likely ones are left out. ``None`` goes by the ranks.
        generated: append the tokens generated after the prompt (``outputs[0].logprobs``), which only a
            ``RequestOutput`` has with ids.
        vocab_size: width of the teacher's vocabulary; see `mlot.TopKLogprobs`.
        tail: what to suppose of the missing mass; see `mlot.TopKLogprobs`.
        temperature: temperature that the log-probabilities were taken at (vLLM's are at 1 by default,
            whatever the sampling temperature).
        length: positions of the source, at least the tokens of the longest sequence; ``None``: just those.
        padding_side: ``"right"`` or ``"left"``: where shorter sequences are padded.
        backend: name of the backend whose arrays are wanted; ``None`` means NumPy's.

    Returns:
        `Served`.

    Raises:
        TypeError, ValueError: a response has not the form described, or an argument is out of range.

    >>> prompt = [None, {5: {"logprob": -0.1, "rank": 1}, 7: {"logprob": -3.0, "rank": 2}}]
    >>> served = from_vllm(prompt)
    >>> served.source.ids
    array([[[ 5,  7],
            [-1, -1]]])
    """
    settings = _settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    _checks.flag("generated", generated)
    skipped, sequences = SkipCounts(), []
    for where, rows in _vllm_rows(responses, generated):
        sequences.append([_vllm_entries(row, f"{where}[{t}]", k, skipped) for t, row in enumerate(rows)])
    return _served(sequences, settings, skipped)


def from_sglang(
    responses: Any,
    *,
    start: int = 0,
    generated: bool = False,
    vocab_size: int | None = None,
    tail: Tail = "fitted",
    temperature: float = 1.0,
    length: int | None = None,
    padding_side: str = "right",
    backend: str | None = None,
) -> Served:
    """Read ``meta_info["input_top_logprobs"]`` of SGLang's native ``/generate``.

    For each token of the prompt there is ``None`` or a list of ``(logprob, id, text)``.

    Args:
        responses: one response or a list of them, each the parsed JSON, its ``meta_info``, or the list of one
            prompt's ``input_top_logprobs``.
        start: the ``logprob_start_len`` of the request: tokens before the first that is described.
        generated: append the tokens generated after the prompt (``output_top_logprobs``).
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

    >>> served = from_sglang([None, [[-0.1, 5, None], [-3.0, 7, None]]])
    >>> served.source.ids
    array([[[ 5,  7],
            [-1, -1]]])
    """
    settings = _settings(None, vocab_size, tail, temperature, length, padding_side, backend)
    _checks.count("start", start, least=0)
    _checks.flag("generated", generated)
    skipped = SkipCounts()
    sequences: list[Described] = []
    for n, response in enumerate(_each(responses, _is_sglang_list)):
        where = f"responses[{n}]"
        meta = response if is_list(response) else attribute(response, "meta_info") or response
        rows = response if is_list(response) else attribute(meta, "input_top_logprobs")
        rows = list(_list_of(rows, f"{where}: expected meta_info with a list input_top_logprobs"))
        if generated:
            more = None if is_list(response) else attribute(meta, "output_top_logprobs")
            rows += _list_of(more, f"{where}: expected meta_info with a list output_top_logprobs")
        described: list[list[Entry] | None] = [None] * start
        described += [
            None if row is None else likeliest(_sglang_entries(row, f"{where}[{t}]"), None, skipped)
            for t, row in enumerate(rows)
        ]
        sequences.append(described)
    return _served(sequences, settings, skipped)


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

    Both name tokens by text (chat completions by bytes, too), whose ids are looked up in ``vocabulary``: by
    bytes, and by the vocabulary's own spelling where several ids share them or nobody knows what bytes it
    spells; ``token_id:17`` stands for 17, ``bytes:\xc3`` for a byte. A token that has no id, or several, ends
    the list of its position, since a token that is absent must be no likelier than one that is kept; `Served`
    counts such positions.

    Args:
        responses: one response or a list of them, each an object of the client or the parsed JSON; each of
            its ``choices`` is a sequence.
        vocabulary: the teacher's tokenizer, a mapping of text or bytes to ids, or ``None`` if all tokens are
            given as ``token_id:17``.
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
        TypeError, ValueError: a response has not the form described, or an argument is out of range.

    >>> top = [{"token": "a", "bytes": [97], "logprob": -0.2}, {"token": "b", "bytes": [98], "logprob": -2.0}]
    >>> choice = {"logprobs": {"content": [{"token": "a", "logprob": -0.2, "top_logprobs": top}]}}
    >>> served = from_openai({"choices": [choice]}, {"a": 0, "b": 1}, prompt_lengths=2)
    >>> served.source.ids
    array([[[-1, -1],
            [ 0,  1],
            [-1, -1]]])
    """
    settings = _settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    lookup, skipped = Lookup.of(vocabulary), SkipCounts()
    choices = []
    for n, response in enumerate(_each(responses, lambda _: False)):
        where = f"responses[{n}]: expected a completion with a list of choices"
        choices += [(f"responses[{n}].choices[{c}]", x) for c, x in enumerate(_choices(response, where))]
    before = _prompt_lengths(prompt_lengths, len(choices))
    sequences: list[Described] = []
    for (where, choice), count in zip(choices, before, strict=True):
        described: list[list[Entry] | None] = [None] * count
        described += [
            None if row is None else likeliest(resolved(row, lookup, skipped), k, skipped)
            for row in _openai_rows(choice, where)
        ]
        sequences.append(described)
    return _served(sequences, settings, skipped)


# -- what the formats have in common ---------------------------------------------------------------------


def _settings(
    k: Any, vocab_size: Any, tail: Any, temperature: Any, length: Any, padding_side: Any, backend: Any
) -> dict[str, Any]:
    """Check what all converters take; return what the source is made with."""
    _checks.count("k", k, allow_none=True)
    _checks.count("vocab_size", vocab_size, allow_none=True)
    _checks.divisor("temperature", temperature)
    _checks.count("length", length, allow_none=True)
    _checks.choice("padding_side", padding_side, ("right", "left"))
    return {
        "vocab_size": vocab_size,
        "tail": tail,
        "temperature": temperature,
        "length": length,
        "padding_side": padding_side,
        "backend": backend,
    }


def _served(sequences: Sequence[Described], settings: dict[str, Any], skipped: SkipCounts) -> Served:
    return Served(assemble(sequences, **settings), skipped.beyond, skipped.unknown, skipped.ambiguous)


def _each(responses: Any, is_one: Callable[[Any], bool]) -> list[Any]:
    """Responses as a list; one that is itself a list is told from a list of them."""
    return [responses] if not is_list(responses) or is_one(responses) else list(responses)


def _list_of(value: Any, what: str) -> Sequence[Any]:
    if not is_list(value):
        raise ValueError(f"{what}, got {type(value).__name__}")
    rows: Sequence[Any] = value
    return rows


def _choices(response: Any, what: str) -> Sequence[Any]:
    return _list_of(attribute(response, "choices"), what)


# -- vLLM ------------------------------------------------------------------------------------------------


def _is_vllm_list(value: Sequence[Any]) -> bool:
    """Whether a list describes one prompt: a mapping of ids for each token, ``None`` for the first."""
    return any(row is None for row in value) or (bool(value) and all(map(_is_row, value)))


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(i, int) or str(i).isdecimal() for i in row)


def _vllm_rows(responses: Any, generated: bool) -> list[tuple[str, Sequence[Any]]]:
    """The mappings of each sequence, and where they were found."""
    located: list[tuple[str, Sequence[Any]]] = []
    for n, response in enumerate(_each(responses, _is_vllm_list)):
        where = f"responses[{n}]"
        rows = response if is_list(response) else attribute(response, "prompt_logprobs")
        if rows is None and attribute(response, "choices") is not None:
            for c, choice in enumerate(_choices(response, f"{where}: expected a list of choices")):
                path = f"{where}.choices[{c}]"
                rows = attribute(choice, "prompt_logprobs")
                located.append((path, _list_of(rows, f"{path}: expected a list prompt_logprobs")))
        else:
            located.append((where, _list_of(rows, f"{where}: expected a list prompt_logprobs")))
        if generated:
            outputs = None if is_list(response) else attribute(response, "outputs")
            more = attribute(outputs[0], "logprobs") if outputs else None
            what = f"{where}: expected a RequestOutput whose outputs[0] has a list logprobs"
            located[-1] = where, [*located[-1][1], *_list_of(more, what)]
    return located


def _vllm_entries(row: Any, where: str, k: int | None, skipped: SkipCounts) -> list[Entry] | None:
    if row is None:
        return None
    if not hasattr(row, "items"):
        raise ValueError(
            f"{where}: expected None or ids mapped to log-probabilities, got {type(row).__name__}"
        )
    entries = []
    for key, value in row.items():
        plain = isinstance(value, int | float)
        rank = None if plain else attribute(value, "rank")
        if rank is not None and not isinstance(rank, int):
            raise ValueError(f"{where}[{key!r}]: expected a rank, got {rank!r}")
        logprob = number(value if plain else attribute(value, "logprob"), f"{where}[{key!r}]")
        entries.append(Entry(token_id(key, where), logprob, rank))
    return likeliest(entries, k, skipped)


# -- SGLang ----------------------------------------------------------------------------------------------


def _is_sglang_list(value: Sequence[Any]) -> bool:
    """Whether a list describes one prompt: a list of triples for each token, ``None`` for the first."""
    return any(row is None for row in value) or (
        bool(value)
        and all(is_list(row) and all(is_list(x) and not is_list(x[0]) for x in row if x) for row in value)
    )


def _sglang_entries(row: Any, where: str) -> list[Entry]:
    entries = []
    for each in _list_of(row, f"{where}: expected None or a list of (logprob, id, text)"):
        if not is_list(each) or len(each) < 2:
            raise ValueError(f"{where}: expected (logprob, id, text), got {each!r}")
        entries.append(Entry(token_id(each[1], where), number(each[0], where)))
    return entries


# -- OpenAI ----------------------------------------------------------------------------------------------


def _prompt_lengths(value: Any, count: int) -> list[int]:
    lengths = list(value) if is_list(value) else [value] * count
    for each in lengths:
        _checks.count("prompt_lengths", each, least=0)
    if len(lengths) != count:
        raise ValueError(f"prompt_lengths: expected one for each of {count} choices, got {len(lengths)}")
    return lengths


def _openai_rows(choice: Any, where: str) -> list[list[tuple[str, bytes | None, float]] | None]:
    """Tokens listed for each token of a choice, as text, bytes if given, and log-probability."""
    logprobs = attribute(choice, "logprobs")
    content = attribute(logprobs, "content")
    if is_list(content):
        return [_chat_row(each, f"{where}.logprobs.content[{t}]") for t, each in enumerate(content)]
    what = f"{where}: expected logprobs with a list content (chat) or top_logprobs (completions)"
    rows: list[list[tuple[str, bytes | None, float]] | None] = []
    for t, row in enumerate(_list_of(attribute(logprobs, "top_logprobs"), what)):
        path = f"{where}.logprobs.top_logprobs[{t}]"
        if row is not None and not hasattr(row, "items"):
            raise ValueError(f"{path}: expected None or text mapped to log-probabilities, got {row!r}")
        rows.append(None if row is None else [(str(x), None, number(p, path)) for x, p in row.items()])
    return rows


def _chat_row(described: Any, where: str) -> list[tuple[str, bytes | None, float]]:
    row = []
    for each in _list_of(attribute(described, "top_logprobs"), f"{where}: expected a list top_logprobs"):
        raw = attribute(each, "bytes")
        token = attribute(each, "token")
        if not isinstance(token, str):
            raise ValueError(f"{where}: expected a token as text, got {token!r}")
        row.append((token, _raw_bytes(raw, where), number(attribute(each, "logprob"), where)))
    return row


def _raw_bytes(value: Any, where: str) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if not is_list(value) or not all(type(each) is int and 0 <= each < 256 for each in value):
        raise ValueError(f"{where}: expected bytes as a list of integers from 0 to 255, got {value!r}")
    return bytes(value)
