"""The picture of the landing page, drawn while the pages are built."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    return {"parallel_read_safe": True, "parallel_write_safe": True}
