"""Low-rank adapters by peft, which is needed for them alone."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: What a folder of adapters has.
_CONFIG = "adapter_config.json"


def require_peft(name: str) -> None:
    """Refuse adapters where peft is missing; ``name`` is what asks for them, for the message."""
    if find_spec("peft") is None:
        raise ValueError(f"{name}: adapters need peft, which is not installed; pip install peft")


def with_adapters(model: Any, rank: int, alpha: int | None, dropout: float, target: list[str] | None) -> Any:
    """A model with low-rank adapters to train; ``alpha`` is twice the rank unless given.

    Raises:
        ValueError: peft knows no modules for this model, or none has a name in ``target``.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=target,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names of transformers that peft still uses
        return get_peft_model(model, config)


def is_adapted(model: Any) -> bool:
    """Whether a model is one with adapters."""
    return hasattr(model, "merge_and_unload")


def load_adapters(model: Any, folder: Path) -> Any | None:
    """The model with the adapters of a folder; ``None`` if it has none."""
    if not (folder / _CONFIG).is_file():
        return None
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, folder)


def save_merged(model: Any, folder: Path) -> None:
    """Write a model as transformers reads it; of one with adapters the sum, and the adapters beside it."""
    if is_adapted(model):
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(folder)
