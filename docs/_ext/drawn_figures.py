"""Directive ``drawn``: a figure that a function of this repository draws while the pages are built.

    ```{drawn} figures/matching.py gap
    :alt: What the figure shows, for who cannot see it.

    The caption.
    ```

calls ``gap()`` of ``docs/figures/matching.py``, which returns a matplotlib figure, and shows it in light or
dark colours, whichever the reader has. A third argument, the path of a file with data, is passed on.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gallery_figures
from docutils import nodes
from docutils.parsers.rst import directives
from matplotlib import pyplot
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_SHORTEST_TEXT = 40


class Drawn(SphinxDirective):
    """Draw a figure, and show it."""

    required_arguments = 2
    optional_arguments = 1
    has_content = True
    option_spec: ClassVar = {"alt": directives.unchanged_required, "name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Draw the figure and return its nodes."""
        script, function, *data = self.arguments
        text = " ".join(self.options.get("alt", "").split())
        if len(text) < _SHORTEST_TEXT:
            raise self.error(
                f"drawn: {script} {function} needs :alt:, a text that says what the figure shows"
            )
        root = Path(self.env.srcdir)
        path = root / script
        sources = [path, *sorted(path.parent.glob("*.py")), *sorted(path.parent.glob("data/*"))]
        sources += [root / one for one in data]
        for source in sources:
            self.env.note_dependency(str(source))
        name = "-".join([path.stem, function, *(Path(one).with_suffix("").as_posix() for one in data)])
        light = root / "_drawn" / f"{name.replace('../', '').replace('/', '-')}.png"
        dark = light.with_name(f"{light.stem}-dark.png")
        if not _fresh(light, dark, sources):
            gallery_figures.use_style()
            gallery_figures.save(getattr(_module(path), function)(*data), light, dark)
            pyplot.close("all")
        figure = nodes.figure()
        for image, kind in ((light, "only-light"), (dark, "only-dark")):
            node = nodes.image(
                uri=f"/{image.relative_to(root).as_posix()}", alt=text, classes=[kind, "figure"]
            )
            node["candidates"] = {}
            figure += node
        if self.content:
            parsed = nodes.Element()
            self.state.nested_parse(self.content, self.content_offset, parsed)
            first, *rest = parsed.children
            if not isinstance(first, nodes.paragraph):
                raise self.error(f"drawn: the caption of {script} {function} starts with a paragraph")
            figure += nodes.caption(first.rawsource, "", *first.children)
            if rest:
                figure += nodes.legend("", *rest)
        self.add_name(figure)
        return [figure]


def _fresh(light: Path, dark: Path, sources: Sequence[Path]) -> bool:
    """Whether both files are newer than all that they are drawn from."""
    if not (light.exists() and dark.exists()):
        return False
    newest = max(source.stat().st_mtime for source in [*sources, Path(gallery_figures.__file__)])
    return min(light.stat().st_mtime, dark.stat().st_mtime) > newest


def _module(path: Path) -> ModuleType:
    name = f"drawn_from_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    sys.path.insert(0, str(path.parent))  # so that scripts beside it can be imported
    try:
        spec.loader.exec_module(made)
    finally:
        sys.path.remove(str(path.parent))
    return made


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
