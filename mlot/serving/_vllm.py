"""Responses of vLLM: ids mapped to log-probabilities with ranks, or flat arrays of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlot import _checks
from mlot._typing import Tail
from mlot.serving._entries import Described, Served, Settings, SkipCounts, by_rank
from mlot.serving._values import attribute, is_list, list_of, number, shown, token_id

#: Negative log-probability, id and rank.
_Ranked = tuple[float, int, int | None]
_FLAT = ("start_indices", "end_indices", "token_ids", "logprobs")


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

    For each token of a prompt there is ``None`` or a mapping of ids to log-probabilities with ranks, and
    the token itself is in it even if it is not among the most likely. Such an addition is left out by its
    rank, or by being the least likely where ranks tell nothing, because they are all 1 or missing.

    Args:
        responses: one response or a list of them, each a ``RequestOutput``, the parsed JSON of the server (of
            whose ``choices`` each is a sequence), or one prompt's ``prompt_logprobs``: a list, or
            ``FlatLogprobs``.
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
    settings = Settings(k, vocab_size, tail, temperature, length, padding_side, backend)
    _checks.flag("generated", generated)
    skipped, sequences = SkipCounts(), []
    for parts in _located(responses, generated):
        rows = [row for part, where in parts for row in _ranked_rows(part, where)]
        told = all(map(_tells_ranks, rows))
        sequence = Described()
        for row in rows:
            sequence.add(*by_rank(row, k, told, skipped))
        sequences.append(sequence)
    return settings.served(sequences, skipped)


def _tells_ranks(row: Sequence[_Ranked]) -> bool:
    """Whether the ranks of a list can be ranks: each has one, and no two have the same."""
    ranks = {rank for _, _, rank in row}
    return len(ranks) == len(row) and None not in ranks


def _is_flat(value: Any) -> bool:
    return all(attribute(value, name) is not None for name in _FLAT)


def _is_one(value: Sequence[Any]) -> bool:
    """Whether a list describes one prompt: a mapping of ids for each token, ``None`` for the first."""
    return _is_flat(value) or any(row is None for row in value) or (bool(value) and all(map(_is_row, value)))


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(i, int) or str(i).isdecimal() for i in row)


def _located(responses: Any, generated: bool) -> Iterator[list[tuple[Any, str]]]:
    """The lists or flat arrays of each sequence, each with the place where it was found."""
    several = is_list(responses) and not _is_one(responses)
    for n, response in enumerate(responses if several else [responses]):
        where = f"responses[{n}]"
        bare = is_list(response) or _is_flat(response)
        rows = response if bare else attribute(response, "prompt_logprobs")
        parts = []
        if rows is None and attribute(response, "choices") is not None:
            what = f"{where}: expected a list of choices"
            for c, choice in enumerate(list_of(attribute(response, "choices"), what)):
                path = f"{where}.choices[{c}]"
                rows = attribute(choice, "prompt_logprobs")
                parts.append([(_checked(rows, f"{path}: expected a list prompt_logprobs"), path)])
        else:
            parts.append([(_checked(rows, f"{where}: expected a list prompt_logprobs"), where)])
        if generated and parts:
            outputs = None if bare else attribute(response, "outputs")
            more = attribute(outputs[0], "logprobs") if is_list(outputs) and outputs else None
            what = f"{where}: expected a RequestOutput whose outputs[0] has a list logprobs"
            parts[-1].append((_checked(more, what), f"{where}.outputs[0]"))
        yield from parts


def _checked(rows: Any, what: str) -> Any:
    return rows if _is_flat(rows) else list_of(rows, what)


def _ranked_rows(rows: Any, where: str) -> Iterator[list[_Ranked]]:
    if _is_flat(rows):
        yield from _flat_rows(rows, where)
        return
    for t, row in enumerate(rows):
        yield [] if row is None else _ranked(row, f"{where}[{t}]")


def _ranked(row: Any, where: str) -> list[_Ranked]:
    if not hasattr(row, "items"):
        raise ValueError(
            f"{where}: expected None or ids mapped to log-probabilities, got {type(row).__name__}"
        )
    entries: list[_Ranked] = []
    for key, value in row.items():
        rank = None
        if type(value) is dict:
            logprob, rank = value.get("logprob"), value.get("rank")
        elif isinstance(value, int | float):
            logprob = value
        else:
            logprob, rank = attribute(value, "logprob"), attribute(value, "rank")
        if type(logprob) is not float or logprob != logprob:
            logprob = number(logprob, f"{where}[{shown(key)}]")
        if rank is not None and type(rank) is not int:
            raise ValueError(f"{where}[{shown(key)}]: expected a rank, got {shown(rank)}")
        entries.append((-logprob, key if type(key) is int and key >= 0 else token_id(key, where), rank))
    if len({i for _, i, _ in entries}) < len(entries):
        raise ValueError(f"{where}: expected different ids, got one twice")
    for _, i, _ in entries:
        if i >= 2**63:
            token_id(i, where)
    return entries


# -- FlatLogprobs ----------------------------------------------------------------------------------------


def _flat_rows(flat: Any, where: str) -> Iterator[list[_Ranked]]:
    """Lists of each token from arrays of all: those of token ``t`` are from its start to its end."""
    starts, ends, ids, logprobs = (_array(flat, name, where) for name in _FLAT)
    if len(starts) != len(ends) or len(ids) != len(logprobs):
        raise ValueError(
            f"{where}: expected start_indices as long as end_indices and token_ids as long as logprobs, got "
            f"{len(starts)}, {len(ends)}, {len(ids)} and {len(logprobs)}"
        )
    cuts = np.stack([starts, ends], axis=1).ravel()
    if len(cuts) and (cuts[0] < 0 or cuts[-1] > len(ids) or (np.diff(cuts) < 0).any()):
        raise ValueError(
            f"{where}: expected start_indices and end_indices in order, within {len(ids)} entries"
        )
    if len(ids) and ids.min() < 0:
        raise ValueError(f"{where}.token_ids: expected token ids, got {ids.min()}")
    if np.isnan(logprobs).any():
        raise ValueError(f"{where}.logprobs: expected log-probabilities, got NaN")
    ranks = attribute(flat, "ranks")
    given = list(ranks) if is_list(ranks) or isinstance(ranks, np.ndarray) else []
    known: list[int | None] = [int(x) if isinstance(x, int | np.integer) else None for x in given]
    known += [None] * (len(ids) - len(known))
    entries = list(zip((-logprobs).tolist(), ids.tolist(), known, strict=False))
    for t, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if len(set(ids[start:end].tolist())) < end - start:
            raise ValueError(f"{where}[{t}]: expected different ids, got one twice")
        yield entries[start:end]


def _array(flat: Any, name: str, where: str) -> Any:
    value = attribute(flat, name)
    kinds, wanted = ("if", "numbers") if name == "logprobs" else ("i", "integers")
    array: Any = None
    try:
        array = np.asarray(value if len(value) else np.zeros(0, np.int64))
        array = (
            array.astype(np.float64 if name == "logprobs" else np.int64)
            if array.dtype.kind in kinds
            else None
        )
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or array.ndim != 1:
        raise ValueError(f"{where}.{name}: expected a list of {wanted}, got {shown(value)}")
    return array
