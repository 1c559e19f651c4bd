"""Names with an underscore belong to their file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlot

PACKAGE = Path(mlot.__file__).parent


def private_imports(text: str) -> Iterator[str]:
    """Names with an underscore that a file imports from another, modules aside."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        folder = PACKAGE.parent.joinpath(*node.module.split("."))
        for name in (alias.name for alias in node.names):
            module = (folder / f"{name}.py").exists() or (folder / name).is_dir()
            if name.startswith("_") and not name.startswith("__") and not module:
                yield f"{node.module}.{name}"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_file_imports_a_private_name(path: Path) -> None:
    assert not list(private_imports(path.read_text()))


def test_a_private_name_would_be_seen() -> None:
    text = "def f():\n    from mlot.losses import _soft_terms\nfrom mlot import _checks"
    assert list(private_imports(text)) == ["mlot.losses._soft_terms"]
