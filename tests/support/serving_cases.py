"""Responses of inference servers and tokenizers, for the tests that read them."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import mlot

REPLACED = "\N{REPLACEMENT CHARACTER}"


def listed(source: mlot.TopKLogprobs, n: int = 0) -> list[dict[int, float]]:
    """Ids and log-probabilities at each position of one sequence."""
    return [
        {int(i): float(p) for i, p in zip(ids, logs, strict=True) if i >= 0}
        for ids, logs in zip(source.ids[n], source.logprobs[n], strict=True)
    ]


def entry(token: str, logprob: float, **more: object) -> dict[str, object]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), **more}


def chat(*rows: list[dict[str, object]], drawn: list[dict[str, object]] | None = None) -> dict[str, object]:
    described = [row[0] for row in rows] if drawn is None else drawn
    content = [{**one, "top_logprobs": row} for one, row in zip(described, rows, strict=True)]
    return {"choices": [{"logprobs": {"content": content}}]}


def byte_level(*tokens: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({t: n for n, t in enumerate([*alphabet, *tokens])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made


def sentence_piece(*tokens: str) -> Tokenizer:
    """As Llama-2's: byte tokens, spaces as a mark, and a decoder that strips the first."""
    names = [*(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    made = Tokenizer(models.BPE({t: n for n, t in enumerate(names)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made
