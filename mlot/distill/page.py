"""The page that a run leaves: one HTML file that needs nothing else, no network and no script.

What it shows is gathered here as plain values; how it looks is in ``templates``, where everything that comes
from texts, models and options is escaped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlot._charts import Drawing, Series, heat_map, legible, line_chart
from mlot.align import AlignmentReport
from mlot.distill.output import PAGE, REPORT
from mlot.distill.report import CE, LABELS, MLOT, TEACHER, ModelReport, RunReport, cells, verdict
from mlot.training._inspect import Pictures
from mlot.training._inspect_text import PositionTarget

_WORDS = {"True": "yes", "False": "no", "None": "-"}
_STYLES = {TEACHER: "teacher", CE: "ce", MLOT: "mlot"}
#: What logged terms are called, in the order of the page; others follow under their own names.
_TERMS = {
    "loss": "loss",
    "ce": "cross-entropy, nats per token",
    "ot": "transport: HAD, SL and SD as weighted",
    "had": "HAD, unweighted",
    "sl": "SL, unweighted",
    "sd": "Sinkhorn distance, unweighted",
    "teacher_kept_mass": "teacher's mass in its kept columns",
    "student_kept_mass": "student's mass in matched columns",
    "matching_gap": "matching gap",
    "marginal_error": "marginal error of the plan",
    "paired_share": "share of positions paired",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}
_DIAGNOSTICS = {
    "pairs": "paired positions",
    "teacher_kept_mass": "share of the teacher's probability in its kept columns",
    "student_kept_mass": "share of the student's probability in the matched columns",
    "matching_gap": "matching gap: bound on what the pool of candidates may have cost",
    "marginal_error": "marginal error: how far the plan's marginals are from uniform",
}


def write(report: RunReport, folder: Path) -> None:
    """Write ``report.html`` and ``report.json`` into a folder."""
    (folder / PAGE).write_text(render(report), encoding="utf-8")
    content = json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_text(content + "\n", encoding="utf-8")


def render(report: RunReport) -> str:
    """Render the page."""
    loader, strict = PackageLoader("mlot.distill"), StrictUndefined
    environment = Environment(
        loader=loader, autoescape=True, undefined=strict, trim_blocks=True, lstrip_blocks=True
    )
    # Once and for all: texts, tokens and names get into a page in many places.
    return legible(environment.get_template("report.html.jinja").render(_view(report)))


def _view(report: RunReport) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    pictures, settings = report.pictures, report.settings
    minutes, seconds = divmod(round(report.seconds), 60)
    speaking = [model for model in report.models if model.samples]
    count = min((len(model.samples) for model in speaking), default=0)
    return {
        "verdict": verdict(report),
        "facts": {
            "text": report.text["source"],
            "steps of each student" if report.model(CE) else "steps": f"{report.distilled.steps:,}",
            "whole run": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
            "device": report.environment.get("device", "-"),
        },
        "notices": [*report.notices, *report.alignment.warnings],
        "rows": [(LABELS[m.name], _figures(m, report), _STYLES[m.name]) for m in report.models],
        "twins": report.model(CE) is not None,
        "text": report.text,
        "length": settings["length"],
        "charts": _charts(report),
        "terms": _terms(report),
        "alignment": report.alignment,
        "boundary": settings["pairs"] == "boundary",
        "alignment_rows": [_alignment(report.alignment, side) for side in ("student", "teacher")],
        "pictures": pictures,
        "match_rows": [
            (m.teacher, [m.student, *(f"{x:.3f}" for x in (m.teacher_mass, m.student_mass, m.distance))], "")
            for m in pictures.matches
        ],
        "text_picture": report.text_picture,
        "target_rows": [_target(each) for each in report.text_picture.targets] if report.text_picture else [],
        "plan": _plan(pictures),
        "plan_scale": [(n / 4, f"{n / 4 * pictures.plan.max(initial=0.0):.0%}") for n in range(5)],
        "traces": [_traces(pictures, "teacher", "teacher"), _traces(pictures, "student", "mlot")],
        "trace_scale": [(value**0.5, f"{value:g}") for value in (0, 0.01, 0.05, 0.2, 0.5, 1)],
        "samples": [
            [(LABELS[model.name], _STYLES[model.name], *model.samples[n]) for model in speaking]
            for n in range(count)
        ],
        "windows": len(report.diagnostics["pairs"]),
        "diagnostics": [_diagnostic(label, report.diagnostics[name]) for name, label in _DIAGNOSTICS.items()],
        "settings": [
            (f"--{n.replace('_', '-')}", [_WORDS.get(str(value), str(value))], "")
            for n, value in settings.items()
        ],
        "environment": [(name, [value], "") for name, value in report.environment.items()],
    }


def _figures(model: ModelReport, report: RunReport) -> list[str]:
    bits, *others = cells(model)
    interval = model.interval(report.seed)
    return [bits, f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-", *others]


def _charts(report: RunReport) -> list[Drawing | None]:
    """Bits per byte, and where there are twins the gap between them."""
    series, steps = [], report.distilled.steps
    for model in report.models:
        curve = model.curve
        if not curve and model.bits_per_byte is not None:  # a teacher from a folder: a level line
            curve = [(0, model.bits_per_byte), (steps, model.bits_per_byte)]
        series.append(Series(LABELS[model.name], _STYLES[model.name], curve))
    drawings, plain = [line_chart("bits per byte of held-out text", series)], report.model(CE)
    if plain is not None:
        before = dict(plain.curve)
        gap = [(step, bits - before[step]) for step, bits in report.distilled.curve if step in before]
        label = "MultiLevelOT less CE alone"
        title = f"{label}, bits per byte (below 0: better)"
        drawings.append(line_chart(title, [Series(label, "mlot", gap)], zero=True))
    return drawings


def _terms(report: RunReport) -> list[Drawing | None]:
    """Every term that the students logged."""
    students = [model for model in report.models if model.name != TEACHER]
    logged = dict.fromkeys(name for model in students for name in model.logged)
    order = [*(name for name in _TERMS if name in logged), *(name for name in logged if name not in _TERMS)]
    return [
        line_chart(
            _TERMS.get(name, name),
            [Series(LABELS[m.name], _STYLES[m.name], m.logged[name]) for m in students if name in m.logged],
        )
        for name in order
    ]


def _target(target: PositionTarget) -> tuple[str, list[str], str]:
    listed = ", ".join(f"{token} {chance:.0%}" for token, chance in target.likeliest)
    return target.token, ["no target" if target.read is None else target.read, listed or "-"], ""


def _plan(pictures: Pictures) -> Drawing:
    plan, rows, columns = pictures.plan, pictures.teacher_tokens, pictures.student_tokens
    return heat_map(
        "transport plan: teacher's positions in rows, student's in columns",
        plan,
        rows,
        columns,
        colour="ce",
        full=float(plan.max(initial=0.0)),
        tip=lambda i, j: f"{rows[i]} → {columns[j]}: {plan[i, j]:.1%} of the row",
    )


def _traces(pictures: Pictures, side: str, colour: str) -> Drawing:
    values, paired_tokens = getattr(pictures, f"{side}_traces"), pictures.paired_tokens
    names = [str(getattr(match, side)) for match in pictures.matches]
    return heat_map(
        f"{side}'s probabilities: tokens in rows, positions in columns",
        values,
        names,
        paired_tokens,
        colour=colour,
        full=1.0,
        root=True,
        tip=lambda i, j: f"P({names[i]}) where {paired_tokens[j]} follows: {values[i, j]:.3f}",
    )


def _alignment(alignment: AlignmentReport, side: str) -> tuple[str, list[str], str]:
    def of(what: str) -> Any:
        return getattr(alignment, f"{side}_{what}")

    shared = "-" if of("vocabulary") is None else f"{of('vocabulary'):.1%}"
    return side, [f"{of('positions'):,}", f"{of('share'):.1%}", f"{of('bytes'):.1%}", shared], ""


def _diagnostic(label: str, values: Any) -> tuple[str, list[str], str]:
    known = values[np.isfinite(values)]
    numbers = (known.mean(), known.min(), known.max()) if len(known) else ()
    return label, [f"{number:.4g}" for number in numbers] or ["no bound", "", ""], ""
