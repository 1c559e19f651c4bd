"""Low-rank adapters by peft, which is needed for them alone."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlot.distill.errors import DistillError, refusing
from mlot.distill.options import Options

#: What a folder of adapters has.
_CONFIG = "adapter_config.json"


def check(options: Options) -> None:
    """Refuse adapters where peft is missing."""
    if options.lora_rank is not None and find_spec("peft") is None:
        raise DistillError("--lora-rank: adapters need peft, which is not installed; pip install peft")


def adapted(model: Any, options: Options) -> Any:
    """A model with adapters to train, if they were asked for."""
    if options.lora_rank is None:
        return model
    from peft import LoraConfig, get_peft_model

    with refusing("--lora-target"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names of transformers that peft still uses
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=options.lora_rank,
                lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
                lora_dropout=options.lora_dropout or 0.0,
                target_modules=options.lora_target,
            ),
        )


def is_adapted(model: Any) -> bool:
    """Whether a model is one with adapters."""
    return hasattr(model, "merge_and_unload")


def load(model: Any, folder: Path) -> Any | None:
    """The model with the adapters of a folder; ``None`` if it has none."""
    if not (folder / _CONFIG).is_file():
        return None
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, folder)


def save(model: Any, folder: Path) -> None:
    """Write a model as transformers reads it; of one with adapters the sum, and the adapters beside it."""
    if is_adapted(model):
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(folder)
