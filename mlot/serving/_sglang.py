"""Responses of SGLang's native endpoint: lists of (log-probability, id, text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlot import _checks
from mlot._typing import Tail
from mlot.serving._entries import Described, Served, Settings, SkipCounts, by_rank
from mlot.serving._values import attribute, is_list, list_of, number, shown, token_id


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
    settings = Settings(None, vocab_size, tail, temperature, length, padding_side, backend)
    _checks.count("start", start, least=0)
    _checks.flag("generated", generated)
    skipped = SkipCounts()
    sequences: list[Described] = []
    several = is_list(responses) and not _is_one(responses)
    for n, response in enumerate(responses if several else [responses]):
        where = f"responses[{n}]"
        meta = response if is_list(response) else attribute(response, "meta_info") or response
        rows = response if is_list(response) else attribute(meta, "input_top_logprobs")
        rows = list(list_of(rows, f"{where}: expected meta_info with a list input_top_logprobs"))
        if generated:
            more = None if is_list(response) else attribute(meta, "output_top_logprobs")
            rows += list_of(more, f"{where}: expected meta_info with a list output_top_logprobs")
        sequence = Described(start)
        for t, row in enumerate(rows):
            entries = [] if row is None else _entries(row, f"{where}[{t}]")
            sequence.add(*by_rank(entries, None, True, skipped))
        sequences.append(sequence)
    return settings.served(sequences, skipped)


def _is_one(value: Sequence[Any]) -> bool:
    """Whether a list describes one prompt: a list of triples for each token, ``None`` for the first."""
    return any(row is None for row in value) or (
        bool(value)
        and all(is_list(row) and all(is_list(x) and not is_list(x[0]) for x in row if x) for row in value)
    )


def _entries(row: Any, where: str) -> list[tuple[float, int, int | None]]:
    entries: list[tuple[float, int, int | None]] = []
    for each in list_of(row, f"{where}: expected None or a list of (logprob, id, text)"):
        if (type(each) is not list and not is_list(each)) or len(each) < 2:
            raise ValueError(f"{where}: expected (logprob, id, text), got {shown(each)}")
        logprob, i = each[0], each[1]
        if type(logprob) is not float or logprob != logprob:
            logprob = number(logprob, where)
        entries.append((-logprob, i if type(i) is int and 0 <= i < 2**63 else token_id(i, where), None))
    if len({i for _, i, _ in entries}) < len(entries):
        raise ValueError(f"{where}: expected different ids, got one twice")
    return entries
