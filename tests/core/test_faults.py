"""What `make mutation` plants, and two faults that once no test found."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from faults import Fault, faults_of
from mlot.backends.torch.backend import TorchBackend
from mutation import ROOT, SURVIVORS
from problems import terms_in_autocast

SOURCE = '''
import functools


def kept(function):
    @functools.wraps(function)
    def wrapped(*arguments):
        return function(*arguments) + 100

    return wrapped


def scaled(x, weights=3):
    """Not 1 + 1."""
    if x < 0:
        raise ValueError(f"x: {x + 1}")
    return sum([x * 2], start=0)


class Model:
    @kept
    def step(self, x: int = 4) -> int:
        return -x
'''


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    path = tmp_path / "planted.py"
    path.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("planted", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def faults(module: ModuleType) -> dict[str, Fault]:
    path = Path(module.__file__)
    return {fault.name: fault for fault in faults_of(path, path.parent)}


def test_what_is_planted(module: ModuleType) -> None:
    """Neither in annotations, defaults, documentation, nor in what is raised."""
    assert list(faults(module)) == [
        "planted.py::kept: function(*arguments) + 100 -> function(*arguments) - 100",
        "planted.py::kept: 100 -> 101",
        "planted.py::scaled: if x < 0: -> if not x < 0:",
        "planted.py::scaled: x < 0 -> x <= 0",
        "planted.py::scaled: 0 -> 1",
        "planted.py::scaled: x * 2 -> x / 2",
        "planted.py::scaled: 2 -> 3",
        "planted.py::scaled: 0 -> 1 (number 2)",
        "planted.py::Model.step: -x -> x",
        "planted.py::Model.step: without @kept",
    ]


def test_a_planted_fault_is_what_everybody_calls(module: ModuleType) -> None:
    scaled, model = module.scaled, module.Model()
    found = faults(module)
    assert (scaled(3), model.step(3)) == (6, 97)
    found["planted.py::scaled: 2 -> 3"].plant()
    assert scaled(3) == 9
    found["planted.py::Model.step: -x -> x"].plant()
    assert model.step(3) == 103
    found["planted.py::Model.step: without @kept"].plant()
    assert model.step(3) == 3
    assert Path(module.__file__).read_text(encoding="utf-8") == SOURCE


def test_every_survivor_has_a_reason_and_is_one_that_can_be_planted() -> None:
    groups = tomllib.loads(SURVIVORS.read_text(encoding="utf-8"))["survivors"]
    listed = [name for group in groups for name in group["changes"]]
    assert len(set(listed)) == len(listed)
    assert all(len(group["reason"].split()) > 10 for group in groups)
    files = {name.partition("::")[0] for name in listed}
    assert set(listed) <= {fault.name for file in files for fault in faults_of(ROOT / file, ROOT)}


@pytest.mark.parametrize("matching", ["sinkhorn", "optimal"])
def test_without_its_guard_the_sequence_cost_is_rounded(
    matching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is what `test_precision.py` finds, in that term alone."""
    monkeypatch.setattr(TorchBackend, "sequence_cost", TorchBackend.sequence_cost.__wrapped__)
    plain, rounded = (terms_in_autocast(matching, "log", on) for on in (False, True))
    same = [torch.equal(one, two) for one, two in zip(plain, rounded, strict=True)]
    assert same == [False, True, True, False, False]
