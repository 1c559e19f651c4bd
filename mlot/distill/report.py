"""What a run found: as data, in a sentence, as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from mlot.align import AlignmentReport
from mlot.distill.output import FORMAT
from mlot.distill.pictures import Floats, Pictures
from mlot.training._score import Score, difference_interval

#: With fewer held-out documents than this, resampling them says nothing.
FEWEST_DOCUMENTS = 10

TEACHER, CE, MLOT = "teacher", "student-ce", "student-mlot"
LABELS = {TEACHER: "teacher", CE: "student, CE alone", MLOT: "student, MultiLevelOT"}

Interval = tuple[float, float]
_BITS = "eval_bits_per_byte"


@dataclass(frozen=True, eq=False)
class ModelReport:
    """What a run found about one model.

    Attributes:
        name: ``"teacher"``, ``"student-ce"`` or ``"student-mlot"``.
        parameters: number of weights; ``None`` for a teacher that was not loaded.
        vocabulary: number of tokens.
        bytes_per_token: of the held-out text.
        steps: of training here; 0 for a teacher from a folder.
        seconds: of training here, evaluations included.
        score: bits for each held-out document; ``None`` for a teacher that was not loaded.
        curve: pairs of step and bits per byte.
        logged: for each term that was logged, pairs of step and value.
        samples: pairs of prompt and continuation.
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
        if self.score is None or len(self.score.sizes) < FEWEST_DOCUMENTS:
            return None
        nothing = Score(np.zeros_like(self.score.sizes), self.score.sizes)
        return difference_interval(self.score, nothing, seed=seed)

    def as_dict(self, seed: int) -> dict[str, Any]:
        """Everything, for JSON."""
        interval = self.interval(seed)
        return {
            "parameters": self.parameters,
            "vocabulary": self.vocabulary,
            "bytes_per_token": self.bytes_per_token,
            "steps": self.steps,
            "seconds": round(self.seconds, 2),
            "bits_per_byte": self.bits_per_byte,
            "interval_95": interval and list(interval),
            "curve": [{"step": step, "bits_per_byte": value} for step, value in self.curve],
            "logged": {
                name: [{"step": step, "value": _finite(value)} for step, value in points]
                for name, points in self.logged.items()
            },
            "samples": [{"prompt": prompt, "continuation": text} for prompt, text in self.samples],
        }


def bits_curve(history: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Pairs of step and bits per byte in a trainer's log."""
    return sorted({int(entry["step"]): float(entry[_BITS]) for entry in history if _BITS in entry}.items())


#: Of a trainer's log, what is no term of training.
_NO_TERMS = ("step", "epoch", "total_flos", "num_input_tokens_seen")


def logged_terms(history: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """For each number that a trainer logged while training, pairs of step and value."""
    found: dict[str, dict[int, float]] = {}
    for entry in history:
        for name, value in entry.items():
            if (
                name in _NO_TERMS
                or name.startswith(("eval_", "train_"))
                or not isinstance(value, int | float)
            ):
                continue
            found.setdefault(name, {})[int(entry["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in found.items()}


@dataclass(frozen=True, eq=False)
class RunReport:
    """What a run found.

    Attributes:
        models: the teacher, the student by cross-entropy alone where there is one, the student by
            MultiLevelOT.
        text: source and sizes of the text.
        settings: options of the run.
        environment: versions and hardware.
        alignment: how the two tokenizations of a sample of the held-out text fit together.
        diagnostics: what `mlot.MultiLevelOTResult.diagnostics` says of some windows.
        pictures: one sentence as both models see it.
        notices: what a reader of the figures should know.
        seconds: of the whole run.
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
        plain = self.model(CE)
        if plain is None or plain.score is None or self.distilled.score is None:
            return None
        return self.distilled.score.bits_per_byte - plain.score.bits_per_byte

    @property
    def interval(self) -> Interval | None:
        """Bootstrap interval of the difference at 95 % over held-out documents; ``None`` for a handful."""
        plain = self.model(CE)
        if plain is None or plain.score is None or self.distilled.score is None:
            return None
        if len(plain.score.sizes) < FEWEST_DOCUMENTS:
            return None
        return difference_interval(self.distilled.score, plain.score, seed=self.seed)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        interval = self.interval
        compared = {"bits_per_byte": self.difference, "interval_95": interval and list(interval)}
        return {
            "format": FORMAT,
            "verdict": verdict(self),
            "environment": self.environment,
            "settings": self.settings,
            "text": self.text,
            "models": {model.name: model.as_dict(self.seed) for model in self.models},
            "difference": None if self.difference is None else compared,
            "alignment": asdict(self.alignment) | {"warnings": list(self.alignment.warnings)},
            "diagnostics": {
                name: [_finite(value) for value in values.tolist()]
                for name, values in self.diagnostics.items()
            },
            "matches": [asdict(match) for match in self.pictures.matches],
            "notices": self.notices,
            "seconds": round(self.seconds, 2),
        }


def _finite(value: float) -> float | None:
    """The value, or nothing where JSON has no word for it."""
    return value if math.isfinite(value) else None


def verdict(report: RunReport) -> str:
    """Say in a sentence what came out, no more than was measured."""
    difference, interval = report.difference, report.interval
    if difference is None:
        return _alone(report)
    measured = (
        "On this text, with this seed, bits per byte of the student trained with MultiLevelOT less those of "
        f"the one trained by cross-entropy alone: {difference:+.4f}"
    )
    if interval is None:
        return f"{measured}. Too few held-out documents to say what chance can do."
    low, high = interval
    if low <= 0 <= high:
        found = "the held-out text does not tell them apart"
    else:
        found = (
            f"MultiLevelOT is {'better' if difference < 0 else 'worse'} here; another seed may say otherwise"
        )
    return f"{measured} (95 % interval over documents {low:+.4f} to {high:+.4f}): {found}."


def _alone(report: RunReport) -> str:
    """The sentence of a run without a student to compare with."""
    found, curve = report.distilled, report.distilled.curve
    return (
        f"On this text, with this seed, {found.steps:,} steps with MultiLevelOT took the student from "
        f"{curve[0][1]:.4f} to {curve[-1][1]:.4f} bits per byte of held-out text; no student was trained by "
        "cross-entropy alone, so what the teacher added was not measured."
    )


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
