"""MathJax from the built pages themselves: one bundle and its fonts, nothing else, nothing from a network."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

_BUNDLE = "tex-chtml.js"
_FONTS = "output/chtml/fonts/woff-v2"


def package_folder() -> Path:
    """Folder of the MathJax files that the package sphinx-mathjax-offline brings."""
    spec = find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError("sphinx-mathjax-offline is not installed; `make docs` installs it")
    return Path(spec.origin).parent / "static" / "mathjax"


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    source, target = package_folder(), Path(app.outdir) / "_static" / "mathjax"
    (target / _FONTS).mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / _BUNDLE, target / _BUNDLE)
    for font in sorted((source / _FONTS).glob("*.woff")):
        shutil.copy2(font, target / _FONTS / font.name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.config.mathjax_path = f"mathjax/{_BUNDLE}"
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
