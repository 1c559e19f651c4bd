"""Packages that a part of the library cannot do without, looked for before it imports them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

#: What the extra ``hf`` brings: before these versions, a Trainer scales the loss of accumulated batches once
#: more, or a resumed run is another one.
HF_PACKAGES = ("torch", "transformers>=5.21", "accelerate>=1.10", "tokenizers>=0.21", "safetensors>=0.4.3")


def require_packages(module: str, extra: str, names: tuple[str, ...]) -> None:
    """Raise `ImportError` that names the packages a module lacks, and the extra that brings them.

    A name may say the oldest version that will do, as in ``"transformers>=5.21"``.
    """
    missing, old = [], []
    for wanted in names:
        name, _, least = wanted.partition(">=")
        if find_spec(name) is None:
            missing.append(name)
            continue
        try:
            installed = version(name)
        except PackageNotFoundError:  # it is there, if not by an installer: its version is not known
            continue
        if least and _numbers(installed) < _numbers(least):
            old.append((name, f"{wanted} (found {installed})"))
    if missing or old:
        reasons = [f"{', '.join(missing)}, not installed here"] if missing else []
        reasons += [text for _, text in old]
        raise ImportError(
            f'{module} needs {" and ".join(reasons)}; pip install "mlot[{extra}]"',
            name=(missing + [name for name, _ in old])[0],
        )


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers that a version begins with."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match.group().split("."))) if match else ()
