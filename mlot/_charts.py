"""Charts and heat maps of the page, by matplotlib, as SVG in the colours of the page's style sheet."""

from __future__ import annotations

import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

#: Colours by their names in the style sheet, each drawn as a colour that stands for it.
_COLOURS = {
    name: f"#0000{n:02x}"
    for n, name in enumerate(("teacher", "ce", "mlot", "ink", "soft", "rule", "ground"), start=1)
}
#: Units of the SVG in an inch of matplotlib; size of a chart and its margins left, right, above and below.
_UNITS = 72
_WIDTH, _HEIGHT, _MARGINS = 360, 210, (60, 10, 10, 34)
#: With more points than this, a line is drawn without dots; longer numbers at ticks get an exponent.
_MOST_DOTS, _LONGEST_TICK = 60, 8
#: Side of a heat map's cell, width of a character of a label, longest label in characters.
_CELL, _CHARACTER, _LONGEST = 17.0, 6.7, 16


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name, its colour in the style sheet, and pairs of step and value."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A chart or heat map: what it shows, and the SVG."""

    title: str
    svg: Markup


def line_chart(title: str, series: Sequence[Series], *, zero: bool = False) -> Drawing | None:
    """Draw values over steps.

    Args:
        title: what it shows.
        series: lines; values that are not finite are left out.
        zero: whether 0 must be in sight and marked.

    Returns:
        The drawing, or ``None`` if there is nothing to show.
    """
    lines = [
        Series(one.name, one.colour, [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)])
        for one in series
    ]
    lines = [one for one in lines if one.points]
    if not lines:
        return None
    left, right, above, below = _MARGINS
    figure, axes = _figure(_WIDTH, _HEIGHT, left, right, above, below)
    axes.grid(axis="y", color=_COLOURS["rule"], linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["soft"])
    axes.tick_params(axis="y", length=0, labelcolor=_COLOURS["soft"])
    axes.tick_params(axis="x", length=0, pad=7, labelcolor=_COLOURS["soft"])
    axes.set_xlabel("step", color=_COLOURS["soft"])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(_Ticks())
    axes.margins(x=0, y=0.04)
    tips = {}
    if zero:
        axes.axhline(0, color=_COLOURS["ink"], linewidth=1)
    for n, one in enumerate(lines):
        steps, values = zip(*one.points, strict=True)
        style = (0, (2.5, 2)) if one.colour == "teacher" else "solid"
        axes.plot(
            steps,
            values,
            color=_COLOURS[one.colour],
            linewidth=2,
            linestyle=style,
            clip_on=False,
            gid=f"line{n}",
        )
        for m, (step, value) in enumerate(one.points if len(one.points) <= _MOST_DOTS else ()):
            gid = f"dot{n}.{m}"
            axes.scatter(
                [step], [value], s=27, color=_COLOURS[one.colour], linewidths=0, clip_on=False, gid=gid
            )
            tips[gid] = f"{one.name}, step {step:g}: {value:.4g}"
    spoken = "; ".join(
        f"{one.name} from {one.points[0][1]:.4g} at step {one.points[0][0]:g} "
        f"to {one.points[-1][1]:.4g} at step {one.points[-1][0]:g}"
        for one in lines
    )
    return Drawing(title, _svg(figure, f"{title}: {spoken}.", tips, "tick"))


def heat_map(
    title: str,
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    colour: str,
    tip: Callable[[int, int], str],
    full: float,
    root: bool = False,
) -> Drawing:
    """Draw a table of values >= 0 as cells that are the more coloured the larger the value is.

    Args:
        title: what it shows.
        values: the table, ``(rows, columns)``.
        rows: labels of the rows.
        columns: labels of the columns.
        colour: of full cells, as the style sheet calls it.
        tip: what a cell says when pointed at.
        full: value of full colour.
        root: colour by the square root of the value, so that small ones are seen.
    """
    row_names, column_names = [_short(label) for label in rows], [_short(label) for label in columns]
    left = max(map(_columns, row_names), default=0) * _CHARACTER + 8
    above = max(map(_columns, column_names), default=0) * _CHARACTER + 8
    width, height = max(len(columns), 1) * _CELL, max(len(rows), 1) * _CELL
    figure, axes = _figure(left + width + 2, above + height + 2, left, 2, above, 2)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.add_patch(Rectangle((0, 0), width, height, color=_COLOURS["ground"], linewidth=0))
    strength = np.clip(values / full if full > 0 else values * 0, 0, 1) ** (0.5 if root else 1)
    tips = {}
    for i, j in np.argwhere(strength >= 0.004).tolist():
        gid = f"cell{i}.{j}"
        corner, alpha = (_CELL * j, _CELL * i), float(strength[i, j])
        axes.add_patch(
            Rectangle(
                corner,
                _CELL - 1,
                _CELL - 1,
                color=_COLOURS[colour],
                alpha=alpha,
                linewidth=0,
                clip_on=False,
                gid=gid,
            )
        )
        tips[gid] = tip(i, j)
    written: dict[str, Any] = {"parse_math": False, "color": _COLOURS["ink"], "fontsize": 11}
    for i, name in enumerate(row_names):
        axes.text(-5, _CELL * (i + 0.5) + 4, name, ha="right", va="baseline", **written)
    for j, name in enumerate(column_names):
        axes.text(
            _CELL * (j + 0.5) + 4,
            -5,
            name,
            ha="left",
            va="baseline",
            rotation=90,
            rotation_mode="anchor",
            **written,
        )
    label = f"{title}: {len(rows)} rows, {len(columns)} columns"
    return Drawing(title, _svg(figure, label, tips, "label"))


def legible(text: str) -> str:
    """Text in which nothing is invisible, rings a bell, or changes how what follows is read."""
    return "".join(
        f"\\u{{{ord(c):x}}}" if unicodedata.category(c)[0] == "C" and c not in "\n\t" else c for c in text
    )


class _Ticks(ScalarFormatter):
    """Numbers as they are, those that take too much room by their first three digits."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)

    def format_ticks(self, values: Any) -> list[str]:
        labels: list[str] = super().format_ticks(values)
        if any(len(label) > _LONGEST_TICK for label in labels):
            return [f"{value:.3g}" for value in values]
        return labels


def _figure(
    width: float, height: float, left: float, right: float, above: float, below: float
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width / _UNITS, height / _UNITS), frameon=False)
    room = (left / width, below / height, 1 - (left + right) / width, 1 - (above + below) / height)
    axes = figure.add_axes(room, frameon=True)
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, label: str, tips: Mapping[str, str], text_class: str) -> Markup:
    """A figure as SVG to stand in a page: its colours and fonts are the page's, its parts have tips."""
    buffer = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts have more
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in [*root.iter()]:
        parent.tag = parent.tag.rpartition("}")[2]
        for child in [*parent]:
            if child.tag.rpartition("}")[2] in ("metadata", "defs"):
                parent.remove(child)
        gid = parent.attrib.pop("id", "")
        if gid in tips:
            title = ElementTree.Element("title")
            title.text = legible(tips[gid])
            parent.insert(0, title)
        parent.attrib.pop("clip-path", None)
        if "style" in parent.attrib:
            style = re.sub(r"font(-size|-family)?: [^;]*(; |$)", "", parent.attrib["style"])
            for name, colour in _COLOURS.items():
                style = style.replace(colour, f"var(--{name})")
            parent.attrib["style"] = style
        if parent.tag == "text":
            parent.attrib["class"] = text_class
        elif parent.tag == "use":  # a marker
            style, x, y = (parent.attrib[name] for name in ("style", "x", "y"))
            parent.tag, parent.attrib = "circle", {"cx": x, "cy": y, "r": "2.6", "style": style}
    size = {name: root.attrib[name].removesuffix("pt") for name in ("width", "height")}
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": legible(label), **size}
    source = ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)
    return Markup(source.replace("'", "&#39;"))


def _short(label: str) -> str:
    label = legible(label)
    while _columns(label) > _LONGEST:
        label = label.removesuffix("…")[:-1] + "…"
    return label


def _columns(label: str) -> int:
    """Columns that a label takes in a monospaced font."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in label)
