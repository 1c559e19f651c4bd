"""The plots: each method's difference to cross-entropy alone, in every setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.efficacy.analysis import by_seed, rows, settings
from benchmarks.efficacy.methods import BY_NAME, CE, METHODS
from benchmarks.efficacy.report import said

_BETTER, _WORSE, _NEITHER = "#0072b2", "#d55e00", "#777777"  # told apart by colour-blind readers, too


def draw(results: Sequence[dict[str, Any]], measure: str, path: Path) -> None:
    """Write one figure: dots are seeds, bars are 95 % intervals of the mean."""
    scale, less_is_better, unit = {
        "bits_per_byte": (1.0, True, "bits per byte"),
        "cloze_accuracy": (100.0, False, "cloze test, percentage points"),
        "word_accuracy": (100.0, False, "words completed, percentage points"),
    }[measure]
    table = rows(results)
    names = [method.name for method in METHODS if method.name != CE]
    shown = settings(results)
    figure = Figure(figsize=(13, 2 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown) // 2, 2, sharey=True, squeeze=False)
    for panel, setting in zip(panels.flat, shown, strict=True):
        plain = by_seed(results, CE, setting, measure)
        for place, name in enumerate(names):
            row = next(row for row in table[setting] if row.method == name)
            assert row.differences is not None
            found = row.differences[measure]
            good = (found.mean < 0) == less_is_better
            colour = (_BETTER if good else _WORSE) if found.excludes_zero else _NEITHER
            values = by_seed(results, name, setting, measure)
            seeds = [scale * (values[seed] - plain[seed]) for seed in sorted(values)]
            panel.plot(seeds, [place + 0.22] * len(seeds), ".", color=colour, alpha=0.5, markersize=5)
            reach = scale * (found.high - found.mean)
            panel.errorbar(
                scale * found.mean, place, xerr=reach, fmt="o", color=colour, capsize=4, markersize=6
            )
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(said(setting), fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.grid(visible=True, axis="x", alpha=0.3)
        panel.set_yticks(
            range(len(names)), [BY_NAME[name].label.replace("MultiLevelOT: ", "") for name in names]
        )
    panels[0, 0].invert_yaxis()
    better = "left" if less_is_better else "right"
    for panel in panels[-1]:
        panel.set_xlabel(f"{unit}, difference ({better} of 0: better)")
    count = len(by_seed(results, CE, shown[0], measure))
    figure.suptitle(
        f"Difference to cross-entropy alone: mean and 95 % interval over {count} seeds; small dots: seeds"
    )
    figure.savefig(path, dpi=110)
