"""The page that a run leaves: one HTML file that needs nothing else, no network and no script.

What it shows is gathered here as plain values; how it looks is in ``templates``, where everything that comes
from texts, models and options is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mlot.distill.draw import Drawing, Series, heat_map, legible, line_chart
from mlot.distill.output import PAGE, REPORT
from mlot.distill.pictures import Pictures
from mlot.distill.report import CE, LABELS, MLOT, TEACHER, ModelReport, RunReport, cells, verdict

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
    environment = Environment(
        loader=PackageLoader("mlot.distill"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Once and for all: texts, tokens and names get into a page in many places.
    return legible(environment.get_template("report.html.jinja").render(view(report)))


def view(report: RunReport) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    return {
        "verdict": verdict(report),
        "facts": _facts(report),
        "notices": [*report.notices, *report.alignment.warnings],
        "rows": [_row(model, report) for model in report.models],
        "twins": report.model(CE) is not None,
        "text": report.text,
        "length": report.settings["length"],
        "charts": _charts(report),
        "terms": _terms(report),
        "alignment": report.alignment,
        "boundary": report.settings["pairs"] == "boundary",
        "pictures": report.pictures,
        "plan": _plan(report.pictures),
        "plan_scale": [(n / 4, f"{n / 4 * report.pictures.plan.max(initial=0.0):.0%}") for n in range(5)],
        "traces": _traces(report.pictures),
        "trace_scale": [(value**0.5, f"{value:g}") for value in (0, 0.01, 0.05, 0.2, 0.5, 1)],
        "samples": _samples(report.models),
        "diagnostics": _diagnostics(report),
        "settings": [
            (f"--{name.replace('_', '-')}", _plain(value)) for name, value in report.settings.items()
        ],
        "environment": list(report.environment.items()),
    }


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _facts(report: RunReport) -> list[tuple[str, str]]:
    minutes, seconds = divmod(round(report.seconds), 60)
    return [
        ("text", report.text["source"]),
        ("steps of each student" if report.model(CE) else "steps", f"{report.distilled.steps:,}"),
        ("whole run", f"{minutes} min {seconds} s" if minutes else f"{seconds} s"),
        ("device", report.environment.get("device", "-")),
    ]


def _row(model: ModelReport, report: RunReport) -> dict[str, Any]:
    bits, *others = cells(model)
    interval = model.interval(report.seed)
    return {
        "name": LABELS[model.name],
        "style": _STYLES[model.name],
        "bits": bits,
        "interval": f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-",
        "others": others,
    }


def _charts(report: RunReport) -> list[Drawing]:
    """Bits per byte, and where there are twins the gap between them."""
    series = []
    steps = report.distilled.steps
    for model in report.models:
        curve = model.curve
        if not curve and model.bits_per_byte is not None:  # a teacher from a folder: a level line
            curve = [(0, model.bits_per_byte), (steps, model.bits_per_byte)]
        series.append(Series(LABELS[model.name], _STYLES[model.name], curve))
    found = [line_chart("bits per byte of held-out text", series)]
    plain = report.model(CE)
    if plain is not None:
        before = dict(plain.curve)
        gap = [(step, bits - before[step]) for step, bits in report.distilled.curve if step in before]
        label = "MultiLevelOT less CE alone, bits per byte (below 0: better)"
        found.append(line_chart(label, [Series("MultiLevelOT less CE alone", "mlot", gap)], zero=True))
    return [one for one in found if one is not None]


def _terms(report: RunReport) -> list[Drawing]:
    """Every term that the students logged."""
    students = [model for model in report.models if model.name != TEACHER]
    logged = dict.fromkeys(name for model in students for name in model.logged)
    order = [*(name for name in _TERMS if name in logged), *(name for name in logged if name not in _TERMS)]
    found = (
        line_chart(
            _TERMS.get(name, name),
            [Series(LABELS[m.name], _STYLES[m.name], m.logged[name]) for m in students if name in m.logged],
        )
        for name in order
    )
    return [one for one in found if one is not None]


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


def _traces(pictures: Pictures) -> list[Drawing]:
    maps = []
    sides = (("teacher", pictures.teacher_traces, "teacher"), ("student", pictures.student_traces, "mlot"))
    for side, values, colour in sides:
        names = [str(getattr(match, side)) for match in pictures.matches]

        def tip(row: int, column: int, names: list[str] = names, values: Any = values) -> str:
            return f"P({names[row]}) where {pictures.places[column]} follows: {values[row, column]:.3f}"

        maps.append(
            heat_map(
                f"{side}'s probabilities: tokens in rows, positions in columns",
                values,
                names,
                pictures.places,
                colour=colour,
                full=1.0,
                root=True,
                tip=tip,
            )
        )
    return maps


def _samples(models: Sequence[ModelReport]) -> list[list[tuple[str, str, str, str]]]:
    """For each prompt, how each model that has samples continues it: name, style, prompt, continuation."""
    speaking = [model for model in models if model.samples]
    count = min((len(model.samples) for model in speaking), default=0)
    return [
        [(LABELS[model.name], _STYLES[model.name], *model.samples[number]) for model in speaking]
        for number in range(count)
    ]


def _diagnostics(report: RunReport) -> dict[str, Any]:
    rows = []
    for name, label in _DIAGNOSTICS.items():
        values = report.diagnostics[name]
        known = values[np.isfinite(values)]
        numbers = (known.mean(), known.min(), known.max()) if len(known) else ()
        rows.append((label, [f"{number:.4g}" for number in numbers] or ["no bound"] + [""] * 2))
    return {"windows": len(report.diagnostics["pairs"]), "rows": rows}
