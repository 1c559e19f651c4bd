"""``python -m mlot.verify``: what it prints, and its exit status."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

import mlot
from mlot import verify
from mlot.testing import Record

pytestmark = pytest.mark.slow

ROOT = Path(mlot.__file__).parents[1]

#: A backend that a package registers on installation: the reference, but for one operation.
WRONG = """
import mlot
from mlot.backends.numpy.backend import NumpyBackend

SPEC = mlot.BackendSpec("wrong", "wrong_plugin", ("wrong_plugin.Array",), "Wrong")

class Wrong(NumpyBackend):
    name = "wrong"

    def had(self, student, teacher, pairs):
        return 1.001 * super().had(student, teacher, pairs)
"""
BLOCKER = """
import os, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["MLOT_TEST_BLOCKED"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run(*arguments: str, paths: tuple[Path, ...] = (), blocked: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mlot.verify", *arguments],
        env={
            "PYTHONPATH": ":".join(map(str, (*paths, ROOT))),
            "OMP_NUM_THREADS": "1",
            "MLOT_TEST_BLOCKED": blocked,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def rows(output: str) -> dict[tuple[str, str], list[str]]:
    """Cells of the table, by quantity and backend."""
    heading, rule, *lines = output.splitlines()[1:]
    assert heading.split() == ["quantity", "backend", "cases", "worst", "error", "tolerance", "verdict"]
    starts = [n for n, mark in enumerate(rule) if mark == "-" and (n == 0 or rule[n - 1] == " ")]
    bounds = list(zip(starts, [*starts[1:], None], strict=True))
    table = [[line[start:stop].strip() for start, stop in bounds] for line in lines]
    return {(cells[0], cells[1]): cells[2:] for cells in table if cells[-1] in ("pass", "FAIL", "skipped")}


@pytest.fixture
def without(tmp_path: Path) -> tuple[Path, ...]:
    """Where an import hook lies that makes packages look as if they were not installed."""
    folder = tmp_path / "blocker"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return (folder,)


def plugin(folder: Path, code: str, entry: str = "wrong_plugin:SPEC") -> tuple[Path, ...]:
    """Install a one-file package with an entry point."""
    (folder / "wrong_plugin.py").write_text(code)
    metadata = folder / "wrong_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[mlot.backends]\nwrong = {entry}\n")
    return (folder,)


# -- verdicts --------------------------------------------------------------------------------------------


def test_this_installation_is_right() -> None:
    done = run("--cases", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    assert {backend for _, backend in found} == set(mlot.available_backends())
    assert found["gradient of loss", "torch"][0] == "3"
    assert found["gradient of loss", "torch"][-1] == "pass"
    assert found["emd", "numpy"][-1] == "pass"
    first, *_, last = done.stdout.splitlines()
    assert first.startswith(f"mlot {mlot.__version__}, Python ")
    assert ", 0 failed, 1 skipped, with seed 0 in " in last


def test_a_wrong_backend_fails(tmp_path: Path) -> None:
    done = run("--cases", "2", "--backend", "wrong", "--backend", "numpy", paths=plugin(tmp_path, WRONG))
    assert done.returncode == 1, done.stderr
    found = rows(done.stdout)
    failed = {quantity for quantity, cells in found.items() if cells[-1] == "FAIL"}
    assert {("had", "wrong"), ("had in float32", "wrong")} <= failed
    assert failed <= {(f"{name}{kind}", "wrong") for name in ("had", "loss") for kind in ("", " in float32")}
    assert "FAIL: had of wrong: case " in done.stdout


def test_backends_of_plugins_are_checked_unasked(tmp_path: Path, without: tuple[Path, ...]) -> None:
    paths = (*plugin(tmp_path, WRONG), *without)
    done = run("--cases", "1", paths=paths, blocked="torch")
    assert done.returncode == 1, done.stderr
    assert {backend for _, backend in rows(done.stdout)} == {"numpy", "wrong"}


def test_a_backend_that_cannot_be_loaded_fails(tmp_path: Path) -> None:
    code = WRONG.replace("class Wrong(NumpyBackend):", "class Wrong:")
    paths = plugin(tmp_path, code)
    done = run("--cases", "1", "--backend", "wrong", paths=paths)
    assert done.returncode == 2
    assert "should be or return a mlot.backends.Backend, got Wrong" in done.stderr
    done = run("--cases", "1", paths=paths)
    assert done.returncode == 1, done.stderr
    assert rows(done.stdout)["loading the backend", "wrong"][-1] == "FAIL"


def test_a_seed_repeats_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for seed in ("5", "5", "6"):
        assert verify.main(["--backend", "numpy", "--cases", "1", "--seed", seed]) == 0
        tables.append(rows(capsys.readouterr().out))
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


# -- packages that are not installed ---------------------------------------------------------------------


def test_the_reference_needs_no_torch(without: tuple[Path, ...]) -> None:
    done = run("--backend", "numpy", "--cases", "2", paths=without, blocked="torch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {backend for _, backend in rows(done.stdout)} == {"numpy"}


def test_a_backend_that_is_not_installed_is_listed(without: tuple[Path, ...]) -> None:
    done = run("--cases", "1", paths=without, blocked="torch,rich")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {backend for _, backend in rows(done.stdout)} == {"numpy"}
    assert "not checked: torch: 'torch' needs torch, which is not installed" in done.stdout


def test_asking_for_what_is_not_installed_is_an_error(without: tuple[Path, ...]) -> None:
    done = run("--backend", "torch", paths=without, blocked="torch")
    assert done.returncode == 2
    assert "'torch' needs torch, which is not installed" in done.stderr
    assert done.stdout == ""


def test_without_pot_exact_transport_is_skipped(without: tuple[Path, ...]) -> None:
    done = run("--backend", "numpy", "--cases", "1", paths=without, blocked="ot,torch")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(done.stdout)
    skipped = {quantity for (quantity, _), cells in found.items() if cells[-1] == "skipped"}
    assert skipped == {"emd", "emd in float32", "sinkhorn against POT", "gradients"}
    assert "skipped: emd of numpy: needs POT" in done.stdout
    assert ", 0 failed, 4 skipped," in done.stdout


# -- the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--cases", "0"], "argument --cases: invalid integer >= 1 value: '0'"),
        (["--cases", "many"], "argument --cases: invalid integer >= 1 value: 'many'"),
        (["--seed", "-1"], "argument --seed: invalid integer >= 0 value: '-1'"),
        (["--backend", "nope"], "backend: expected one of ['numpy', 'torch'], got 'nope'"),
        (["--backend", "numpy", "--device", "cuda"], "--device: numpy cannot use 'cuda'"),
        (
            ["--device", "no-such-device"],
            "no backend can be checked: numpy: cannot use device 'no-such-device'",
        ),
        (["--tolerance", "1"], "unrecognized arguments: --tolerance 1"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        verify.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_arguments_exit_with_two() -> None:
    assert run("--cases", "0").returncode == 2


def test_a_device_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--backend", "numpy", "--device", "cpu", "--cases", "1"]) == 0
    assert rows(capsys.readouterr().out)["device", "numpy"][-1] == "pass"


# -- the table -------------------------------------------------------------------------------------------

RECORDS = (
    Record("had", "had", "numpy", 20, 1.5e-16, 1e-10, True, "case 3: value"),
    Record("emd", "gradient of emd [red]", "numpy", 4, float("inf"), 1e-5, False, "case 3: [bold] value"),
    Record("sl", "sl", "numpy", 0, 0.0, 1e-5, False, "needs POT", "POT"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_rich_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    verify.show(RECORDS, out)
    text = out.getvalue()
    assert "┃" in text
    assert text.count("gradient of emd [red]") == 2
    assert "FAIL: gradient of emd [red] of numpy: case 3: [bold] value" in text
    assert "skipped: sl of numpy: needs POT" in text


def test_without_rich_a_terminal_gets_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    out, plain = Terminal(), io.StringIO()
    verify.show(RECORDS, out)
    verify.show(RECORDS, plain)
    assert out.getvalue() == plain.getvalue()
    assert "┃" not in plain.getvalue()
    lines = plain.getvalue().splitlines()
    assert lines[2].split() == ["had", "numpy", "20", "1.5e-16", "1e-10", "pass"]
    assert lines[4].split() == ["sl", "numpy", "0", "-", "-", "skipped"]
    assert len(lines) == 7
