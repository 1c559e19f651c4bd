"""Cross-references to other projects without a network.

Each file of ``_inventories`` lists the objects of one project that these pages refer to, one a line: name,
type, where the project's pages describe it, and any shorter names that signatures have for it. From these
lists, inventories in the format of intersphinx are written at build time. ``docs/check.py`` says which
objects are listed and never referred to.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

FOLDER = Path(__file__).resolve().parent.parent / "_inventories"


@dataclass(frozen=True)
class Listed:
    """An object of another project."""

    name: str
    kind: str
    address: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """Objects of one project, and where its pages are."""

    name: str
    address: str
    objects: tuple[Listed, ...]


def read(path: Path) -> Project:
    """Read a list; its first line is the address of the project's pages.

    Raises:
        ValueError: a line is not a name, a type and an address, or a name comes twice.
    """
    lines = [line.strip() for line in path.read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or not lines[0].startswith("https://"):
        raise ValueError(f"{path.name}: expected the address of the project's pages on the first line")
    objects = []
    for line in lines[1:]:
        fields = line.split()
        if len(fields) < 3:
            raise ValueError(f"{path.name}: expected a name, a type and an address, got {line!r}")
        objects.append(Listed(fields[0], fields[1], fields[2], tuple(fields[3:])))
    names = [name for listed in objects for name in (listed.name, *listed.others)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path.name}: more than once: {', '.join(twice)}")
    return Project(path.stem, lines[0], tuple(objects))


def encode(project: Project) -> bytes:
    """Inventory of a project, version 2 of the format."""
    head = f"# Sphinx inventory version 2\n# Project: {project.name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = [f"{name} py:{o.kind} 1 {o.address} -" for o in project.objects for name in (o.name, *o.others)]
    body = "".join(f"{line}\n" for line in sorted(lines))
    return head.encode() + zlib.compress(body.encode(), 9)


def _write(app: Sphinx, config: Config) -> None:
    folder = Path(app.doctreedir) / "inventories"
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for path in sorted(FOLDER.glob("*.txt")):
        project = read(path)
        target = folder / f"{project.name}.inv"
        target.write_bytes(encode(project))
        mapping[project.name] = (project.address, str(target))
    config.intersphinx_mapping = mapping


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("config-inited", _write, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
