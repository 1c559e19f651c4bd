"""The page of benchmarks, made from what lies under ``benchmarks/results`` when the pages are built.

Every report there (a Markdown file) becomes a section, in the order of its path; its pictures are copied, and
where its figures are beside it as JSON, they are drawn.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_DOCS = Path(__file__).resolve().parent.parent
RESULTS = _DOCS.parent / "benchmarks" / "results"
_MADE = _DOCS / "_drawn" / "benchmarks"
_TITLES = {
    "criterion": "The whole criterion",
    "criterion-2-threads": "The whole criterion, two threads",
    "loss": "The loss, forward and backward",
    "transport": "Transport alone",
    "transport-2048": "Transport alone, 2048 positions",
    "sweep": "Vocabulary, length and batch",
    "align": "Pairing two tokenizations",
}
_PICTURE = re.compile(r"!\[(.*?)\]\((.+?)\)", flags=re.DOTALL)


def page(results: Path = RESULTS) -> str:
    """Markdown of all reports."""
    order = list(_TITLES)
    reports = sorted(
        results.glob("**/*.md"),
        key=lambda path: (path.parent, order.index(path.stem) if path.stem in order else 99, path.stem),
    )
    if not reports:
        return "No results yet: `make bench` makes some.\n"
    return "\n\n".join(part for path in reports for part in section(path, results)) + "\n"


def section(path: Path, results: Path) -> Iterator[str]:
    """Parts of one report.

    One that has figures: title, figure, how it was measured, what is to know, and the tables folded away.
    Any other: its text, one level lower.
    """
    folder = path.parent.relative_to(results).as_posix()
    title, _, body = path.read_text().partition("\n")
    title = _TITLES.get(path.stem, title.removeprefix("# ").strip())
    yield f"## {title}" if folder in (".", path.stem) else f"## {title} ({folder})"
    yield f"From `benchmarks/results/{path.relative_to(results).as_posix()}`."
    body = re.sub(r"^(Settings|Measured on): ", r"**\1:** ", body, flags=re.MULTILINE)
    body = _PICTURE.sub(lambda found: _picture(found[1], path.parent / found[2]), body)
    drawing = _drawing(path.with_suffix(".json"))
    if drawing is None:
        yield re.sub(r"^#", "##", body, flags=re.MULTILINE).strip()
        return
    yield drawing
    first = body.index("\n## ")
    last = body.index("\n- ", first) if "\n- " in body[first:] else len(body)
    yield body[:first].strip()
    yield body[last:].strip()
    tables = re.sub(r"^#+ (.*)$", r"**\1**", body[first:last], flags=re.MULTILINE)
    yield f":::{{dropdown}} Tables\n{tables.strip()}\n:::"


def _drawing(figures: Path) -> str | None:
    """Directive that draws the figures beside a report, if there are such."""
    if not figures.exists():
        return None
    rows = json.loads(figures.read_text()).get("rows", [])
    if not any(row.get("seconds") for row in rows):
        return None
    names = list(dict.fromkeys(row["name"] for row in rows))
    axes = list(dict.fromkeys(row["point"]["axis"] for row in rows if row.get("point")))
    if axes:
        kind = "curves"
        text = f"Time and memory against {', '.join(axes)} on logarithmic axes, one curve for each of: "
    else:
        kind = "bars"
        measured = all(row.get("beyond_gradient_bytes") is not None for row in rows if row["seconds"])
        memory = " and of memory beyond inputs and gradient" if measured else ""
        text = f"Bars of median time{memory}, for: "
    return "\n".join(
        [
            f"```{{drawn}} benchmark_figures.py {kind} ../{figures.relative_to(_DOCS.parent).as_posix()}",
            f":alt: {text}{'; '.join(names)}. The tables have the same figures.",
            "```",
        ]
    )


def _picture(text: str, path: Path) -> str:
    """Directive that shows a picture that a report has, from a copy of it."""
    copy = _MADE / f"{path.parent.name}-{path.name}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, copy)
    where = copy.relative_to(_DOCS).as_posix()
    return f"```{{image}} /{where}\n:alt: {' '.join(text.split())}\n:class: plate\n```"


def _write(app: Sphinx) -> None:
    target = _MADE / "page.inc"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = page()
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
