"""Digests of tokenizers and models: what they do, not where they lie."""

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
    content = _slow(tokenizer) if backend is None else _fast(backend)
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=_SIZE).hexdigest()


def _fast(backend: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(backend.to_str(), parse_float=_rounded)
    for setting in ("truncation", "padding", "version"):
        content.pop(setting, None)
    merges = content["model"].get("merges")
    if merges is not None:  # written as strings in earlier versions of the library
        content["model"]["merges"] = [
            each.split(" ", 1) if isinstance(each, str) else list(each) for each in merges
        ]
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
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    processor = getattr(tokenizer, "sp_model", None)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": dict(tokenizer.get_vocab()),
        "added": {str(i): str(getattr(token, "content", token)) for i, token in added.items()},
        "pieces": processor.serialized_model_proto().hex() if processor is not None else None,
        "probes": [[int(i) for i in tokenizer.encode(text)] for text in _PROBES],
    }


#: Entries of configurations that predictions do not depend on; the type is that of the tensors.
_LEFT_OUT = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    | {"return_dict", "output_attentions", "output_hidden_states", "id2label", "label2id"}
)


def _settings(config: Any) -> Any:
    """A configuration without what predictions do not depend on."""
    if not isinstance(config, dict):
        return config
    return {
        str(name): _settings(value)
        for name, value in config.items()
        if name not in _LEFT_OUT and not str(name).endswith(("_token_id", "attn_implementation"))
    }


#: Values of each tensor that a model's fingerprint looks at.
_SAMPLE = 4096


def model_fingerprint(model: Any) -> str:
    """Digest of a model: its configuration, and of every tensor name, type, shape and some values.

    The values are about 4096 of each, evenly spaced: fine-tuning or converting a model changes nearly all of
    them, and reading the whole of a large model takes long. Of the configuration, what does not change
    predictions is left out: where it came from, special tokens, and what a call returns. The device does not
    matter.

    Args:
        model: a module of torch, such as a model of the transformers library.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError: it has no state.
    """
    if not hasattr(model, "state_dict"):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}")
    import torch

    digest = blake2b(digest_size=_SIZE)
    described = getattr(getattr(model, "config", None), "to_diff_dict", None)
    if callable(described):
        digest.update(json.dumps(_settings(described()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLE)].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()
