"""Names say what they hold: some words are too vague for any."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlot

PACKAGE = Path(mlot.__file__).parent
VAGUE = re.compile("_?(found|pull|walk|party|forget|settle|tally)", re.IGNORECASE)


def vague_names(text: str) -> Iterator[str]:
    """Vague words that a file gives to something as its name."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        else:
            continue
        if VAGUE.fullmatch(name):
            yield name


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_name_is_vague(path: Path) -> None:
    assert not list(vague_names(path.read_text()))


def test_a_vague_name_would_be_seen() -> None:
    text = "class Party:\n    def settle(self, tally):\n        found = 1\n        return found"
    assert sorted(vague_names(text)) == ["Party", "found", "settle", "tally"]
