"""Print constraints that pin what some extras need to the lowest versions that pyproject.toml allows."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lowest(project: dict, extras: list[str]) -> dict[str, str]:
    """Lowest version of each requirement, those of other extras of the project included."""
    optional = project["optional-dependencies"]
    wanted, seen = [*project["dependencies"], *(line for name in extras for line in optional[name])], set()
    versions: dict[str, str] = {}
    while wanted:
        line = wanted.pop()
        if line in seen:
            continue
        seen.add(line)
        if inner := re.match(rf"{project['name']}\[(.*?)\]", line):
            wanted += [each for name in inner[1].split(",") for each in optional[name.strip()]]
        elif match := re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9][0-9.]*)", line):
            versions[match[1]] = match[2]
    return versions


if __name__ == "__main__":
    path, *extras = sys.argv[1:]
    for name, version in lowest(tomllib.loads(Path(path).read_text())["project"], extras).items():
        print(f"{name}=={version}")
