"""What a training runs with and on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

from mlot import __version__
from mlot._machine import processor_name

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scipy")


def device() -> torch.device:
    """The device that models are trained on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment() -> dict[str, str]:
    """Versions and hardware, as a report states them."""
    versions = {"mlot": __version__} | {name: metadata.version(name) for name in _PACKAGES}
    versions |= {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    return versions
