"""Curves of a sweep, time and peak memory against each size, both axes logarithmic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.contestant import Row

_AXES = ("vocabulary", "length", "batch")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write the figure; the ending of the path decides on the format."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, len(_AXES), sharey="row")
    names = list(dict.fromkeys(row.name for row in rows))
    for column, axis in enumerate(_AXES):
        for name in names:
            found = [row for row in rows if row.name == name and row.point["axis"] == axis and row.seconds]
            sizes = [row.point[axis] for row in found]
            line = "--" if name.startswith("plain") else "-"
            panels[0, column].plot(sizes, [row.median_seconds for row in found], line, marker="o", label=name)
            memory = [(row.peak_bytes or 0) / 2**20 for row in found]
            panels[1, column].plot(sizes, memory, line, marker="o", label=name)
        for panel in panels[:, column]:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(visible=True, which="both", alpha=0.3)
        panels[1, column].set_xlabel(axis)
    panels[0, 0].set_ylabel("forward and backward, s")
    panels[1, 0].set_ylabel("peak memory beyond the inputs, MiB")
    panels[0, 0].legend()
    figure.savefig(path)
