"""Files of a work folder: written whole or not at all, so that what is there is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a file under a passing name, and give it its own when it is whole.

    The ending stays, since some libraries choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        save(passing)
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON; numbers keep all their digits, and one that is not finite is refused."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write(path, lambda passing: passing.write_text(text + "\n", encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))
