"""What a run found: as data, as text, as a plot and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from mlot.distill.evaluation import Score, difference_interval
from mlot.distill.output import FORMAT, REPORT

#: With fewer held-out documents than this, resampling them says nothing.
FEWEST_DOCUMENTS = 10

TEACHER, CE, MLOT = "teacher", "student-ce", "student-mlot"
_LABELS = {TEACHER: "teacher", CE: "student, CE alone", MLOT: "student, MultiLevelOT"}


@dataclass(frozen=True, eq=False)
class ModelReport:
    """What a run found about one model.

    Attributes:
        name: ``"teacher"``, ``"student-ce"`` or ``"student-mlot"``.
        parameters: number of weights.
        vocabulary: number of tokens.
        bytes_per_token: of the held-out text.
        steps: of training here; 0 for a teacher from a folder.
        seconds: of training here, evaluations included.
        score: bits for each held-out document.
        curve: pairs of step and bits per byte.
        terms: terms of the loss as last logged.
        samples: pairs of prompt and continuation.
    """

    name: str
    parameters: int
    vocabulary: int
    bytes_per_token: float
    steps: int
    seconds: float
    score: Score
    curve: list[tuple[int, float]]
    terms: dict[str, float]
    samples: list[tuple[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the samples, for JSON."""
        return {
            "parameters": self.parameters,
            "vocabulary": self.vocabulary,
            "bytes_per_token": self.bytes_per_token,
            "steps": self.steps,
            "seconds": round(self.seconds, 2),
            "bits_per_byte": self.score.bits_per_byte,
            "curve": [{"step": step, "bits_per_byte": value} for step, value in self.curve],
            "terms": self.terms,
        }


@dataclass(frozen=True, eq=False)
class RunReport:
    """What a run found.

    Attributes:
        models: teacher, student by cross-entropy, student by MultiLevelOT.
        text: source and sizes of the text.
        settings: options of the run.
        environment: versions and device.
        notices: what a reader of the figures should know.
        seconds: of the whole run.
    """

    models: tuple[ModelReport, ModelReport, ModelReport]
    text: dict[str, Any]
    settings: dict[str, Any]
    environment: dict[str, str]
    notices: list[str]
    seconds: float

    @property
    def difference(self) -> float:
        """Bits per byte of the MultiLevelOT student less those of the other; below 0: better."""
        _, plain, distilled = self.models
        return distilled.score.bits_per_byte - plain.score.bits_per_byte

    @property
    def interval(self) -> tuple[float, float] | None:
        """Bootstrap interval of the difference at 95 % over held-out documents; ``None`` for a handful."""
        _, plain, distilled = self.models
        if len(plain.score.sizes) < FEWEST_DOCUMENTS:
            return None
        return difference_interval(distilled.score, plain.score, seed=int(self.settings["seed"]))

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        interval = self.interval
        return {
            "format": FORMAT,
            "environment": self.environment,
            "settings": self.settings,
            "text": self.text,
            "models": {model.name: model.as_dict() for model in self.models},
            "difference": {"bits_per_byte": self.difference, "interval_95": interval and list(interval)},
            "notices": self.notices,
            "seconds": round(self.seconds, 2),
        }


def verdict(report: RunReport) -> str:
    """Say in a sentence how the two students compare, no more than was measured."""
    difference, interval = report.difference, report.interval
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


def table(report: RunReport) -> Table:
    """Results for the terminal."""
    shown = Table(title="held-out text")
    shown.add_column("model", no_wrap=True)
    for heading in ("bits/byte", "weights", "tokens", "steps", "seconds"):
        shown.add_column(heading, justify="right")
    for model in report.models:
        bits, weights, tokens, _, steps, seconds = _cells(model)
        shown.add_row(_LABELS[model.name], bits, weights, tokens, steps, seconds)
    return shown


def write(report: RunReport, folder: Path) -> None:
    """Write ``samples.txt``, ``curves.png``, ``report.md`` and ``report.json`` into a folder."""
    (folder / "samples.txt").write_text(_samples(report.models), encoding="utf-8")
    _plot(report, folder / "curves.png")
    (folder / "report.md").write_text(_markdown(report), encoding="utf-8")
    content = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(content + "\n", encoding="utf-8")


def _cells(model: ModelReport) -> list[str]:
    return [
        f"{model.score.bits_per_byte:.4f}",
        f"{model.parameters:,}",
        f"{model.vocabulary:,}",
        f"{model.bytes_per_token:.2f}",
        f"{model.steps:,}" if model.steps else "-",
        f"{model.seconds:.0f}" if model.steps else "-",
    ]


_FAIR = """\
Both students start from the same weights and see the same batches in the same order for the same number of
steps; only the loss differs, and with it the time."""

_MEASURED = """\
Text: {source}. Trained on {train[documents]:,} documents ({train[bytes]:,} bytes), measured on
{held_out[documents]:,} others ({held_out[bytes]:,} bytes), which no tokenizer made here and no training saw.

Bits per byte: negative log-likelihood in bits of all tokens of the held-out text, over its bytes in UTF-8.
The text is read in {held_out[windows]:,} windows, the same for all models, none longer than {length} tokens
of either tokenizer, each without what came before it. The interval resamples documents; it does not speak of
other seeds."""


def _markdown(report: RunReport) -> str:
    text = report.text
    rows = [
        "| model | bits per byte | weights | tokens | bytes per token | steps | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(f"| {_LABELS[model.name]} | {' | '.join(_cells(model))} |" for model in report.models),
    ]
    distilled = report.models[2]
    terms = ", ".join(f"{name} {value:.4g}" for name, value in distilled.terms.items())
    parts = ["# Distillation between tokenizers", verdict(report), "\n".join(rows), _FAIR]
    if terms:
        parts.append(f"Last logged terms of the MultiLevelOT loss, unweighted: {terms}.")
    parts += [
        "![bits per byte during training](curves.png)",
        "## How it was measured",
        _MEASURED.format(length=report.settings["length"], **text),
    ]
    if report.notices:
        parts += ["## Notices", "\n".join(f"- {notice}" for notice in report.notices)]
    settings = [f"| {name} | {value} |" for name, value in report.settings.items()]
    parts += ["## Settings", "\n".join(["| setting | value |", "|---|---|", *settings])]
    versions = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    parts.append(f"Whole run: {report.seconds:.0f} seconds; {versions}.")
    return "\n\n".join(parts) + "\n"


def _samples(models: Sequence[ModelReport]) -> str:
    lines = ["Continuations of held-out beginnings, sampled; each prompt in brackets.", ""]
    for number in range(len(models[0].samples)):
        for model in models:
            prompt, continuation = model.samples[number]
            lines += [f"=== {_LABELS[model.name]} ===", f"[{prompt}]{continuation}", ""]
    return "\n".join(lines)


def _plot(report: RunReport, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, gap = figure.subplots(1, 2)
    teacher, plain, distilled = report.models
    for model, style in ((teacher, "k:"), (plain, "C0o-"), (distilled, "C1s-")):
        if model.curve:
            steps, values = zip(*model.curve, strict=True)
            curves.plot(steps, values, style, markersize=4, label=_LABELS[model.name])
    if not teacher.curve:
        curves.axhline(teacher.score.bits_per_byte, color="k", linestyle=":", label=_LABELS[TEACHER])
    curves.set(xlabel="optimizer steps", ylabel="bits per byte, held-out text")
    curves.legend()
    both = [(step, b - a) for (step, a), (_, b) in zip(plain.curve, distilled.curve, strict=True)]
    gap.axhline(0, color="k", linewidth=0.8)
    gap.plot(*zip(*both, strict=True), "C1s-", markersize=4)
    gap.set(
        xlabel="optimizer steps",
        ylabel="MultiLevelOT less cross-entropy alone\nbits per byte (below 0: better)",
    )
    figure.savefig(path, dpi=120)
