"""What was found, in words that are made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.efficacy.analysis import CONTRASTS, Row, Setting, contrast, settings
from benchmarks.efficacy.methods import BY_NAME, CE, FULL
from benchmarks.efficacy.statistics import Estimate


def claim(results: Sequence[dict[str, Any]], table: dict[Setting, list[Row]], seeds: int) -> str:
    """Sentences on MultiLevelOT, on the other methods, and on its parts; no more than the tables show."""
    count = len(table)
    own = [_row(table, setting, FULL) for setting in settings()]
    sentences = [
        (
            f"With {seeds} seeds in each of {count} settings (two starts, two teachers), a student trained "
            f"with MultiLevelOT (optimal matching, boundary pairs) {_against(own)}."
        )
    ]
    others = ["sequence-kd", "uld", "released", "rank-index", "optimal-index"]
    parts = [
        f"{BY_NAME[name].label}: {_counts([_row(table, setting, name) for setting in settings()])}"
        for name in others
    ]
    sentences.append(f"Beside cross-entropy alone, the others were, {'; '.join(parts)}.")
    best = [
        min(table[setting], key=lambda row: row.values["bits_per_byte"].mean).method for setting in settings()
    ]
    named = "; ".join(
        f"{_setting(setting)}: {BY_NAME[name].label.strip()}"
        for setting, name in zip(settings(), best, strict=True)
    )
    sentences.append(f"The fewest bits per byte on average were those of, {named}.")
    changes = [
        f"{what}: {_verdicts([contrast(results, a, b, setting, 'bits_per_byte') for setting in settings()])}"
        for what, a, b in CONTRASTS
    ]
    sentences.append(f"Within the methods, {'; '.join(changes)}.")
    return " ".join(sentences)


def _row(table: dict[Setting, list[Row]], setting: Setting, method: str) -> Row:
    return next(row for row in table[setting] if row.method == method)


def _setting(setting: Setting) -> str:
    start, gap = setting
    return f"{start}, {gap} gap"


def _difference(row: Row) -> Estimate:
    assert row.differences is not None, f"expected a method other than {CE}"
    return row.differences["bits_per_byte"]


def _against(rows: Sequence[Row]) -> str:
    means = [_difference(row).mean for row in rows]
    return (
        f"needed {min(means):+.4f} to {max(means):+.4f} bits per byte of held-out text relative to one "
        f"trained by cross-entropy alone (means of paired differences; below 0 is better): {_counts(rows)}"
    )


def _counts(rows: Sequence[Row]) -> str:
    return _verdicts([_difference(row) for row in rows])


def _verdicts(differences: Sequence[Estimate]) -> str:
    """How often it is better, worse, or neither can be said."""
    better = sum(found.excludes_zero and found.mean < 0 for found in differences)
    worse = sum(found.excludes_zero and found.mean > 0 for found in differences)
    parts = [
        f"{word} in {number} of {len(differences)}"
        for word, number in (
            ("better", better),
            ("worse", worse),
            ("no difference shown", len(differences) - better - worse),
        )
        if number
    ]
    return ", ".join(parts)
