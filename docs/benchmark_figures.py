"""Figures of the page of benchmarks, drawn from the files that the benchmarks leave."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure

_OURS, _OTHERS = "#3b82c4", "#8a8f98"
_MEBIBYTE = 2**20


def bars(path: str) -> Figure:
    """Time, and if it was measured memory beyond inputs and gradient, of each contestant; ours in colour."""
    rows = [row for row in _rows(path) if row["seconds"]]
    labels, places, titles = [], [], []
    place = 0.0
    for section, found in groupby(rows, key=lambda row: row["section"]):
        titles.append((place, section))
        place += 1
        for row in found:
            labels.append(row["name"])
            places.append(place)
            place += 1
        place += 0.4
    shown = [("median time, ms", [row["median_seconds"] * 1e3 for row in rows])]
    if all(row["beyond_gradient_bytes"] is not None for row in rows):
        shown.append(("memory, MiB", [row["beyond_gradient_bytes"] / _MEBIBYTE for row in rows]))
    size = (7.6, 0.6 + 0.2 * place)
    figure, panels = pyplot.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    time = panels[0, 0]
    colours = [_OURS if row["ours"] else _OTHERS for row in rows]
    for axis, (label, values) in zip(panels[0], shown, strict=True):
        drawn = axis.barh(places, values, height=0.72, color=colours)
        labels_of_bars = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
        axis.bar_label(drawn, labels_of_bars, padding=3, fontsize=8)
        axis.margins(x=0.2)
        axis.tick_params(axis="y", length=0)
        axis.set(xlabel=label)
    time.set_yticks(places, labels, fontsize=8)
    for where, title in titles:
        time.text(0, where, title, fontsize=8.5, fontweight="bold", va="center", clip_on=False)
    time.invert_yaxis()
    return figure


def curves(path: str) -> Figure:
    """Time and memory against each size that was swept."""
    rows = [row for row in _rows(path) if row["seconds"]]
    axes = list(dict.fromkeys(row["point"]["axis"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure, panels = pyplot.subplots(2, len(axes), figsize=(7.6, 5), sharey="row", squeeze=False)
    for column, axis in enumerate(axes):
        for number, name in enumerate(names):
            found = [row for row in rows if row["name"] == name and row["point"]["axis"] == axis]
            sizes = [row["point"][axis] for row in found]
            line = {
                "linestyle": "-" if found and found[0]["ours"] else "--",
                "color": f"C{number % 10}",
                "marker": "o",
                "markersize": 3,
                "label": name,
            }
            panels[0, column].plot(sizes, [row["median_seconds"] * 1e3 for row in found], **line)
            memory = [(row["beyond_gradient_bytes"] or 0) / _MEBIBYTE for row in found]
            panels[1, column].plot(sizes, memory, **line)
        for panel in panels[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("median time, ms")
    panels[1, 0].set_ylabel("memory beyond inputs\nand gradient, MiB")
    panels[0, 0].legend(fontsize=8)
    return figure


def _rows(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((Path(__file__).parent / path).read_text())["rows"]
    return found
