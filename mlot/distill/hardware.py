"""What a run ran with and on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from mlot import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scipy")


def device() -> torch.device:
    """The device that models are trained on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment() -> dict[str, str]:
    """Versions and hardware, as a report states them."""
    found = {"mlot": __version__} | {name: metadata.version(name) for name in _PACKAGES}
    found |= {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }
    return found


def _processor() -> str:
    """Name of the processor: where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"
