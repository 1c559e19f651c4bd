"""The README's examples run, and what it names exists."""

import re
import warnings
from pathlib import Path

import pytest

import mlot

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run(number: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(EXAMPLES[number], f"README example {number + 1}", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 5


def test_commands_are_targets() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) | set(
        re.findall(r"`make (\w+)", README)
    )
    assert {"demo", "test"} <= named <= targets


def test_settings_have_the_defaults_that_are_written() -> None:
    config = mlot.MultiLevelOTConfig()
    for name, value in re.findall(r"`(\w+)=([\w.\"]+)`", README):
        if hasattr(config, name) and name != "alpha":
            assert getattr(config, name) == eval(value), name
