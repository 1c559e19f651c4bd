"""What a run measured: as data, in a sentence, as a table for the terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from mlot.align import AlignmentReport
from mlot.distill.output import FORMAT
from mlot.training._inspect import Floats, Pictures
from mlot.training._inspect_text import TextPicture
from mlot.training._score import Score, difference_interval

#: With fewer held-out documents than this, resampling them says nothing.
FEWEST_DOCUMENTS = 10

TEACHER, CE, MLOT = "teacher", "student-ce", "student-mlot"
LABELS = {TEACHER: "teacher", CE: "student, CE alone", MLOT: "student, MultiLevelOT"}
Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ModelReport:
    """What a run measured of one model.

    Of a teacher that was not loaded there are no ``parameters`` and no ``score``; one from a folder took 0
    ``steps``. ``seconds`` are those of training, evaluations included; ``curve`` and what was ``logged`` are
    pairs of step and value, ``samples`` pairs of prompt and continuation.
    """

    name: str
    parameters: int | None
    vocabulary: int
    bytes_per_token: float
    steps: int
    seconds: float
    score: Score | None
    curve: list[tuple[int, float]]
    logged: dict[str, list[tuple[int, float]]]
    samples: list[tuple[str, str]]

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the held-out text, where it was measured."""
        return None if self.score is None else self.score.bits_per_byte

    def interval(self, seed: int) -> Interval | None:
        """Bootstrap interval of the bits per byte at 95 % over held-out documents; ``None`` for a handful."""
        return None if self.score is None else _interval(self.score, np.zeros_like(self.score.bits), seed)

    def as_dict(self, seed: int) -> dict[str, Any]:
        """Everything, for JSON."""
        logged = {
            name: [{"step": step, "value": _finite(value)} for step, value in points]
            for name, points in self.logged.items()
        }
        plain = {
            name: getattr(self, name) for name in ("parameters", "vocabulary", "bytes_per_token", "steps")
        }
        return plain | {
            "seconds": round(self.seconds, 2),
            "bits_per_byte": self.bits_per_byte,
            "interval_95": self.interval(seed),
            "curve": [{"step": step, "bits_per_byte": value} for step, value in self.curve],
            "logged": logged,
            "samples": [{"prompt": prompt, "continuation": text} for prompt, text in self.samples],
        }


@dataclass(frozen=True, eq=False)
class RunReport:
    """What a run measured: of the teacher, of a student by cross-entropy alone where there is one, and of the
    student by MultiLevelOT; how both tokenizations of held-out text fit together; what the loss says of some
    windows and sees of one sentence; what a reader should know.
    """

    models: tuple[ModelReport, ...]
    text: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, str]
    alignment: AlignmentReport
    diagnostics: dict[str, Floats]
    pictures: Pictures
    notices: list[str]
    seconds: float
    text_picture: TextPicture | None = None

    def model(self, name: str) -> ModelReport | None:
        """The model of that name, if the run has it."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def distilled(self) -> ModelReport:
        """The student by MultiLevelOT."""
        return self.models[-1]

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.settings["seed"])

    @property
    def difference(self) -> float | None:
        """Bits per byte of the MultiLevelOT student less those of the other; below 0: better."""
        scores = self._scores()
        return scores and scores[0].bits_per_byte - scores[1].bits_per_byte

    @property
    def interval(self) -> Interval | None:
        """Bootstrap interval of the difference at 95 % over held-out documents; ``None`` for a handful."""
        scores = self._scores()
        return scores and _interval(scores[0], scores[1].bits, self.seed)

    def _scores(self) -> tuple[Score, Score] | None:
        plain = self.model(CE)
        if plain is None or plain.score is None or self.distilled.score is None:
            return None
        return self.distilled.score, plain.score

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        compared = {"bits_per_byte": self.difference, "interval_95": self.interval}
        diagnostics = {name: [*map(_finite, values.tolist())] for name, values in self.diagnostics.items()}
        return {
            "format": FORMAT,
            "verdict": verdict(self),
            "environment": self.environment,
            "settings": self.settings,
            "text": self.text,
            "models": {model.name: model.as_dict(self.seed) for model in self.models},
            "difference": None if self.difference is None else compared,
            "alignment": asdict(self.alignment) | {"warnings": list(self.alignment.warnings)},
            "diagnostics": diagnostics,
            "matches": [asdict(match) for match in self.pictures.matches],
            "notices": self.notices,
            "seconds": round(self.seconds, 2),
        }


def _interval(score: Score, less: Floats, seed: int) -> Interval | None:
    """Interval of bits per byte less others of the same documents."""
    if len(score.sizes) < FEWEST_DOCUMENTS:
        return None
    return difference_interval(score, Score(less, score.sizes), seed=seed)


def _finite(value: float) -> float | None:
    """The value, or nothing where JSON has no word for it."""
    return value if math.isfinite(value) else None


def verdict(report: RunReport) -> str:
    """Say in a sentence what came out, no more than was measured."""
    difference, interval = report.difference, report.interval
    if difference is None:
        steps, curve = report.distilled.steps, report.distilled.curve
        return (
            f"On this text, with this seed, {steps:,} steps with MultiLevelOT took the student from "
            f"{curve[0][1]:.4f} to {curve[-1][1]:.4f} bits per byte of held-out text; no student was trained "
            "by cross-entropy alone, so what the teacher added was not measured."
        )
    measured = (
        "On this text, with this seed, bits per byte of the student trained with MultiLevelOT less those of "
        f"the one trained by cross-entropy alone: {difference:+.4f}"
    )
    if interval is None:
        return f"{measured}. Too few held-out documents to say what chance can do."
    low, high = interval
    better = "better" if difference < 0 else "worse"
    result = f"MultiLevelOT is {better} here; another seed may say otherwise"
    if low <= 0 <= high:
        result = "the held-out text does not tell them apart"
    return f"{measured} (95 % interval over documents {low:+.4f} to {high:+.4f}): {result}."


def cells(model: ModelReport) -> tuple[str, ...]:
    """A model's figures: bits per byte, weights, tokens, bytes per token, steps, seconds."""
    return (
        "-" if model.score is None else f"{model.score.bits_per_byte:.4f}",
        "-" if model.parameters is None else f"{model.parameters:,}",
        f"{model.vocabulary:,}",
        f"{model.bytes_per_token:.2f}",
        f"{model.steps:,}" if model.steps else "-",
        f"{model.seconds:.0f}" if model.steps else "-",
    )


def table(report: RunReport) -> Table:
    """Results for the terminal."""
    shown = Table(title="held-out text")
    shown.add_column("model", no_wrap=True)
    for heading in ("bits/byte", "weights", "tokens", "steps", "seconds"):
        shown.add_column(heading, justify="right")
    for model in report.models:
        bits, weights, tokens, _, steps, seconds = cells(model)
        shown.add_row(LABELS[model.name], bits, weights, tokens, steps, seconds)
    return shown
