"""Figures of the gallery: one in light and one in dark colours, each with a text that says what it shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sphinx.application import Sphinx

INK, DARK_INK = "#1f2328", "#d4d7dc"
_SHORTEST_TEXT = 40
STYLE = {
    "figure.figsize": (7.2, 3.6),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.prop_cycle": matplotlib.cycler(color=["#3b82c4", "#e0782f", "#2f9e6e", "#c2569b", "#8a8f98"]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "image.cmap": "viridis",
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}


def use_style() -> None:
    """Set matplotlib to the look of these pages."""
    matplotlib.rcdefaults()
    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)


def save(figure: Figure, light: Path, dark: Path) -> None:
    """Write a figure twice; the dark one has light ink, everything else as drawn."""
    light.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(light, facecolor="none")
    for artist in figure.findobj():
        _swap(artist)
    figure.savefig(dark, facecolor="none")


def _swap(artist: Artist) -> None:
    for what in ("color", "edgecolor", "facecolor", "markeredgecolor", "markerfacecolor"):
        read, write = getattr(artist, f"get_{what}", None), getattr(artist, f"set_{what}", None)
        if read is None or write is None:
            continue
        try:
            colour = to_hex(read(), keep_alpha=False)
        except (TypeError, ValueError):  # many colours at once, or a name such as "none"
            continue
        if colour == INK and _visible(read()):
            write(DARK_INK)


def _visible(colour: Any) -> bool:
    from matplotlib.colors import to_rgba

    return to_rgba(colour)[3] > 0


def reset(conf: dict[str, Any], name: str) -> None:
    """Give each example of the gallery the same start."""
    import numpy

    use_style()
    numpy.random.seed(0)  # noqa: NPY002 - whatever an example or a library draws from


def scrape(block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """Write every open figure twice, and the lines that show the one that fits the reader's colours.

    Raises:
        ValueError: a figure has no text; ``figure.set_label(...)`` gives it one.
    """
    import matplotlib.pyplot as plt

    shown = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        text = " ".join(str(figure.get_label()).split())
        if len(text) < _SHORTEST_TEXT:
            raise ValueError(
                f"figure {number} needs figure.set_label(text that says what it shows), got {text!r}"
            )
        light = Path(next(variables["image_path_iterator"]))
        dark = light.with_name(f"{light.stem}_dark{light.suffix}")
        save(figure, light, dark)
        shown += list(_lines(light, dark, text, Path(conf["src_dir"])))
    plt.close("all")
    return "\n".join(shown)


def _lines(light: Path, dark: Path, text: str, root: Path) -> Iterator[str]:
    for path, kind in ((light, "only-light"), (dark, "only-dark")):
        yield f".. image:: /{path.relative_to(root).as_posix()}"
        yield f"   :alt: {text}"
        yield f"   :class: {kind} figure"
        yield ""


_THUMBNAIL = re.compile(
    r"(    :alt:)(\n\n  :doc:`.+?`\n\n.. raw:: html\n\n      <div class=\"sphx-glr-thumbnail-title\">)(.+?)<"
)


def _say_what_thumbnails_show(app: Sphinx, page: str, source: list[str]) -> None:
    if page == "examples/index":
        source[0] = _THUMBNAIL.sub(r"\1 First figure of the example: \3\2\3<", source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", _say_what_thumbnails_show)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
