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
    "loss": "The loss, forward and backward",
    "transport": "Transport alone",
    "transport-2048": "Transport alone, 2048 positions",
    "sweep": "Vocabulary, length and batch",
}
_PICTURE = re.compile(r"!\[(.*?)\]\((.+?)\)", flags=re.DOTALL)


def page(results: Path = RESULTS) -> str:
    """Markdown of all reports."""
    reports = sorted(results.glob("**/*.md"), key=lambda path: (path.parent, path.stem))
    if not reports:
        return "No results yet: `make bench` makes some.\n"
    return "\n\n".join(part for path in reports for part in section(path, results)) + "\n"


def section(path: Path, results: Path) -> Iterator[str]:
    """Parts of one report: its title, its figure if it has figures, and its text one level lower."""
    folder = path.parent.relative_to(results).as_posix()
    name = path.stem
    lines = path.read_text().splitlines()
    title = lines[0].removeprefix("# ").strip() if lines and lines[0].startswith("# ") else name
    if title == name:
        title = _TITLES.get(name, name.replace("-", " ").capitalize())
    yield f"## {title}" if folder in (".", name) else f"## {title} ({folder})"
    yield f"From `benchmarks/results/{path.relative_to(results).as_posix()}`."
    yield from _drawing(path.with_suffix(".json"))
    body = "\n".join(lines[1:])
    body = re.sub(r"^#", "##", body, flags=re.MULTILINE)
    body = re.sub(r"^(Settings|Measured on): ", r"**\1:** ", body, flags=re.MULTILINE)
    yield _PICTURE.sub(lambda found: _picture(found[1], path.parent / found[2]), body).strip()


def _drawing(figures: Path) -> Iterator[str]:
    if not figures.exists():
        return
    rows = json.loads(figures.read_text()).get("rows", [])
    if not any(row.get("seconds") for row in rows):
        return
    kind = "curves" if any(row.get("point") for row in rows) else "bars"
    names = list(dict.fromkeys(row["name"] for row in rows))
    if kind == "curves":
        axes = list(dict.fromkeys(row["point"]["axis"] for row in rows if row.get("point")))
        text = f"Time and peak memory against {', '.join(axes)} on logarithmic axes, one curve for each of: "
    else:
        text = "Bars of median time and of peak memory without the gradient's own size, for: "
    yield "\n".join(
        [
            f"```{{drawn}} benchmark_figures.py {kind} ../{figures.relative_to(_DOCS.parent).as_posix()}",
            f":alt: {text}{'; '.join(names)}. The tables below have the same figures.",
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
