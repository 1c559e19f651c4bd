"""What was found, in words that are made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.efficacy.analysis import CONTRASTS, Row, Setting, checked, contrast, settings
from benchmarks.efficacy.methods import BY_NAME, CE, FULL, METHODS
from benchmarks.efficacy.sizes import STARTS
from benchmarks.efficacy.statistics import LEVEL, Estimate

#: The other methods, in the order of the table; the ablations are among what is changed one by one.
_OTHERS = ("sequence-kd", "uld", "released", "rank-index", "optimal-index")


_STARTS = {"scratch": "from scratch", "pretrained": "trained on other text first"}


def claim(results: Sequence[dict[str, Any]], table: dict[Setting, list[Row]], seeds: int) -> str:
    """A list: bits per byte, the check, single changes, the tasks; no more than the tables show."""
    starts = " or ".join(_STARTS[start] for start in STARTS if start in {start for start, _ in table})
    changes = []
    for what, method, other in CONTRASTS:
        if other in (FULL, "rank-index", "optimal-index"):  # parts of MultiLevelOT; the table has the others
            found = [contrast(results, method, other, one, "bits_per_byte") for one in settings(results)]
            changes.append(f"{what}: {_verdicts(found)}")
    intro = (
        f"With {seeds} seeds in each of {len(table)} settings (a student {starts}; a better or a worse "
        "teacher), bits per byte of held-out text less those of cross-entropy alone (range of the settings' "
        "means of paired differences; below 0 is better; verdicts by 95 % intervals):"
    )
    lines = [
        intro,
        *(_against(table, name) for name in (FULL, *_OTHERS)),
        _adjusted(table),
        _best(table),
        _checked(results),
        *(f"Changing one thing in MultiLevelOT, {change}." for change in changes),
        f"{_tasks(table)}.",
    ]
    return "\n- ".join(lines)


def _checked(results: Sequence[dict[str, Any]]) -> str:
    """The same beside cross-entropy alone at a learning rate that the others were tried with."""
    found = {
        method.name: [checked(results, method.name, one, "bits_per_byte") for one in settings(results)]
        for method in METHODS
        if method.name != CE
    }
    together = [one for several in found.values() for one in several]
    return (
        "Cross-entropy alone was tried with more learning rates; against it at a rate that all were tried "
        f"with, {BY_NAME[FULL].label} is {_verdicts(found[FULL])}, and all methods "
        f"together are {_verdicts(together)}."
    )


def _adjusted(table: dict[Setting, list[Row]]) -> str:
    """How many differences remain, of all methods, once their number is accounted for."""
    found = [row for rows in table.values() for row in rows if row.adjusted is not None]
    shown = [row for row in found if row.differences and row.differences["bits_per_byte"].excludes_zero]
    kept = [row for row in shown if row.adjusted is not None and row.adjusted < 1 - LEVEL]
    return (
        f"Of {len(shown)} differences shown, ablations included, {len(kept)} "
        f"({sum(row.verdict == 'better' for row in kept)} better, "
        f"{sum(row.verdict == 'worse' for row in kept)} worse) have p < 0.05 after Holm's adjustment for all "
        f"{len(found)} comparisons."
    )


def _tasks(table: dict[Setting, list[Row]]) -> str:
    """How often the other measures go up or down, of all methods."""
    parts = []
    for measure, name in (("cloze_accuracy", "the cloze test"), ("word_accuracy", "words completed")):
        found = [row.differences[measure] for rows in table.values() for row in rows if row.differences]
        up = sum(one.excludes_zero and one.mean > 0 for one in found)
        down = sum(one.excludes_zero and one.mean < 0 for one in found)
        parts.append(f"{name} {up} better and {down} worse")
    return f"Of {len(found)} comparisons with cross-entropy alone, intervals show " + ", ".join(parts)


def _against(table: dict[Setting, list[Row]], method: str) -> str:
    """A method beside cross-entropy alone."""
    found = [row.differences for rows in table.values() for row in rows if row.method == method]
    differences = [one["bits_per_byte"] for one in found if one is not None]
    means = [one.mean for one in differences]
    return f"{BY_NAME[method].label}, {min(means):+.3f} to {max(means):+.3f}: {_verdicts(differences)}."


def _best(table: dict[Setting, list[Row]]) -> str:
    """Which method has the lowest mean in how many settings."""
    best = [min(rows, key=lambda row: row.values["bits_per_byte"].mean).method for rows in table.values()]
    counts = {name: best.count(name) for name in BY_NAME if name in best}
    parts = [f"{BY_NAME[name].label.strip()} in {count} of {len(best)}" for name, count in counts.items()]
    return f"Fewest on average: {', '.join(parts)}."


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
