"""Digest of a model: what it does, not where it lies."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

_SIZE = 16

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
