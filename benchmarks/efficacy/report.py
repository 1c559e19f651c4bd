"""The written result: claim, tables, the search, and how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.efficacy.analysis import (
    CONTRASTS,
    Row,
    Setting,
    checked,
    contrast,
    rows,
    searched,
    settings,
)
from benchmarks.efficacy.claim import claim
from benchmarks.efficacy.methods import BY_NAME, METHODS
from benchmarks.efficacy.sizes import GAPS, STARTS, Size
from benchmarks.efficacy.statistics import Estimate

STARTS_SAID = {"scratch": "Student from scratch", "pretrained": "Student trained on other text first"}
GAPS_SAID = {"wide": "better teacher (wide gap)", "narrow": "worse teacher (narrow gap)"}

_READING = """\
Bits per byte, cloze test and words completed on the test split: mean ± standard error over {seeds} seeds.
Difference: paired with cross-entropy alone of the same seed (same start, same windows in the same order),
mean and 95 % interval (Student's t, {seeds} seeds). "better" and "worse" are said where the interval of the
difference in bits per byte excludes 0. p: paired t-test, adjusted by Holm's method for all {comparisons}
comparisons with cross-entropy alone."""


def markdown(size: Size, results: Sequence[dict[str, Any]], context: dict[str, Any]) -> str:
    """The report.

    Args:
        size: the preset.
        results: every training.
        context: what else is told: ``environment``, ``prepared``, ``texts``, ``costs``.
    """
    table = rows(results)
    comparisons = len(settings(results)) * (len(METHODS) - 1)
    parts = [
        "# What helps: losses of cross-tokenizer distillation compared",
        claim(results, table, len(size.seeds)),
        *_unfinished(table),
        (
            "Made by `python -m benchmarks.efficacy`; how it was measured and what it cannot say: "
            "`benchmarks/efficacy/README.md`."
        ),
        "## Compared with cross-entropy alone",
        _READING.format(seeds=len(size.seeds), comparisons=comparisons),
    ]
    for setting in settings(results):
        parts += [f"### {said(setting)}", _table(table[setting])]
    parts += [
        "![Paired differences to cross-entropy alone in bits per byte](bits-per-byte.png)",
        "![Paired differences to cross-entropy alone in the cloze test](cloze-accuracy.png)",
        "![Paired differences to cross-entropy alone in words completed](word-accuracy.png)",
        "## Compared with each other",
        (
            f"What the change does to bits per byte, paired by seed: mean and 95 % interval, "
            f"{len(size.seeds)} seeds. Below 0 it helps. These intervals are not adjusted for their number."
        ),
        _contrasts(results),
        "## Cross-entropy alone at the others' learning rates",
        _CHECK.format(rates=_rates(results)),
        _check(results),
        "## Teachers, starts and text",
        _prepared(context["prepared"]),
        _texts(context["texts"]),
        "## The search",
        (
            "Bits per byte on the validation split for every setting tried, "
            f"tuning seed{'s' * (len(size.tuning_seeds) > 1)} {', '.join(map(str, size.tuning_seeds))}; "
            f"the chosen one in bold. Nothing else was tried. {_edges(results, size)}"
        ),
        _search(results),
        "## Where it ran",
        _environment(context),
    ]
    return "\n\n".join(parts) + "\n"


def _unfinished(table: dict[Setting, list[Row]]) -> list[str]:
    missing = [STARTS_SAID[start].lower() for start in STARTS if start not in {start for start, _ in table}]
    return [f"Not finished, and not in these tables: {' and '.join(missing)}."] if missing else []


def said(setting: Setting) -> str:
    """A setting for readers."""
    start, gap = setting
    return f"{STARTS_SAID[start]}, {GAPS_SAID[gap]}"


def _table(found: Sequence[Row]) -> str:
    lines = [
        (
            "| method | bits per byte | difference | | p | cloze, % | difference | words, % | difference "
            "| rate | alpha | n | CPU s |"
        ),
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found:
        bits = row.values["bits_per_byte"]
        by_bits = p = ""
        if row.differences is not None and row.adjusted is not None:
            by_bits = _interval(row.differences["bits_per_byte"])
            p = "<0.001" if row.adjusted < 0.001 else f"{row.adjusted:.3f}"
        cells = [
            BY_NAME[row.method].label.replace("  ", "&nbsp;&nbsp;"),
            _mean(bits),
            by_bits,
            row.verdict,
            p,
        ]
        for measure in ("cloze_accuracy", "word_accuracy"):
            cells.append(_mean(row.values[measure], 100, 2))
            cells.append("" if row.differences is None else _interval(row.differences[measure], 100, 2))
        cells += [
            f"{row.learning_rate:g}",
            f"{row.alpha:g}" if row.alpha else "",
            f"{bits.count}",
            f"{row.seconds:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(found: Estimate, scale: float = 1, digits: int = 4) -> str:
    return f"{scale * found.mean:.{digits}f} ± {scale * found.standard_error:.{digits}f}"


def _interval(found: Estimate, scale: float = 1, digits: int = 4) -> str:
    low, mean, high = (f"{scale * value:+.{digits}f}" for value in (found.low, found.mean, found.high))
    return f"{mean} [{low}, {high}]"


def _contrasts(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| | {' | '.join(f'{start}, {gap}' for start, gap in settings(results))} |",
        f"|---|{'---:|' * len(settings(results))}",
    ]
    for what, method, other in CONTRASTS:
        found = [contrast(results, method, other, setting, "bits_per_byte") for setting in settings(results)]
        lines.append(f"| {what} | {' | '.join(map(_interval, found))} |")
    return "\n".join(lines)


_CHECK = """\
Cross-entropy alone has no alpha, and was tried with more learning rates than the others, which favours it
where results depend much on the rate. Here it has the best of the rates that the others were tried with: bits
per byte of each method less its own, paired by seed, mean and 95 % interval. This check was added after the
comparison was done, to show what of it hangs on that rule; it chose nothing.
Rates of cross-entropy alone here: {rates}."""


def _check(results: Sequence[dict[str, Any]]) -> str:
    shown = settings(results)
    lines = [
        f"| method | {' | '.join(f'{start}, {gap}' for start, gap in shown)} |",
        f"|---|{'---:|' * len(shown)}",
    ]
    for method in METHODS[1:]:
        found = [checked(results, method.name, setting, "bits_per_byte") for setting in shown]
        lines.append(f"| {method.label.strip()} | {' | '.join(map(_interval, found))} |")
    return "\n".join(lines)


def _rates(results: Sequence[dict[str, Any]]) -> str:
    found = {one["start"]: one["learning_rate"] for one in results if one["purpose"] == "check"}
    return ", ".join(f"{rate:g} ({start})" for start, rate in found.items())


def _edges(results: Sequence[dict[str, Any]], size: Size) -> str:
    """Where the search chose the largest or the smallest alpha, and may have found more beyond."""
    table = rows(results)
    parts = []
    for which, alpha in (("largest", max(size.alphas)), ("smallest", min(size.alphas))):
        names = [
            f"{method.label.strip()} ({count} of {len(table)})"
            for method in METHODS
            if (
                count := sum(
                    row.method == method.name and row.alpha == alpha
                    for found in table.values()
                    for row in found
                )
            )
        ]
        if names:
            parts.append(f"the {which} alpha for {', '.join(names)}")
    return f"It chose {'; '.join(parts)}: beyond it there may be more." if parts else ""


def _prepared(prepared: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| model | weights | steps | windows seen | bits per byte, test | cloze, % | words, % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    names = {
        "wide": "better teacher",
        "narrow": "worse teacher",
        "pretrained": "student trained on other text, where it starts",
    }
    for name, found in prepared.items():
        if name.startswith("taught"):
            continue
        key = name.removeprefix("model:")
        shown = names[key]
        lines.append(
            f"| {shown} | {found['parameters']:,} | {found['steps']:,} | {found['windows seen']:,} | "
            f"{found['test']['bits_per_byte']:.4f} | {100 * found['test']['cloze_accuracy']:.2f} | "
            f"{100 * found['test']['word_accuracy']:.2f} |"
        )
    kept = ", ".join(f"{prepared[f'taught:{gap}']['kept mass']:.3f} ({gap} gap)" for gap in GAPS)
    return "\n".join(lines) + f"\n\nShare of the teacher's probability that its kept columns carry: {kept}."


def _texts(texts: dict[str, dict[str, Any]]) -> str:
    lines = ["| split | documents | bytes | windows used | sha256 |", "|---|---:|---:|---:|---|"]
    lines += [
        f"| {name} | {found['documents']:,} | {found['bytes']:,} | {found['windows']:,} | {found['sha256']} |"
        for name, found in texts.items()
    ]
    return "\n".join(lines)


def _search(results: Sequence[dict[str, Any]]) -> str:
    parts = []
    for setting in settings(results):
        lines = [f"**{said(setting)}**", "", "| method | learning rate, alpha: bits per byte |", "|---|---|"]
        for method in METHODS:
            tried = searched(results, method.name, setting)
            best = min(tried, key=lambda one: tried[one])
            cells = []
            for (rate, alpha), value in tried.items():
                text = f"{rate:g}, {alpha:g}: {value:.4f}" if alpha else f"{rate:g}: {value:.4f}"
                cells.append(f"**{text}**" if (rate, alpha) == best else text)
            lines.append(f"| {method.label.strip()} | {'; '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _environment(context: dict[str, Any]) -> str:
    environment = ", ".join(f"{name} {value}" for name, value in context["environment"].items())
    costs = ", ".join(f"{name} {value}" for name, value in context["costs"].items())
    return f"{environment}.\n\n{costs}."
