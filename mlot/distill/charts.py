"""Geometry of the page's charts and heat maps; its templates turn them into SVG."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

#: Size of a chart and its margins, in units of the SVG; a phone shows them about as they are.
_WIDTH, _HEIGHT = 360.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 60.0, 10.0, 10.0, 34.0
#: With more points than this, a line is drawn without dots.
_MOST_DOTS = 60
#: Numbers at ticks that are longer are written with an exponent.
_LONGEST_TICK = 8
#: Side of a heat map's cell, width of a character of a label, longest label in characters.
_CELL, _CHARACTER, _LONGEST = 17.0, 6.7, 16


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        name: what it shows, for the legend.
        style: class of the style sheet: ``"teacher"``, ``"ce"`` or ``"mlot"``.
        points: pairs of step and value.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A series in the SVG's units: the way of its line, and its dots, each with what it says."""

    name: str
    style: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Chart:
    """A chart in the SVG's units.

    Attributes:
        title: what it shows.
        alt: the same as a sentence with figures, for those who cannot see it.
        x_ticks: places and labels of the ticks below.
        y_ticks: the same at the left.
        zero: height of the line at 0, or ``None`` where it is not asked for or not inside.
        lines: lines in the order of the series.
    """

    title: str
    alt: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    zero: float | None
    lines: tuple[Line, ...]
    width: float = _WIDTH
    height: float = _HEIGHT
    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM


def chart(title: str, series: Sequence[Series], *, zero: bool = False) -> Chart | None:
    """Lay out a chart of values over steps.

    Args:
        title: what it shows.
        series: lines; values that are not finite are left out.
        zero: whether 0 must be in sight and marked.

    Returns:
        `Chart`, or ``None`` if there is nothing to show.
    """
    finite = [
        Series(one.name, one.style, [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)])
        for one in series
    ]
    finite = [one for one in finite if one.points]
    if not finite:
        return None
    xs = [x for one in finite for x, _ in one.points]
    ys = [y for one in finite for _, y in one.points] + ([0.0] if zero else [])
    x_ticks, x_place = _axis(xs, _LEFT, _WIDTH - _RIGHT, integer=True)
    y_ticks, y_place = _axis(ys, _HEIGHT - _BOTTOM, _TOP)
    lines = []
    for one in finite:
        placed = [(round(x_place(x), 1), round(y_place(y), 1), x, y) for x, y in one.points]
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y, _, _ in placed)
        dots = tuple((x, y, f"{one.name}, step {step:g}: {value:.4g}") for x, y, step, value in placed)
        lines.append(Line(one.name, one.style, path, dots if len(dots) <= _MOST_DOTS else ()))
    alt = "; ".join(
        f"{one.name} from {one.points[0][1]:.4g} at step {one.points[0][0]:g} "
        f"to {one.points[-1][1]:.4g} at step {one.points[-1][0]:g}"
        for one in finite
    )
    level = round(y_place(0.0), 1) if zero else None
    return Chart(title, f"{title}: {alt}.", x_ticks, y_ticks, level, tuple(lines))


def _axis(
    values: Sequence[float], start: float, end: float, *, integer: bool = False
) -> tuple[tuple[tuple[float, str], ...], Callable[[float], float]]:
    """Ticks of an axis from ``start`` to ``end`` that holds some values, and the place of a value on it."""
    low, high = min(values), max(values)
    if low == high:
        margin = 1.0 if integer else abs(low) * 0.05 or 0.5
        low, high = low - margin, high + margin
    elif not integer:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def place(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    ticks = [
        float(tick)
        for tick in MaxNLocator(nbins=5, integer=integer).tick_values(low, high)
        if low <= tick <= high
    ]
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    formatter.create_dummy_axis()
    labels = formatter.format_ticks(ticks) if ticks else []
    if any(len(label) > _LONGEST_TICK for label in labels):
        labels = [f"{tick:.3g}" for tick in ticks]
    return tuple((round(place(t), 1), label) for t, label in zip(ticks, labels, strict=True)), place


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: place, share of full colour from 0 to 1, and what it says."""

    x: float
    y: float
    strength: float
    tip: str


@dataclass(frozen=True)
class HeatMap:
    """A heat map in the SVG's units.

    Attributes:
        title: what it shows.
        alt: the same with its size, for those who cannot see it.
        style: class of the style sheet that colours it.
        cells: those with a visible colour.
        rows: places and labels of the rows.
        columns: places and labels of the columns.
    """

    title: str
    alt: str
    style: str
    cells: tuple[Cell, ...]
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    width: float
    height: float
    left: float
    top: float
    side: float = _CELL


def heat_map(
    title: str,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    style: str,
    tip: Callable[[int, int], str],
    full: float,
    root: bool = False,
) -> HeatMap:
    """Lay out a heat map.

    Args:
        title: what it shows.
        values: values >= 0, ``(rows, columns)``.
        rows: labels of the rows.
        columns: labels of the columns.
        style: class of the style sheet that colours it.
        tip: what a cell says when pointed at.
        full: value of full colour.
        root: colour by the square root of the value, so that small ones are seen.
    """
    row_names, column_names = [_short(label) for label in rows], [_short(label) for label in columns]
    left = max(map(_columns, row_names), default=0) * _CHARACTER + 8
    top = max(map(_columns, column_names), default=0) * _CHARACTER + 8
    strength = np.clip(values / full if full > 0 else values * 0, 0, 1)
    strength = np.sqrt(strength) if root else strength
    cells = tuple(
        Cell(
            round(left + _CELL * column, 1),
            round(top + _CELL * row, 1),
            round(float(strength[row, column]), 3),
            tip(row, column),
        )
        for row in range(len(rows))
        for column in range(len(columns))
        if strength[row, column] >= 0.004
    )
    middle = _CELL / 2
    return HeatMap(
        title,
        f"{title}: {len(rows)} rows, {len(columns)} columns",
        style,
        cells,
        tuple((round(top + _CELL * n + middle, 1), name) for n, name in enumerate(row_names)),
        tuple((round(left + _CELL * n + middle, 1), name) for n, name in enumerate(column_names)),
        round(left + _CELL * len(columns) + 2, 1),
        round(top + _CELL * len(rows) + 2, 1),
        round(left, 1),
        round(top, 1),
    )


def _short(label: str) -> str:
    while _columns(label) > _LONGEST:
        label = label.removesuffix("…")[:-1] + "…"
    return label


def _columns(label: str) -> int:
    """Columns that a label takes in a monospaced font."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in label)
