"""How large a study is: everything about it that is not a method."""

from __future__ import annotations

from dataclasses import dataclass

#: Where a student's training starts.
STARTS = ("scratch", "pretrained")
#: Which of the two teachers teaches.
GAPS = ("wide", "narrow")


@dataclass(frozen=True)
class ModelSize:
    """A Llama and how long it is trained by cross-entropy before it takes part.

    Attributes:
        width: of the hidden states, a multiple of 32.
        layers: number of blocks.
        steps: of training.
        learning_rate: peak.
    """

    width: int
    layers: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Size:
    """A preset of the study.

    Attributes:
        name: of the preset.
        student: the student; its steps are those of its training on other text, where it starts from that.
        teachers: the better teacher, of the wide gap, and the worse one, of the narrow gap.
        student_vocabulary, teacher_vocabulary: tokens of the two tokenizers.
        length: most tokens of a window.
        batch: windows in a step, of the student.
        steps: of every student that is compared.
        pool: windows that students train on.
        windows: how many of the pool each seed draws; its students see no others.
        generated: windows written by each teacher, a multiple of ``pool``.
        measured: most windows of each held-out split.
        cloze: words drawn from them for the cloze test.
        teacher_batch: windows in a step of what is trained beforehand.
        other_bytes: bytes of the other text.
        k: columns that MultiLevelOT keeps.
        seeds: of the comparison. A seed draws the windows and their order, and the initial weights of
            students from scratch.
        tuning_seeds: of the search, none of them among ``seeds``.
        pretrained_rate: what every learning rate of the search is multiplied by for a student that starts
            from other text.
        learning_rates: those tried for every method that has an alpha.
        alphas: weights tried for the same; the first is the paper's.
        plain_learning_rates: those tried for cross-entropy alone, which has no alpha: as many as the others'
            combinations.
    """

    name: str
    student: ModelSize
    teachers: tuple[ModelSize, ModelSize]
    student_vocabulary: int
    teacher_vocabulary: int
    length: int
    batch: int
    steps: int
    pool: int
    windows: int
    generated: int
    measured: int
    cloze: int
    teacher_batch: int
    other_bytes: int
    k: int
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    pretrained_rate: float
    learning_rates: tuple[float, ...]
    alphas: tuple[float, ...]
    plain_learning_rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(f"tuning_seeds: expected none of seeds {self.seeds}, got {self.tuning_seeds}")
        if self.generated % self.pool or self.windows > self.pool:
            raise ValueError(
                f"generated, windows: expected a multiple of pool {self.pool} and at most as many, "
                f"got {self.generated} and {self.windows}"
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

    def teacher(self, gap: str) -> ModelSize:
        """The teacher of a gap."""
        return self.teachers[GAPS.index(gap)]


_TINY = Size(
    name="tiny",
    student=ModelSize(32, 1, 4, 3e-3),
    teachers=(ModelSize(64, 1, 8, 3e-3), ModelSize(32, 1, 4, 3e-3)),
    student_vocabulary=300,
    teacher_vocabulary=340,
    length=24,
    batch=4,
    steps=3,
    pool=16,
    windows=12,
    generated=32,
    measured=8,
    cloze=6,
    teacher_batch=8,
    other_bytes=20_000,
    k=12,
    seeds=(0, 1),
    tuning_seeds=(1000,),
    pretrained_rate=0.5,
    learning_rates=(1e-3,),
    alphas=(0.15, 1.5),
    plain_learning_rates=(1e-3, 2e-3),
)

_SMALL = Size(
    name="small",
    student=ModelSize(64, 2, 800, 4e-3),
    teachers=(ModelSize(128, 4, 1200, 2e-3), ModelSize(96, 2, 400, 3e-3)),
    student_vocabulary=512,
    teacher_vocabulary=1024,
    length=64,
    batch=4,
    steps=220,
    pool=440,
    windows=220,
    generated=880,
    measured=500,
    cloze=300,
    teacher_batch=32,
    other_bytes=800_000,
    k=50,
    seeds=(0, 1, 2, 3, 4),
    tuning_seeds=(1000,),
    pretrained_rate=0.3,
    learning_rates=(2e-3, 4e-3),
    alphas=(0.15, 0.9, 5.4),
    plain_learning_rates=(1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3),
)

# No larger than the text allows: the teachers read a megabyte.
_LARGE = Size(
    name="large",
    student=ModelSize(128, 4, 3000, 2e-3),
    teachers=(ModelSize(384, 6, 1200, 1e-3), ModelSize(192, 3, 400, 2e-3)),
    student_vocabulary=1024,
    teacher_vocabulary=2048,
    length=128,
    batch=8,
    steps=400,
    pool=800,
    windows=400,
    generated=3200,
    measured=500,
    cloze=1000,
    teacher_batch=32,
    other_bytes=5_000_000,
    k=50,
    seeds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    tuning_seeds=(1000, 1001),
    pretrained_rate=0.3,
    learning_rates=(1e-3, 2e-3, 4e-3),
    alphas=(0.15, 0.9, 5.4),
    plain_learning_rates=(0.5e-3, 0.7e-3, 1e-3, 1.4e-3, 2e-3, 2.8e-3, 4e-3, 5.6e-3, 8e-3),
)

SIZES = {size.name: size for size in (_TINY, _SMALL, _LARGE)}
