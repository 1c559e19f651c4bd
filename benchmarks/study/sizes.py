"""Presets: how large the study is. What is compared, and how, is the same in all."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Setting:
    """A student.

    Attributes:
        tokenizer: ``"own"``: a byte-level BPE made for the study; else the name of a published tokenizer.
        start: ``"scratch"``, or ``"pretrained"`` on other text first.
    """

    tokenizer: str
    start: str

    @property
    def name(self) -> str:
        """Names files."""
        return f"{self.tokenizer}-{self.start}"

    @property
    def label(self) -> str:
        """For readers."""
        tokenizer = "its own tokenizer" if self.tokenizer == "own" else f"the tokenizer of {self.tokenizer}"
        start = "from scratch" if self.start == "scratch" else "trained on a novel first"
        return f"student with {tokenizer}, {start}"


@dataclass(frozen=True)
class Size:
    """A preset.

    Attributes:
        name: of it.
        settings: students; the first is trained on every amount of text, all others on the compared one.
        width, layers: of the students.
        vocabulary: tokens of the student's own tokenizer.
        length: tokens of a window, in either tokenizer.
        batch: windows of a step.
        amounts: bytes of text to train on.
        compared: which of the amounts all methods are compared at.
        passes: for each amount, how often the text is read: the numbers that are tried.
        measured: windows that are measured on, at most.
        other_steps: of training on other text first.
        other_rate: learning rate of that.
        learning_rates, alphas: what each method is tried with.
        plain_learning_rates: what cross-entropy alone is tried with, which has no alpha: as many trials.
        pretrained_rate: factor of learning rates for students that are trained on other text first.
        seeds, tuning_seeds: of the comparison and of the search.
        k: columns kept by the paper's matchings.
        targets: tokens listed at each position by the plan from the text.
    """

    name: str
    settings: tuple[Setting, ...]
    width: int
    layers: int
    vocabulary: int
    length: int
    batch: int
    amounts: tuple[int, ...]
    compared: int
    passes: tuple[tuple[int, ...], ...]
    measured: int
    other_steps: int
    other_rate: float
    learning_rates: tuple[float, ...]
    alphas: tuple[float, ...]
    plain_learning_rates: tuple[float, ...]
    pretrained_rate: float
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    k: int = 50
    targets: int = 256

    def __post_init__(self) -> None:
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(f"tuning_seeds: expected none of seeds {self.seeds}, got {self.tuning_seeds}")
        if self.compared not in self.amounts:
            raise ValueError(f"compared: expected one of amounts {self.amounts}, got {self.compared}")
        if len(self.passes) != len(self.amounts):
            raise ValueError(
                f"passes: expected {len(self.amounts)}, one for each amount, got {len(self.passes)}"
            )
        if not set(self.learning_rates) <= set(self.plain_learning_rates):
            raise ValueError(
                f"plain_learning_rates: expected all of learning_rates {self.learning_rates} among them, "
                f"got {self.plain_learning_rates}"
            )
        if len(self.plain_learning_rates) != len(self.learning_rates) * len(self.alphas):
            raise ValueError(
                f"plain_learning_rates: expected {len(self.learning_rates) * len(self.alphas)}, as many as "
                f"the other methods' trials, got {len(self.plain_learning_rates)}"
            )

    def tried_passes(self, amount: int) -> tuple[int, ...]:
        """How often an amount of text is read: the numbers that are tried."""
        return self.passes[self.amounts.index(amount)]


OWN, PRETRAINED, LLAMA2 = (
    Setting("own", "scratch"),
    Setting("own", "pretrained"),
    Setting("llama2", "scratch"),
)

_TINY = Size(
    name="tiny",
    settings=(OWN,),
    width=32,
    layers=1,
    vocabulary=400,
    length=32,
    batch=4,
    amounts=(800, 1600),
    compared=1600,
    passes=((1, 2), (1, 2)),
    measured=8,
    other_steps=4,
    other_rate=3e-3,
    learning_rates=(2e-3,),
    alphas=(0.15, 0.9),
    plain_learning_rates=(2e-3, 4e-3),
    pretrained_rate=0.5,
    seeds=(0, 1),
    tuning_seeds=(1000,),
)

_SMALL = Size(
    name="small",
    settings=(OWN,),
    width=96,
    layers=3,
    vocabulary=2048,
    length=128,
    batch=16,
    amounts=(40_000, 80_000, 160_000, 320_000),
    compared=80_000,
    passes=((5, 10, 20), (5, 10, 20), (3, 6, 12), (3, 6, 12)),
    measured=300,
    other_steps=600,
    other_rate=3e-3,
    learning_rates=(2e-3, 6e-3),
    alphas=(0.15, 0.9, 5.4),
    plain_learning_rates=(7e-4, 1e-3, 2e-3, 4e-3, 6e-3, 1.2e-2),
    pretrained_rate=0.3,
    seeds=(0, 1, 2, 3, 4),
    tuning_seeds=(1000,),
)

_LARGE = replace(
    _SMALL,
    name="large",
    settings=(OWN, PRETRAINED, LLAMA2),
    width=128,
    layers=4,
    amounts=(50_000, 100_000, 200_000, 400_000),
    compared=100_000,
    measured=400,
    other_steps=1000,
)

#: Presets by name.
SIZES = {size.name: size for size in (_TINY, _SMALL, _LARGE)}
