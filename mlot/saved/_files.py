"""Examples in files: a text with one in each line, or JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlot._text import is_json_lines, line_of, read_json_lines, read_text


def read_file(path: Path) -> list[Any]:
    """Read the examples of a file, in the forms that `save_teacher` takes.

    A file whose name ends in ``.jsonl`` or ``.ndjson`` has an object in each line: ``text``, or ``input_ids``
    with ``labels`` or ``mask``; other entries are ignored. Of any other file every line is a text. Blank
    lines are skipped.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is not UTF-8, or a line is not of that form;
            the message says which.
    """
    if not is_json_lines(path):
        return [line for line in read_text(path).split("\n") if line.strip()]
    entries = read_json_lines(path)
    if not entries:
        raise ValueError(f"--text: expected some text, but {str(path)!r} is empty")
    return [_example(entry, line_of(path, number)) for number, entry in entries]


def _example(entry: Any, where: str) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("text"), str) and "input_ids" not in entry:
        return entry["text"]
    if not isinstance(entry, dict) or not _integers(entry.get("input_ids")):
        raise ValueError(f"{where}: expected an object with text, or with input_ids, integers")
    ids = entry["input_ids"]
    for name, fits in (("labels", _integers), ("mask", _booleans)):
        if name in entry:
            if not fits(entry[name]) or len(entry[name]) != len(ids):
                kind = "integers" if name == "labels" else "booleans"
                raise ValueError(
                    f"{where}: expected as many {kind} in {name} as there are input_ids, {len(ids)}"
                )
            return {"input_ids": ids, name: entry[name]}
    return ids, None


def _integers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _booleans(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is bool for each in value)
