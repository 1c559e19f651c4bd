"""What was found, in words that are made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.efficacy.analysis import CONTRASTS, Row, Setting, contrast, settings
from benchmarks.efficacy.methods import BY_NAME, FULL
from benchmarks.efficacy.statistics import Estimate

#: The other methods, in the order of the table; the ablations are among what is changed one by one.
_OTHERS = ("sequence-kd", "uld", "released", "rank-index", "optimal-index")


def claim(results: Sequence[dict[str, Any]], table: dict[Setting, list[Row]], seeds: int) -> str:
    """Four sentences: MultiLevelOT, others, the best, and single changes; no more than the tables show."""
    own, *others = (_against(table, name) for name in (FULL, *_OTHERS))
    changes = [
        f"{what}, {_verdicts([contrast(results, a, b, setting, 'bits_per_byte') for setting in settings()])}"
        for what, a, b in CONTRASTS
    ]
    return (
        f"With {seeds} seeds in each of {len(table)} settings (a student from scratch or trained on other "
        "text first; a better or a worse teacher), bits per byte of held-out text less those of "
        "cross-entropy alone (range of the settings' means of paired differences; below 0 is better): "
        f"{own}. "
        f"The others, likewise: {'; '.join(others)}. "
        f"The fewest bits per byte on average: {_best(table)}. "
        f"Changing one thing: {'; '.join(changes)}."
    )


def _against(table: dict[Setting, list[Row]], method: str) -> str:
    """A method beside cross-entropy alone."""
    found = [row.differences for setting in settings() for row in table[setting] if row.method == method]
    differences = [one["bits_per_byte"] for one in found if one is not None]
    means = [one.mean for one in differences]
    return f"{BY_NAME[method].label}, {min(means):+.3f} to {max(means):+.3f}, {_verdicts(differences)}"


def _best(table: dict[Setting, list[Row]]) -> str:
    """Which method has the lowest mean in how many settings."""
    best = [min(rows, key=lambda row: row.values["bits_per_byte"].mean).method for rows in table.values()]
    counts = {name: best.count(name) for name in BY_NAME if name in best}
    return "; ".join(
        f"{BY_NAME[name].label.strip()} in {count} of {len(best)}" for name, count in counts.items()
    )


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
