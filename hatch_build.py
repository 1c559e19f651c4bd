"""The README on a package's page: its relative links lead to the address that pyproject.toml has once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute_links(text: str, address: str) -> str:
    """Markdown with its relative links made absolute."""
    return _RELATIVE.sub(lambda match: f"]({address.rstrip('/')}/{match[1]})", text)


class ReadmeHook(MetadataHookInterface):
    """Gives the built package its readme."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme."""
        address = metadata["urls"]["Source"]
        text = absolute_links(Path(self.root, "README.md").read_text(encoding="utf-8"), address)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
