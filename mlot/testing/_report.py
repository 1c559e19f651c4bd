"""What a conformance check found, as records and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

COLUMNS = ("quantity", "backend", "cases", "worst error", "tolerance", "verdict")


@dataclass(frozen=True)
class Record:
    """One quantity of one backend against its oracle.

    Attributes:
        operation: operation of the protocol that the quantity belongs to, or ``"loss"``.
        quantity: what was compared: the operation, in one precision, or its gradient.
        backend: name of the backend.
        cases: random problems compared; 0 means that the quantity was skipped.
        worst_error: largest error, relative to the scale of the quantity; infinite where the result had the
            wrong shape or structure, or an exception was raised.
        tolerance: largest error allowed.
        passed: whether every comparison kept to the tolerance. Never true for what was skipped.
        detail: the worst comparison, or why the quantity was skipped.
        needs: package that is missing, for a quantity skipped on that account.
    """

    operation: str
    quantity: str
    backend: str
    cases: int
    worst_error: float
    tolerance: float
    passed: bool
    detail: str = ""
    needs: str = ""

    @property
    def skipped(self) -> bool:
        """Whether nothing was compared."""
        return self.cases == 0

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"FAIL"`` or ``"skipped"``."""
        return "skipped" if self.skipped else "pass" if self.passed else "FAIL"

    def row(self) -> tuple[str, ...]:
        """Cells of the table's row."""
        numbers = ("-", "-") if self.skipped else (f"{self.worst_error:.1e}", f"{self.tolerance:.0e}")
        return (self.quantity, self.backend, str(self.cases), *numbers, self.verdict)


@dataclass(frozen=True)
class Report:
    """Records of one backend, in the order of the checks."""

    records: tuple[Record, ...]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def passed(self) -> bool:
        """Whether something was compared, and nothing failed."""
        return any(record.passed for record in self.records) and not self.failed_operations

    @property
    def failed_operations(self) -> tuple[str, ...]:
        """Operations of which a quantity failed."""
        return tuple(dict.fromkeys(r.operation for r in self.records if not r.passed and not r.skipped))

    def __str__(self) -> str:
        return table(self.records)


def table(records: Iterable[Record]) -> str:
    """Records as aligned text, with what failed or was skipped explained below."""
    records = list(records)
    rows = [COLUMNS, *(record.row() for record in records)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 2 <= n <= 4 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines + notes(records))


def notes(records: Iterable[Record]) -> list[str]:
    """One line for each record that failed or was skipped."""
    return [
        f"{record.verdict}: {record.quantity} of {record.backend}: {record.detail}"
        for record in records
        if not record.passed
    ]
