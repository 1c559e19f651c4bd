"""The wheel: what is in it, and that it works with NumPy and SciPy alone."""

import ast
import os
import subprocess
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy

import mlot
from wheels import build_wheel

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"mlot-{mlot.__version__}.dist-info/METADATA").decode()
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mlot").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert "mlot/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(line.split(">")[0] for line in required) == ["numpy", "scipy"]
    for extra in ("torch", "pot", "io", "hf", "demo", "all"):
        assert f"Provides-Extra: {extra}" in metadata


@pytest.mark.slow
def test_a_clean_environment_with_numpy_and_scipy(wheel: Path, tmp_path: Path) -> None:
    """Installed by pip into an environment that has nothing else; NumPy and SciPy are lent by this one."""
    environment = tmp_path / "clean"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        check=True,
        env=clean,
    )
    (site,) = (environment / "lib").glob("python*/site-packages")
    for package in (np, scipy):
        folder = Path(package.__file__).parent
        for lent in (folder, folder.with_name(folder.name + ".libs")):
            if lent.exists():
                (site / lent.name).symlink_to(lent)
    code = (
        "import sys, numpy as np, mlot, mlot.backends\n"
        "assert 'site-packages' in mlot.__file__\n"
        "rng = np.random.default_rng(0)\n"
        "student, teacher = rng.normal(size=(2, 5, 30)), rng.normal(size=(2, 7, 40))\n"
        "result = mlot.multi_level_ot(student, teacher)\n"
        "print(round(float(result.loss), 12), result.diagnostics().matching_gap.tolist())\n"
        "print(sorted({'torch', 'ot', 'transformers', 'safetensors'} & set(sys.modules)))\n"
        "for call in (lambda: mlot.emd(np.zeros((2, 2))), lambda: mlot.get_backend('torch')):\n"
        "    try: call()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [python, "-W", "error", "-c", code], env=clean, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, imported, *errors = done.stdout.splitlines()
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 30)), rng.normal(size=(2, 7, 40))
    want = float(mlot.multi_level_ot(student, teacher).loss)
    assert first == f"{round(want, 12)} [0.0, 0.0]"
    assert imported == "[]"
    assert ["POT" in errors[0], "torch" in errors[1]] == [True, True]


def test_public_names() -> None:
    """Every name in __all__ exists, has a docstring, and nothing else is public."""
    modules = {"align", "backends", "compat", "config", "costs", "distill", "divergences", "losses", "masks"}
    modules |= {"bounds", "matching", "nn", "serving", "sources", "teachers", "testing", "topk", "traces"}
    modules |= {"baselines", "targets", "text", "transport", "verify"}
    modules |= {"distributed", "saved", "training", "trl"}
    for name in mlot.__all__:
        assert getattr(mlot, name).__doc__, name
    public = {name for name in vars(mlot) if not name.startswith("_")}
    assert public <= set(mlot.__all__) | modules


def test_public_functions_say_what_they_take_return_and_raise() -> None:
    for name in mlot.__all__:
        value = getattr(mlot, name)
        if not callable(value) or isinstance(value, type):
            continue
        arguments = value.__code__.co_varnames[
            : value.__code__.co_argcount + value.__code__.co_kwonlyargcount
        ]
        doc = value.__doc__ or ""
        for section in ("Raises:", *(("Args:",) if arguments else ())):
            assert section in doc, f"{name}: no section {section}"
        for argument in arguments:
            assert f"{argument}:" in doc, f"{name}: argument {argument} is not documented"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "mlot/_version.py"
    for file in ("CITATION.cff", "CHANGELOG.md"):
        assert mlot.__version__ in (ROOT / file).read_text(), file


def test_constraints_name_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"]]
    wanted += [each for name in extras for each in extras[name]]
    wanted += [each for name in ("test", "lint") for each in groups[name]]
    names = {each.split(">")[0].lower() for each in wanted if not each.startswith("mlot[")}
    assert names <= pinned


def test_files_have_one_subject() -> None:
    for path in (ROOT / "mlot").rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path.name
        assert ast.get_docstring(ast.parse(text)), f"{path.name} does not say what it is for"
