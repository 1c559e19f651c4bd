"""The page that maps the paper to the code names tests, functions and settings that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import mlot
import mlot.nn
from mlot.backends.numpy import equations as numpy_equations

ROOT = Path(__file__).resolve().parents[2]
#: How pages name a test: as code in full, or by the role that links it.
TEST = r"`(?:tests/)?(\w+/test_\w+\.py)::(\w+)`"
PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs").glob("[mg]*/*.md"))
PAPER = (ROOT / "docs" / "paper.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAPER.splitlines()
    if re.match(r"\| \(\d+\) ", line)
]
NAMED = sorted({(page.name, *found) for page in PAGES for found in re.findall(TEST, page.read_text())})


@cache
def _tests_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("page", "path", "name"), NAMED)
def test_named_tests_exist(page: str, path: str, name: str) -> None:
    assert (ROOT / "tests" / path).is_file(), f"{page} names {path}"
    assert name in _tests_of(path), f"{page} names {path}::{name}"
    assert name.startswith("test_")


def test_every_equation_of_the_docstrings_has_a_row() -> None:
    """Numbers that docstrings quote, as (14), (17)-(20) or eqs. 10-20, are those of the table, and no others."""
    quoted: set[int] = set()
    sources = [path.read_text() for path in sorted((ROOT / "mlot").rglob("*.py"))]
    for source in sources:
        for first, last in re.findall(r"(?:[Ee]quations?|eqs?\.) \(?(\d+)\)?(?:[-–]\(?(\d+)\)?)?", source):
            quoted |= set(range(int(first), int(last or first) + 1))
        quoted |= {int(number) for number in re.findall(r"[Ee]quations? \(\d+\), \((\d+)\)", source)}
    listed = {int(re.findall(r"\d+", row[0])[0]) for row in ROWS}
    assert {10, 11, 12, 14, 16, 17, 20, 21} <= quoted
    assert quoted - {13, 15} <= listed  # 13 and 15 are inside the range that the whole loss quotes
    assert listed <= quoted


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_rows_name_what_exists(row: list[str]) -> None:
    number, _, symbols, reference, held = row
    names = re.findall(r"\{py:\w+\}`mlot\.([\w.]+)`", symbols)
    assert names, number
    for name in names:
        found: object = mlot
        for part in name.split("."):
            found = getattr(found, part)
    for name in re.findall(r"`(\w+)`", reference):
        assert callable(getattr(numpy_equations, name)), f"{number}: {name}"
    assert re.findall(TEST, held), f"{number} is held by no test"


def test_settings_that_are_named_are_those_of_the_configuration() -> None:
    settings = set(mlot.MultiLevelOTConfig.__dataclass_fields__)
    ablations = PAPER[PAPER.index("| ablation |") : PAPER.index("## Where we deviate")]
    named = set(re.findall(r"[`\s](\w+)=", ablations))
    assert {"had_weight", "k", "matching", "token_cost"} <= named <= settings
