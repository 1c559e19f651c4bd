"""What is run: every training of the search and of the comparison, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.efficacy.methods import CE, FULL, METHODS
from benchmarks.efficacy.sizes import GAPS, STARTS, Size


@dataclass(frozen=True)
class Cell:
    """One method in one setting.

    Attributes:
        method: its name.
        start: where the student's training starts.
        gap: which teacher teaches; ``""`` for cross-entropy alone, which has none.
    """

    method: str
    start: str
    gap: str


@dataclass(frozen=True)
class Trial:
    """One training of one student.

    Attributes:
        purpose: ``"search"`` measures on the validation split, ``"final"`` on the test split, and so does
            ``"check"``: cross-entropy alone again, at a learning rate that the other methods were tried with.
        method, start, gap: as of `Cell`.
        learning_rate: peak.
        alpha: weight of distillation.
        seed: of the initial weights and of the order of the windows.
    """

    purpose: str
    method: str
    start: str
    gap: str
    learning_rate: float
    alpha: float
    seed: int

    @property
    def name(self) -> str:
        """Names the trial's file."""
        parts = [self.purpose, self.start, self.gap, self.method]
        return "-".join([*filter(None, parts), f"{self.learning_rate:g}", f"{self.alpha:g}", f"{self.seed}"])

    @property
    def cell(self) -> Cell:
        """What it is a trial of."""
        return Cell(self.method, self.start, self.gap)


def cells(starts: Sequence[str] = STARTS) -> list[Cell]:
    """Every method in every setting; cross-entropy alone once for both teachers."""
    return [
        Cell(method.name, start, gap)
        for start in starts
        for method in METHODS
        for gap in (("",) if method.name == CE else GAPS)
    ]


def grid(size: Size, cell: Cell) -> list[tuple[float, float]]:
    """Pairs of learning rate and alpha that are tried in a cell: as many in each."""
    scale = size.pretrained_rate if cell.start == "pretrained" else 1.0
    if cell.method == CE:
        return [(scale * rate, 0.0) for rate in size.plain_learning_rates]
    return [(scale * rate, alpha) for rate in size.learning_rates for alpha in size.alphas]


def search(size: Size, starts: Sequence[str] = STARTS) -> list[Trial]:
    """The trainings that settings are chosen by."""
    return [
        Trial("search", cell.method, cell.start, cell.gap, rate, alpha, seed)
        for cell in cells(starts)
        for rate, alpha in grid(size, cell)
        for seed in size.tuning_seeds
    ]


def choose(
    size: Size, found: Mapping[str, Mapping[str, Any]], starts: Sequence[str] = STARTS
) -> dict[Cell, tuple[float, float]]:
    """Settings with the fewest bits per byte on the validation split, a mean over the tuning seeds.

    Args:
        size: the preset.
        found: what each trial of the search found, by its name.
        starts: those to choose for.
    """
    chosen = {}
    for cell in cells(starts):
        scores = {setting: _score(size, found, cell, *setting) for setting in grid(size, cell)}
        chosen[cell] = min(scores, key=lambda setting: scores[setting])
    return chosen


def final(size: Size, chosen: Mapping[Cell, tuple[float, float]]) -> Iterator[Trial]:
    """The trainings that are compared, seed by seed, so that what is done first is whole."""
    for seed in size.seeds:
        for cell, (rate, alpha) in chosen.items():
            yield Trial("final", cell.method, cell.start, cell.gap, rate, alpha, seed)


def check(size: Size, found: Mapping[str, Mapping[str, Any]], starts: Sequence[str] = STARTS) -> list[Trial]:
    """Cross-entropy alone with the best of the learning rates that the other methods were tried with.

    It has no alpha and is tried with more learning rates than they are; this tells what that is worth.
    """
    trials = []
    for start in starts:
        cell = Cell(CE, start, "")
        shared = {rate for rate, _ in grid(size, Cell(FULL, start, GAPS[0]))}
        scores = {rate: _score(size, found, cell, rate, 0.0) for rate in sorted(shared)}
        best = min(scores, key=lambda rate: scores[rate])
        trials += [Trial("check", CE, start, "", best, 0.0, seed) for seed in size.seeds]
    return trials


def _score(
    size: Size, found: Mapping[str, Mapping[str, Any]], cell: Cell, rate: float, alpha: float
) -> float:
    """Bits per byte on the validation split, a mean over the tuning seeds."""
    trials = [
        Trial("search", cell.method, cell.start, cell.gap, rate, alpha, seed) for seed in size.tuning_seeds
    ]
    return _mean([found[trial.name]["bits_per_byte"] for trial in trials])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
