"""The wheel, and environments that have it and some distributions of this environment, but nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def build_wheel(folder: Path) -> Path:
    """Build the wheel in a folder."""
    pytest.importorskip("build", reason="the build front end is not installed")
    source, out = folder / "source", folder / "dist"
    shutil.copytree(ROOT / "mlot", source / "mlot", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("*.whl")
    return wheel


def environment(wheel: Path, folder: Path, extra: str | None = None) -> Path:
    """Make an environment with the wheel, and with what it and one of its extras require.

    The required distributions are those of this environment, linked into the other one file by file of their
    records, so that what no requirement names cannot be imported there.

    Returns:
        Its Python.
    """
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (record,) = site.glob("mlot-*.dist-info")
    for distribution in _required(metadata.Distribution.at(record), {extra} if extra else set()):
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            there, here = site / top, Path(str(distribution.locate_file(top)))
            if not there.exists() and here.exists() and top != "__pycache__":
                there.symlink_to(here)
    return folder / "bin" / "python"


def run_python(python: Path, code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program in an environment, in a folder of its own and with warnings as errors of our own alone."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, "-c", code], env=clean, cwd=folder, capture_output=True, text=True, check=False
    )


def _required(root: metadata.Distribution, extras: set[str]) -> list[metadata.Distribution]:
    """All distributions that one requires with some of its extras, and those that they require."""
    environment = {"python_version": sysconfig.get_python_version()}
    todo, seen = [(root, frozenset(extras))], set()
    required = {}
    while todo:
        distribution, wanted = todo.pop()
        name = canonicalize_name(distribution.metadata["Name"])
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        required[name] = distribution
        for line in distribution.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate(environment | {"extra": e}) for e in ("", *wanted)):
                own = canonicalize_name(requirement.name) == canonicalize_name(root.metadata["Name"])
                found = root if own else metadata.distribution(requirement.name)
                todo.append((found, frozenset(requirement.extras)))
    del required[canonicalize_name(root.metadata["Name"])]
    return list(required.values())
