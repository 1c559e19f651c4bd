"""From trainings to tables: results.json and study.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.efficacy import store
from benchmarks.environment import describe as environment
from benchmarks.study.material import describe
from benchmarks.study.methods import BY_NAME, CE, FULL, METHODS
from benchmarks.study.sizes import Setting, Size
from benchmarks.study.statistics import Estimate, estimate, holm, paired
from benchmarks.study.trials import AXIS
from benchmarks.study.work import Study

Results = Sequence[dict[str, Any]]


def write(study: Study, folder: Path) -> None:
    """Write what is finished of a study into a folder."""
    results = study.results()
    context = {
        "environment": environment(study.device),
        "size": describe(study.size),
        "texts": study.material.texts,
        "teacher": {name: study.taught(name).report for name in study.tokenizers},
        "looks": study.looks,
    }
    store.write_json(folder / "results.json", {**context, "trials": results})
    text = markdown(study.size, results, context)
    store.write(folder / "study.md", lambda path: path.write_text(text, encoding="utf-8"))


def by_seed(results: Results, setting: Setting, method: str, amount: int) -> dict[int, float]:
    """Bits per byte of the comparison, by seed."""
    wanted = ("final", setting.name, method, amount)
    return {
        one["seed"]: one["bits_per_byte"]
        for one in results
        if (one["purpose"], one["setting"], one["method"], one["amount"]) == wanted
    }


def markdown(size: Size, results: Results, context: dict[str, Any]) -> str:
    """All tables."""
    first, *others = size.settings
    parts = [
        "# Does it help?",
        (
            "Bits per byte of held-out text, means over seeds; differences to cross-entropy alone are paired "
            "by seed, with Student's 95 % interval. Below 0 is better. "
            "p is adjusted by Holm's method within a table."
        ),
        *_teacher(context["teacher"]),
        f"## All methods: {first.label}, {size.compared:,} bytes of text",
        _methods(results, first, size.compared, [method.name for method in METHODS]),
        "## How much text",
        _axis(size, results),
        *(
            part
            for setting in others
            for part in (
                f"## {setting.label.capitalize()}, {size.compared:,} bytes of text",
                _methods(results, setting, size.compared, AXIS),
            )
        ),
        "## What the losses ask for",
        _looks(context["looks"]),
        "## Text, and where it ran",
        *(f"- {name}: {one}" for name, one in context["texts"].items()),
        ", ".join(f"{name} {value}" for name, value in context["environment"].items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _teacher(reports: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"The teacher, SmolLM2-135M-Instruct in 4 bits, has {report['bits_per_byte']:.4f} bits per byte "
        f"on the same windows (tokenizer of the student: {name}). "
        f"{report['served'] / report['positions']:.1%} "
        "of the student's positions have a target (shared boundaries: "
        f"{report['shared_boundaries'] / report['positions']:.1%}), "
        f"which carries {report['served_mass']:.3f} of the teacher's mass there."
        for name, report in reports.items()
    ]


def _methods(results: Results, setting: Setting, amount: int, names: Sequence[str]) -> str:
    plain = by_seed(results, setting, CE, amount)
    values = {name: by_seed(results, setting, name, amount) for name in names}
    done = [name for name in names if values[name] and plain]
    compared = {name: paired(values[name], plain) for name in done if name != CE}
    adjusted = dict(zip(compared, holm([one.p for one in compared.values()]), strict=True))
    lines = [
        "| method | bits per byte | difference | p | rate | alpha | passes | steps |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in done:
        one = next(
            one
            for one in results
            if (one["purpose"], one["setting"], one["method"], one["amount"])
            == ("final", setting.name, name, amount)
        )
        difference = _interval(compared[name]) if name in compared else ""
        p = f"{adjusted[name]:.3g}" if name in adjusted else ""
        label = BY_NAME[name].label.replace("  ", "&nbsp;&nbsp;")
        mean = estimate(list(values[name].values())).mean
        lines.append(
            f"| {label} | {mean:.4f} | {difference} | {p} | {one['learning_rate']:g} | {one['alpha']:g} | "
            f"{one['passes']} | {one['steps']} |"
        )
    return "\n".join(lines) if done else "Not finished."


def _axis(size: Size, results: Results) -> str:
    """Every amount of text, and how much text cross-entropy alone would need for the same."""
    first = size.settings[0]
    amounts = [amount for amount in size.amounts if by_seed(results, first, CE, amount)]
    lines = [
        f"| method | {' | '.join(f'{amount:,} bytes' for amount in amounts)} |",
        f"|---|{'---:|' * len(amounts)}",
    ]
    for name in AXIS:
        shown = []
        for amount in amounts:
            values, plain = by_seed(results, first, name, amount), by_seed(results, first, CE, amount)
            if not values:
                shown.append("")
            elif name == CE:
                shown.append(f"{estimate(list(values.values())).mean:.4f}")
            else:
                shown.append(_interval(paired(values, plain)))
        lines.append(f"| {BY_NAME[name].label.strip()} | {' | '.join(shown)} |")
    factors = [_factor(results, first, amounts, amount) for amount in amounts]
    lines.append(f"| text saved by {BY_NAME[FULL].label}, times | {' | '.join(factors)} |")
    return "\n".join(lines)


def _factor(results: Results, setting: Setting, amounts: Sequence[int], amount: int) -> str:
    """How much more text cross-entropy alone needs for the same, by a line in log bytes between amounts."""
    curve = [np.mean(list(by_seed(results, setting, CE, one).values())) for one in amounts]
    values = by_seed(results, setting, FULL, amount)
    if not values:
        return ""
    reached = float(np.mean(list(values.values())))
    if reached < min(curve):
        return f"over {max(amounts) / amount:.2g}"
    at = np.interp(-reached, -np.array(curve), np.log(amounts))
    return f"{float(np.exp(at)) / amount:.2f}"


def _looks(looks: Sequence[dict[str, Any]]) -> str:
    if not looks:
        return "Not finished."
    steps = " | ".join(f"step {look['step']}" for look in looks)
    lines = [
        (
            "Cosine of the gradient of each term by the logits with that of the plan from the text, and, "
            "in brackets, the share of the kept mass that a matching puts on the student's token "
            "of the same bytes."
        ),
        "",
        f"| method | {steps} |",
        f"|---|{'---:|' * len(looks)}",
    ]
    for name in looks[0]["cosine"]:
        shown = []
        for look in looks:
            same = look["same_bytes"].get(name)
            shown.append(f"{look['cosine'][name]:.3f}" + (f" ({same:.3f})" if same is not None else ""))
        lines.append(f"| {BY_NAME[name].label.strip()} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _interval(one: Estimate) -> str:
    return f"{one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
