"""What a benchmark ran on. Neither the name of the machine nor a path is told."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from typing import Any

import torch

import mlot
from mlot._machine import processor_name

_PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "POT": "POT",
    "geomloss": "geomloss",
    "trl": "TRL",
    "liger-kernel": "Liger",
    "triton": "Triton",
}


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions, threads in use and the date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "usable cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "device": _device_name(torch.device(device)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlot": mlot.__version__,
        **{shown: _version(package) for package, shown in _PACKAGES.items()},
    }


def _usable_cores() -> int | None:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
