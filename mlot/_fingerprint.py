"""Digest of a tokenizer: what it does, not where it lies."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

_SIZE = 16

#: What a slow tokenizer is tried on, besides what it tells about itself.
_PROBES = (
    "The quick brown fox, 12345.67 (isn't it?)",
    "  two  spaces\tand\na line\r\n\n",
    "Ünïcödé café e\N{COMBINING ACUTE ACCENT} \N{GREEK SMALL LETTER ALPHA} \N{GRINNING FACE}",
    "\N{CYRILLIC SMALL LETTER ZHE} \N{CJK UNIFIED IDEOGRAPH-4E2D}\N{CJK UNIFIED IDEOGRAPH-6587}",
    "def f(x: int) -> dict[str, int]:\n    return {'a': x ** 2}\n",
    "UPPER lower \N{FULLWIDTH LATIN CAPITAL LETTER A}\N{NO-BREAK SPACE}\N{ZERO WIDTH JOINER}<s></s>[CLS]",
)


def fingerprint(tokenizer: Any) -> str:
    """Digest of what a tokenizer makes of text.

    Of a fast tokenizer: its model with vocabulary and merges, normaliser, pre-tokenizer, post-processor,
    decoder and added tokens. Of a slow one: its class, vocabulary and added tokens, the model of
    SentencePiece, and its ids for a few texts. Left out is what a call can set, such as truncation and
    padding, and which token pads: neither changes the ids of a text.

    Args:
        tokenizer: of the transformers or tokenizers library, fast or slow.

    Returns:
        32 hexadecimal digits; the same for a copy that was saved and loaded.

    Raises:
        TypeError: it is no tokenizer.

    >>> from tokenizers import Tokenizer, models
    >>> from mlot.saved import fingerprint
    >>> one, two = (Tokenizer(models.WordLevel({"a": 0, "b": n})) for n in (1, 2))
    >>> fingerprint(one) == fingerprint(Tokenizer.from_str(one.to_str()))
    True
    >>> fingerprint(one) == fingerprint(two)
    False
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and hasattr(tokenizer, "to_str") and hasattr(tokenizer, "id_to_token"):
        backend = tokenizer
    content = None if backend is None else _fast(backend)
    content = _slow(tokenizer) if content is None else content
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=_SIZE).hexdigest()


def _fast(backend: Any) -> dict[str, Any] | None:
    try:
        written = backend.to_str()
    except Exception:  # parts written in Python cannot be; tokenizers raises a bare Exception for them
        return None
    content: dict[str, Any] = json.loads(written, parse_float=_rounded)
    for setting in ("truncation", "padding", "version"):
        content.pop(setting, None)
    merges = content["model"].get("merges")
    if merges and isinstance(merges[0], str):  # as earlier versions of the library write them
        content["model"]["merges"] = [each.split(" ", 1) for each in merges]
    content["post_processor"] = _of_one_text(content.get("post_processor"))
    return content


def _rounded(number: str) -> float:
    """A score without the last digits, which are not the same after each time of reading and writing."""
    return float(f"{float(number):.6g}")


def _of_one_text(processor: Any) -> Any:
    """What a template does to one text; the wrapper of transformers adds templates that do nothing."""
    if not isinstance(processor, dict) or processor.get("type") != "TemplateProcessing":
        return processor
    single = processor["single"]
    if [list(part) for part in single] == [["Sequence"]]:
        return None
    return {**processor, "pair": None}


def _slow(tokenizer: Any) -> dict[str, Any]:
    if not hasattr(tokenizer, "get_vocab") or not hasattr(tokenizer, "encode"):
        raise TypeError(
            "tokenizer: expected one of the transformers or tokenizers library, "
            f"got {type(tokenizer).__name__}"
        )
    added = getattr(tokenizer, "added_tokens_decoder", None)
    added = added if isinstance(added, dict) else {}
    processor = getattr(tokenizer, "sp_model", None)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": dict(tokenizer.get_vocab()),
        "added": {str(i): str(getattr(token, "content", token)) for i, token in added.items()},
        "pieces": processor.serialized_model_proto().hex() if processor is not None else None,
        "probes": [_ids(tokenizer.encode(text)) for text in _PROBES],
    }


def _ids(encoded: Any) -> list[int]:
    return [int(i) for i in getattr(encoded, "ids", encoded)]
