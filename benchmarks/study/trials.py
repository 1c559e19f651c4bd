"""What is run: every training of the search and of the comparison, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.study.methods import CE, METHODS
from benchmarks.study.sizes import Setting, Size

#: What is compared on every amount of text, and in every setting.
AXIS = (CE, "optimal-boundary", "text-boundaries", "text")


class Cell(NamedTuple):
    """One method with one student and one amount of text.

    Attributes:
        setting: the student.
        method: its name.
        amount: bytes of text.
    """

    setting: Setting
    method: str
    amount: int


class Choice(NamedTuple):
    """What a cell is tuned in: peak learning rate, weight of distillation, and how often the text is read."""

    learning_rate: float
    alpha: float
    passes: int


@dataclass(frozen=True)
class Trial:
    """One training of one student.

    Attributes:
        purpose: ``"search"`` measures on the validation split, ``"final"`` on the test split.
        cell: what it is a trial of.
        choice: settings.
        seed: of the initial weights and of the order of the windows.
    """

    purpose: str
    cell: Cell
    choice: Choice
    seed: int

    @property
    def name(self) -> str:
        """Names the trial's file."""
        (setting, method, amount), (rate, alpha, passes) = self.cell, self.choice
        return f"{self.purpose}-{setting.name}-{method}-{amount}-{rate:g}-{alpha:g}-{passes}-{self.seed}"


def cells(size: Size) -> list[list[Cell]]:
    """What is compared, in the order in which it is done.

    Returns:
        Every method with the first student on the compared amount of text; then `AXIS` with it on the other
        amounts; then `AXIS` with the other students.
    """
    first, *others = size.settings
    further = [amount for amount in size.amounts if amount != size.compared]
    return [
        [Cell(first, method.name, size.compared) for method in METHODS],
        [Cell(first, method, amount) for amount in further for method in AXIS],
        [Cell(setting, method, size.compared) for setting in others for method in AXIS],
    ]


def grid(size: Size, cell: Cell) -> list[Choice]:
    """Learning rates and alphas that are tried in a cell, as many in each, at the middle number of passes."""
    passes = size.tried_passes(cell.amount)
    middle = passes[len(passes) // 2]
    scale = size.pretrained_rate if cell.setting.start == "pretrained" else 1.0
    if cell.method == CE:
        return [Choice(scale * rate, 0.0, middle) for rate in size.plain_learning_rates]
    return [Choice(scale * rate, alpha, middle) for rate in size.learning_rates for alpha in size.alphas]


def passes(size: Size, cell: Cell, bits: Mapping[str, float]) -> list[Choice]:
    """Numbers of passes that are tried with the best of `grid`."""
    best = choose(size, cell, grid(size, cell), bits)
    return [best._replace(passes=number) for number in size.tried_passes(cell.amount)]


def search(size: Size, cell: Cell, choices: Sequence[Choice]) -> list[Trial]:
    """The trainings that a choice is made by."""
    return [Trial("search", cell, choice, seed) for choice in choices for seed in size.tuning_seeds]


def choose(size: Size, cell: Cell, choices: Sequence[Choice], bits: Mapping[str, float]) -> Choice:
    """The choice with the fewest bits per byte on the validation split, a mean over the tuning seeds.

    Args:
        size: the preset.
        cell: what is tuned.
        choices: those that were tried.
        bits: bits per byte by the trial's name.
    """
    return min(choices, key=lambda choice: sum(bits[one.name] for one in search(size, cell, [choice])))


def final(size: Size, chosen: Mapping[Cell, Choice]) -> list[Trial]:
    """The trainings that are compared, seed by seed, so that what is done first is whole."""
    return [Trial("final", cell, choice, seed) for seed in size.seeds for cell, choice in chosen.items()]
