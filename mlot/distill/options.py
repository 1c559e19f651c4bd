"""Settings of a run, and the two sets of defaults."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mlot import MultiLevelOTConfig, _checks
from mlot._typing import Matching
from mlot.distill.errors import DistillError
from mlot.distill.vocabularies import SMALLEST_VOCABULARY
from mlot.training._arguments import Pairs


@dataclass(frozen=True)
class Options:
    """What the command's options say; the defaults are those of the command without ``--quick``.

    Raises:
        DistillError: a setting is of the wrong kind or out of range.
    """

    text: str | None = None
    output: str = "distill-output"
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: int | None = None
    teacher: str | None = None
    student: str | None = None
    save_teacher: str | None = None
    saved_teacher: str | None = None
    baseline: bool | None = None
    seed: int = 0
    threads: int | None = None
    held_out: float = 0.05
    length: int = 128
    batch_size: int = 16
    accumulation: int = 1
    steps: int = 400
    learning_rate: float = 3e-3
    teacher_steps: int = 700
    teacher_learning_rate: float = 4e-3
    teacher_vocabulary: int = 4096
    teacher_width: int = 160
    teacher_layers: int = 3
    student_vocabulary: int = 2048
    student_width: int = 96
    student_layers: int = 3
    evaluations: int = 10
    alpha: float = 0.15
    k: int = 50
    matching: Matching = "optimal"
    pairs: Pairs = "boundary"
    temperature: float = 1.0
    sequence_temperature: float = 2.0

    def __post_init__(self) -> None:
        try:
            self._check()
        except (TypeError, ValueError) as error:
            raise (
                error if isinstance(error, DistillError) else DistillError(f"--{_dashed(str(error))}")
            ) from error

    def _check(self) -> None:
        if (self.teacher is None) != (self.student is None):
            given, lacking = ("teacher", "student") if self.student is None else ("student", "teacher")
            raise DistillError(f"--{lacking}: expected a folder, since --{given} is given, got none")
        if self.saved_teacher is not None and self.teacher is None:
            raise DistillError(
                "--teacher: expected the folder that has the tokenizer of the saved teacher, got none"
            )
        if self.saved_teacher is not None and self.save_teacher is not None:
            raise DistillError("--save-teacher: expected none beside --saved-teacher, got both")
        for name in ("batch_size", "accumulation", "steps", "teacher_steps", "evaluations"):
            _checks.count(name, getattr(self, name))
        _checks.count("seed", self.seed, least=0)
        _checks.count("checkpoint_every", self.checkpoint_every, least=0, allow_none=True)
        _checks.count("threads", self.threads, allow_none=True)
        _checks.count("length", self.length, least=8)
        for name in ("teacher_layers", "student_layers"):
            _checks.count(name, getattr(self, name))
        for name in ("teacher_width", "student_width"):
            _checks.count(name, getattr(self, name), least=32)
            if getattr(self, name) % 32:
                raise ValueError(f"{name}: expected a multiple of 32, got {getattr(self, name)}")
        for name in ("teacher_vocabulary", "student_vocabulary"):
            _checks.count(name, getattr(self, name), least=SMALLEST_VOCABULARY)
        for name in ("learning_rate", "teacher_learning_rate"):
            _checks.number(name, getattr(self, name))
        _checks.number("alpha", self.alpha)
        _checks.choice("pairs", self.pairs, ("boundary", "index"))
        if not (math.isfinite(self.held_out) and 0 < self.held_out < 1):
            raise ValueError(f"held_out: expected a number between 0 and 1, got {self.held_out}")
        self.config()

    @property
    def compares(self) -> bool:
        """Whether a student is trained by cross-entropy alone, too: if asked for, or if all is made here."""
        return self.teacher is None if self.baseline is None else self.baseline

    def config(self) -> MultiLevelOTConfig:
        """Settings of the loss."""
        return MultiLevelOTConfig(
            k=self.k,
            matching=self.matching,
            temperature=self.temperature,
            sequence_temperature=self.sequence_temperature,
        )

    def identity(self) -> dict[str, Any]:
        """Settings that a stopped run must share with the one that continues it."""
        return {name: value for name, value in asdict(self).items() if name not in _OF_A_CALL}

    def as_dict(self) -> dict[str, Any]:
        """Every setting by its name."""
        return asdict(self)


#: Settings that change nothing in what comes out, but rounding.
_OF_A_CALL = frozenset({"output", "overwrite", "resume", "checkpoint_every", "threads"})

#: What ``--quick`` changes.
QUICK: dict[str, Any] = {
    "held_out": 0.02,
    "batch_size": 8,
    "steps": 100,
    "teacher_steps": 150,
    "teacher_vocabulary": 2048,
    "teacher_width": 128,
    "student_vocabulary": 1024,
    "student_width": 64,
    "evaluations": 5,
}


def _dashed(message: str) -> str:
    """Message of a check with the option's name in it as it is typed."""
    name, colon, rest = message.partition(":")
    return name.replace("_", "-") + colon + rest
