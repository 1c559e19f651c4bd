"""From trainings to the numbers of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.efficacy.methods import CE, FULL, METHODS
from benchmarks.efficacy.sizes import GAPS, STARTS
from benchmarks.efficacy.statistics import Estimate, estimate, holm, p_value, paired

#: What is measured, and whether less of it is better.
MEASURES = {"bits_per_byte": True, "cloze_accuracy": False, "word_accuracy": False}
#: Comparisons besides those with cross-entropy alone: what is changed, and from what.
CONTRASTS = (
    ("optimal instead of rank matching (index pairs)", "optimal-index", "rank-index"),
    ("boundary instead of index pairs (optimal matching)", FULL, "optimal-index"),
    ("HAD taken out", "no-had", FULL),
    ("SL taken out", "no-sl", FULL),
    ("SD taken out", "no-sd", FULL),
    ("MultiLevelOT (optimal, boundary) instead of sequence-level KD", FULL, "sequence-kd"),
    ("MultiLevelOT (optimal, boundary) instead of ULD", FULL, "uld"),
    ("MultiLevelOT (optimal, boundary) instead of the released code's loss", FULL, "released"),
)

Setting = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A method in a setting.

    Attributes:
        method: its name.
        learning_rate, alpha: what the search chose.
        values: estimates of each measure over the seeds.
        differences: estimates of the same less cross-entropy alone, seed by seed; ``None`` for that itself.
        adjusted: p-value of the difference in bits per byte, adjusted for all comparisons of the table.
        seconds: mean processor time of a training.
    """

    method: str
    learning_rate: float
    alpha: float
    values: dict[str, Estimate]
    differences: dict[str, Estimate] | None
    adjusted: float | None
    seconds: float

    @property
    def verdict(self) -> str:
        """What the interval of the difference in bits per byte says."""
        if self.differences is None:
            return ""
        found = self.differences["bits_per_byte"]
        if not found.excludes_zero:
            return "no difference shown"
        return "better" if found.mean < 0 else "worse"


def settings(results: Sequence[dict[str, Any]]) -> list[Setting]:
    """Starts and gaps of the comparison."""
    found = {one["start"] for one in results if one["purpose"] == "final"}
    return [(start, gap) for start in STARTS if start in found for gap in GAPS]


def of(results: Sequence[dict[str, Any]], method: str, setting: Setting) -> list[dict[str, Any]]:
    """Trainings of the comparison with a method in a setting; cross-entropy alone has no teacher."""
    start, gap = setting
    return [
        found
        for found in results
        if found["purpose"] == "final"
        and (found["method"], found["start"], found["gap"]) == (method, start, "" if method == CE else gap)
    ]


def by_seed(
    results: Sequence[dict[str, Any]], method: str, setting: Setting, measure: str
) -> dict[int, float]:
    """A measure of a method in a setting, by seed."""
    return {found["seed"]: found[measure] for found in of(results, method, setting)}


def rows(results: Sequence[dict[str, Any]]) -> dict[Setting, list[Row]]:
    """The table: every method in every setting."""
    adjusted = holm(
        {
            f"{setting} {method.name}": p_value(
                by_seed(results, method.name, setting, "bits_per_byte"),
                by_seed(results, CE, setting, "bits_per_byte"),
            )
            for setting in settings(results)
            for method in METHODS
            if method.name != CE
        }
    )
    table = {}
    for setting in settings(results):
        table[setting] = [
            _row(results, method.name, setting, adjusted.get(f"{setting} {method.name}"))
            for method in METHODS
        ]
    return table


def checked(results: Sequence[dict[str, Any]], method: str, setting: Setting, measure: str) -> Estimate:
    """A method less cross-entropy alone at a learning rate that both were tried with, seed by seed."""
    start, _ = setting
    plain = {
        found["seed"]: found[measure]
        for found in results
        if (found["purpose"], found["start"]) == ("check", start)
    }
    return paired(by_seed(results, method, setting, measure), plain)


def _row(results: Sequence[dict[str, Any]], method: str, setting: Setting, adjusted: float | None) -> Row:
    found = of(results, method, setting)
    values = {name: estimate([one[name] for one in found]) for name in MEASURES}
    differences = None
    if method != CE:
        differences = {name: contrast(results, method, CE, setting, name) for name in MEASURES}
    return Row(
        method,
        found[0]["learning_rate"],
        found[0]["alpha"],
        values,
        differences,
        adjusted,
        estimate([one["processor_seconds"] for one in found]).mean,
    )


def contrast(
    results: Sequence[dict[str, Any]], method: str, other: str, setting: Setting, measure: str
) -> Estimate:
    """One method less another, seed by seed."""
    return paired(by_seed(results, method, setting, measure), by_seed(results, other, setting, measure))


def searched(
    results: Sequence[dict[str, Any]], method: str, setting: Setting
) -> dict[tuple[float, float], float]:
    """Bits per byte on the validation split of all that was tried, by learning rate and alpha."""
    start, gap = setting
    tried: dict[tuple[float, float], list[float]] = {}
    for found in results:
        if found["purpose"] == "search" and (found["method"], found["start"], found["gap"]) == (
            method,
            start,
            "" if method == CE else gap,
        ):
            tried.setdefault((found["learning_rate"], found["alpha"]), []).append(found["bits_per_byte"])
    return {setting: sum(values) / len(values) for setting, values in tried.items()}
