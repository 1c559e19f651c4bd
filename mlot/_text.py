"""Files that commands are given with ``--text``: text, or JSON lines by their name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Endings of files of JSON lines; any other file is text.
_JSON_LINES = (".jsonl", ".ndjson")


def is_json_lines(path: Path) -> bool:
    """Whether a file has a JSON value in each line, by its name."""
    return path.suffix.lower() in _JSON_LINES


def read_text(path: Path) -> str:
    """Read a file of text.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not UTF-8, or it is blank.
    """
    _require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text: expected UTF-8, but {str(path)!r} is not: {error}") from error
    if not text.strip():
        raise ValueError(f"--text: expected some text, but {str(path)!r} is empty")
    return text


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """Read the values of a file of JSON lines, each with its line's number from 1; blank lines are skipped.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or a line is not UTF-8 or not JSON; the message
            says which.
    """
    _require_file(path)
    entries = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                entries.append((number, _value(line, line_of(path, number))))
    return entries


def line_of(path: Path, number: int) -> str:
    """How messages name a line."""
    return f"--text: line {number} of {str(path)!r}"


def _value(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected UTF-8: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON: {error}") from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"--text: expected a file, found none at {str(path)!r}")
