"""Results as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contestant import Findings, Row

_WIDTH = 180  # where the output is no terminal


@dataclass(frozen=True)
class Report:
    """What was measured, how and where."""

    benchmark: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    findings: Findings


def _number(value: float | None, pattern: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, pattern)


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.2f}"


def _ratio(row: Row, value: float | None) -> str:
    return "base" if row.name == row.baseline and value is not None else _number(value, ".2f")


def _spread(row: Row) -> str:
    if not row.seconds:
        return ""
    return f"{min(row.seconds) * 1e3:,.1f}–{max(row.seconds) * 1e3:,.1f}"


def _quartiles(row: Row) -> str:
    if row.time_ratio_spread is None or row.name == row.baseline:
        return ""
    low, high = row.time_ratio_spread
    return f"{low:.2f}–{high:.2f}"


def _same(row: Row) -> str:
    """Whether the row holds what was asked for."""
    if row.status != "measured":
        return row.status
    if not row.claims:
        return f"no: {row.remark}"
    return "yes" if row.agrees else "MISMATCH"


def _difference(row: Row, value: float | None) -> str:
    return "reference" if row.is_reference else _number(value, ".1e")


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("contestant", lambda row: row.name),
    ("time, ms", lambda row: _number(row.median_seconds, ",.1f", 1e3)),
    ("min–max", _spread),
    ("÷ base", lambda row: _ratio(row, row.time_ratio)),
    ("quartiles", _quartiles),
    ("peak, MiB", lambda row: _mebibytes(row.peak_bytes)),
    ("÷ base", lambda row: _ratio(row, row.memory_ratio)),
    ("less gradient", lambda row: _mebibytes(row.beyond_gradient_bytes)),
    ("saved", lambda row: _mebibytes(row.saved_bytes)),
    ("value off by", lambda row: _difference(row, row.value_difference)),
    ("gradient off by", lambda row: _difference(row, row.gradient_difference)),
    ("same quantity", _same),
)

_LEGEND = (
    "time: median of forward and backward together, in turns with the others. ÷ base: over the row marked "
    "base, in the same section unless a note says otherwise. peak: most memory in use beyond the inputs; "
    "less gradient: without the wanted gradients' own size; saved: what autograd keeps for backward beyond "
    "the inputs; all in MiB. off by: relative difference from the section's reference."
)


def print_table(report: Report) -> None:
    """Print to standard output."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(_line(report.settings), markup=False)
    console.print(_line(report.environment), markup=False)
    table = Table(*(header for header, _ in _COLUMNS))
    table.columns[0].no_wrap = True
    for column in table.columns[1:-1]:
        column.justify = "right"
        column.no_wrap = True
    for section, rows in _sections(report):
        table.add_section()
        table.add_row(section, style="bold")
        for row in rows:
            name, *cells = (cell(row) for _, cell in _COLUMNS)
            table.add_row(f"  {name}", *cells, style="red" if row.is_bad else None)
    console.print(table)
    for note in _notes(report):
        console.print(note, markup=False)


def to_json(report: Report) -> str:
    """Environment, settings and every figure; ``NaN`` and infinities become ``null``."""
    content = {
        "benchmark": report.benchmark,
        "environment": report.environment,
        "settings": report.settings,
        "rows": [_figures(row) for row in report.findings.rows],
        "bandwidth": report.findings.bandwidth,
        "notes": [_LEGEND, *report.findings.notes],
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(report: Report) -> str:
    """The table and what belongs to it."""
    lines = [f"# {report.benchmark}", ""]
    lines += [f"Settings: {_line(report.settings)}", "", f"Measured on: {_line(report.environment)}", ""]
    for section, rows in _sections(report):
        lines += [f"## {section}", "", _piped(header for header, _ in _COLUMNS)]
        lines.append(_piped("---" if n in (0, len(_COLUMNS) - 1) else "---:" for n in range(len(_COLUMNS))))
        lines += [_piped(cell(row) for _, cell in _COLUMNS) for row in rows]
        lines.append("")
    lines += [f"- {note}" for note in _notes(report)]
    return "\n".join(lines) + "\n"


def _sections(report: Report) -> Iterator[tuple[str, Iterator[Row]]]:
    return groupby(report.findings.rows, key=lambda row: row.section)


def _figures(row: Row) -> dict[str, Any]:
    return asdict(row) | {
        "median_seconds": row.median_seconds,
        "beyond_gradient_bytes": row.beyond_gradient_bytes,
    }


def _notes(report: Report) -> list[str]:
    notes = [_LEGEND, *report.findings.notes]
    bandwidth = report.findings.bandwidth
    if isinstance(bandwidth, str):
        notes.append(f"Memory bandwidth of select: {bandwidth}.")
    elif bandwidth is not None:
        rates = ("copy", "select forward", "select backward")
        parts = ", ".join(f"{name} {bandwidth[name] / 1e9:,.0f}" for name in rates)
        fractions = [bandwidth[f"{name}, fraction of copy"] for name in rates[1:]]
        notes.append(
            f"Memory bandwidth in GB/s: {parts}; select reaches {fractions[0]:.0%} of a copy's forward and "
            f"{fractions[1]:.0%} backward."
        )
    return notes


def _line(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items())


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _piped(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
