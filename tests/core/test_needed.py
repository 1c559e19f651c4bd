"""Packages that parts of the library need: what is missing or too old is named before anything is imported."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mlot import _needed
from mlot._needed import require_packages

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def installed(monkeypatch):
    """Say what is installed, as if it were."""

    def install(**packages):
        def version(name):
            if packages[name] is None:
                raise _needed.PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(_needed, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(_needed, "version", version)

    return install


@pytest.mark.parametrize(
    ("packages", "message", "name"),
    [
        ({"torch": "2.13.0+cpu"}, "mlot.x needs lots, not installed here; ", "lots"),
        ({"torch": "2.13.0", "lots": "1.9.9"}, "mlot.x needs lots>=1.10 (found 1.9.9); ", "lots"),
        ({"lots": "1.9"}, "mlot.x needs torch, not installed here and lots>=1.10 (found 1.9); ", "torch"),
        ({"torch": "2.13.0", "lots": "1"}, "mlot.x needs lots>=1.10 (found 1); ", "lots"),
    ],
)
def test_what_is_lacking_is_named(installed, packages, message, name):
    installed(**packages)
    with pytest.raises(ImportError) as caught:
        require_packages("mlot.x", "demo", ("torch", "lots>=1.10"))
    assert str(caught.value) == message + 'pip install "mlot[demo]"'
    assert caught.value.name == name


@pytest.mark.parametrize("found", ["1.10", "1.10.0", "1.11.dev0", "2.0", "1.10.0+local", None])
def test_versions_that_will_do(installed, found):
    installed(torch="2.0", lots=found)
    require_packages("mlot.x", "demo", ("torch", "lots>=1.10"))


def test_versions_are_those_of_the_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def brought(extra):
        for wanted in extras[extra]:
            included = re.fullmatch(r"mlot\[(.*)\]", wanted)
            if included is None:
                yield wanted
            else:
                for other in included[1].split(","):
                    yield from brought(other)

    for file, extra in (("_needed.py", "hf"), ("distill/__init__.py", "demo")):
        asked_for = re.findall(r'"(\w+>=[\d.]+)"', (ROOT / "mlot" / file).read_text())
        assert asked_for
        assert set(asked_for) <= {*brought(extra)}, file


def test_an_old_transformers_is_refused_at_import():
    pytest.importorskip("transformers")
    program = (
        "import importlib.metadata as m; known = m.version\n"
        "m.version = lambda name: '5.3.0' if name == 'transformers' else known(name)\n"
        "import mlot.training"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "mlot.training needs transformers>=5.21 (found 5.3.0); " in done.stderr
