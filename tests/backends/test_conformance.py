"""The conformance suite: right backends pass it, and one that is wrong in an operation is told which."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import mlot
import mlot.testing
from mlot import BackendSpec
from mlot import _registry as registry
from mlot.backends.numpy.backend import NumpyBackend
from mlot.backends.torch.backend import TorchBackend
from mlot.testing._subject import MismatchError, error_of, exactly, torch_gradient
from plugin import mutants, mutants_costs, mutants_torch
from plugin.mutants import MUTANTS, Mutant

ROOT = Path(mlot.__file__).parents[1]
PLUGIN = Path(__file__).parents[1] / "support" / "plugin" / "mlot_example_plugin"
CASES = 12


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch):
    """Register a backend under a name that is forgotten after the test."""
    monkeypatch.setattr(registry, "_specs", dict(registry._specs))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))

    def register(backend: type[mlot.Backend], name: str = "temporary") -> str:
        monkeypatch.setattr(mutants, "TEMPORARY", backend, raising=False)
        spec = BackendSpec(name, mutants.__name__, ("no_such_module.Array",), "TEMPORARY")
        mlot.register_backend(spec, replace=True)
        return name

    return register


# -- right backends --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed, cases", [(0, 20), (1, 8)])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_our_backends_conform(backend: str, seed: int, cases: int) -> None:
    report = mlot.testing.assert_conforms(backend, seed=seed, cases=cases)
    checked = {record.operation for record in report if record.passed}
    assert checked == set(mlot.testing.OPERATIONS)
    assert all(record.cases == cases for record in report if not record.skipped)


def test_every_operation_is_checked() -> None:
    assert set(mlot.testing.OPERATIONS) == set(mlot.Backend.__abstractmethods__) | {"loss"}


def test_gradients_of_torch_are_checked() -> None:
    report = mlot.testing.check_backend("torch", cases=1)
    assert {record.operation for record in report if record.quantity.startswith("gradient")} == {
        *("convert", "stop_gradient", "select", "take", "keep", "token_cost", "sequence_cost", "sinkhorn"),
        *("emd", "had", "sl", "uld", "text_terms", "inner", "loss"),
    }
    assert not any(record.skipped for record in report)


def test_no_gradients_are_reported_not_passed() -> None:
    (record,) = [r for r in mlot.testing.check_backend("numpy", cases=1) if r.quantity == "gradients"]
    assert record.skipped
    assert not record.passed
    assert record.verdict == "skipped"


# -- wrong backends --------------------------------------------------------------------------------------


def test_a_mutant_for_every_operation() -> None:
    assert mutants_costs
    assert mutants_torch
    assert {mutant.operation for mutant in MUTANTS} == set(mlot.Backend.__abstractmethods__)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.operation}-{mutant.mistake}")
def test_a_wrong_operation_is_named(mutant: Mutant, temporary) -> None:
    name = temporary(mutant.backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it must fail by its results, not by a warning
        report = mlot.testing.check_backend(name, cases=CASES, operations=[mutant.operation])
    assert report.failed_operations == (mutant.operation,)
    assert not report.passed


@pytest.mark.parametrize("operation", ["keep", "token_cost", "sinkhorn", "had", "sl", "uld"])
def test_only_what_is_wrong_is_named(operation: str, temporary) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.operation == operation)
    name = temporary(mutant.backend)
    operations = [each for each in mlot.testing.OPERATIONS if each != "loss"]
    assert mlot.testing.check_backend(name, cases=5, operations=operations).failed_operations == (operation,)


@pytest.mark.parametrize("mistake", ["torch: twice the gradient", "torch: envelope gradient"])
def test_only_the_gradient_is_wrong(mistake: str, temporary) -> None:
    (mutant,) = [mutant for mutant in MUTANTS if mutant.mistake == mistake]
    report = mlot.testing.check_backend(temporary(mutant.backend), cases=5, operations=[mutant.operation])
    failed = [record.quantity for record in report if not record.passed]
    assert failed == [f"gradient of {mutant.operation}"]


def test_the_whole_loss_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right operations put together wrongly: SD is not multiplied by the number of student positions."""
    monkeypatch.setattr("mlot.losses.sequence_transport", _unscaled(mlot.losses.sequence_transport))
    for backend in ("numpy", "torch"):
        assert mlot.testing.check_backend(backend, cases=2).failed_operations == ("loss",)


def _unscaled(right):
    def wrong(xp, student, *args, **kwargs):
        value, found = right(xp, student, *args, **kwargs)
        return value / xp.count_positions(student.mask).clip(1), found

    return wrong


def test_the_gradient_of_the_whole_loss_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right values, but the coupling between columns is taken for a constant."""
    right = mlot.losses._soft_terms

    def wrong(xp, student, *args):
        coupling, had, sl = right(xp, student, *args)
        return coupling.detach(), had, sl

    monkeypatch.setattr("mlot.losses._soft_terms", wrong)
    report = mlot.testing.check_backend("torch", cases=2, operations=["loss"])
    assert [record.quantity for record in report if not record.passed] == ["gradient of loss"]
    assert "sinkhorn: argument" in next(record.detail for record in report if not record.passed)


def test_an_exception_is_a_failure(temporary) -> None:
    class Broken(NumpyBackend):
        def had(self, *args):
            raise KeyError("no such thing")

    with pytest.raises(AssertionError, match="KeyError: 'no such thing'"):
        mlot.testing.assert_conforms(temporary(Broken), cases=1, operations=["had"])


def test_the_message_names_every_failed_operation(temporary) -> None:
    class Broken(NumpyBackend):
        def had(self, *args):
            return 2 * super().had(*args)

        def count_positions(self, mask):
            return super().count_positions(mask) + 1

    with pytest.raises(AssertionError) as caught:
        mlot.testing.assert_conforms(temporary(Broken), cases=2, operations=["had", "count_positions", "sl"])
    first, *_ = str(caught.value).splitlines()
    assert first == "backend 'temporary' does not conform: had, count_positions"
    assert "FAIL: had in float32 of temporary: case" in str(caught.value)


def test_a_wrong_shape_is_said(temporary) -> None:
    class Broken(NumpyBackend):
        def had(self, *args):
            return super().had(*args).sum(keepdims=True)

    report = mlot.testing.check_backend(temporary(Broken), cases=1, operations=["had"])
    assert "expected shape (4,), got (1,)" in report.records[0].detail


# -- gradients of other backends -------------------------------------------------------------------------


def test_how_to_differentiate_can_be_given() -> None:
    assert mlot.testing.check_backend("torch", cases=2, operations=["had"], gradient=torch_gradient).passed

    def twice(function, arrays):
        return [2 * gradient for gradient in torch_gradient(function, arrays)]

    report = mlot.testing.check_backend("torch", cases=2, operations=["had"], gradient=twice)
    assert [record.quantity for record in report if not record.passed] == ["gradient of had"]


def test_a_backend_can_say_how_to_differentiate(temporary) -> None:
    class Named(TorchBackend):
        name = "of_its_own"

    name = temporary(Named, "of_its_own")
    quantities = {record.quantity for record in mlot.testing.check_backend(name, cases=1, operations=["sl"])}
    assert "gradient of sl" not in quantities

    Named.gradient = staticmethod(torch_gradient)
    name = temporary(Named, "of_its_own")
    report = mlot.testing.check_backend(name, cases=1, operations=["sl"])
    assert "gradient of sl" in {record.quantity for record in report}
    assert report.passed


# -- what cannot be checked ------------------------------------------------------------------------------


def test_without_pot_exact_transport_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.warns(
        UserWarning, match=r"not checked: sinkhorn against POT \(needs POT\), emd \(needs POT\)"
    ):
        report = mlot.testing.assert_conforms("numpy", cases=1)
    skipped = [record for record in report if record.needs]
    assert [record.quantity for record in skipped] == ["sinkhorn against POT", "emd", "emd in float32"]
    assert not any(record.passed for record in skipped)
    assert "skipped: emd of numpy: needs POT" in str(report)


def test_nothing_checked_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    assert not mlot.testing.check_backend("torch", cases=1, operations=["emd"]).passed
    with pytest.raises(AssertionError, match="nothing could be checked"):
        mlot.testing.assert_conforms("torch", cases=1, operations=["emd"])


def test_importing_the_suite_imports_no_optional_package() -> None:
    code = "import sys, mlot.testing; print(sorted({'torch', 'ot', 'pytest', 'rich'} & set(sys.modules)))"
    assert _python(code, ROOT).strip() == "[]"


# -- arguments and measures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"seed": -1}, ValueError, "seed: expected an integer >= 0, got -1"),
        ({"cases": 0}, ValueError, "cases: expected an integer >= 1, got 0"),
        ({"cases": 1.5}, TypeError, "cases: expected an integer >= 1, got float 1.5"),
        ({"operations": "had"}, TypeError, "operations: expected several names"),
        ({"operations": ["hat"]}, ValueError, "operations: expected one of .*, got 'hat'"),
        ({"operations": []}, ValueError, "operations: expected at least one name or None, got none"),
    ],
)
def test_arguments_are_checked(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlot.testing.check_backend("numpy", **arguments)


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="backend: expected one of"):
        mlot.testing.check_backend("no such backend")


def test_problems_depend_on_the_seed() -> None:
    first, again, other = (
        mlot.testing.check_backend("torch", seed=seed, cases=3, operations=["sinkhorn"]) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_errors_are_measured_sequence_by_sequence() -> None:
    truth = np.array([[1000.0, 1.0], [0.5, 0.25]])
    assert error_of(truth, truth) == 0
    assert error_of(truth + np.array([[1, 0], [0, 0]]), truth) == pytest.approx(1e-3)
    assert error_of(truth + np.array([[0, 0], [1e-3, 0]]), truth) == pytest.approx(2e-3)
    assert error_of(truth + np.array([[1, 0], [0, 0]]), truth, magnitude=[10, 1]) == pytest.approx(0.1)


def test_what_cannot_be_right_is_infinitely_wrong() -> None:
    assert error_of(np.array([np.nan]), [1.0]) == np.inf
    assert error_of(np.array([1e-300]), [0.0]) == np.inf
    assert error_of(np.array([5.0]), [np.inf]) == np.inf
    assert error_of(np.array([np.inf]), [5.0]) == np.inf
    assert error_of(np.array([np.inf, 1.0]), [np.inf, 1.0]) == 0
    assert exactly(np.array([1, 2]), [1, 3]) == np.inf
    with pytest.raises(MismatchError, match=r"expected shape \(2,\), got \(1,\)"):
        error_of(np.zeros(1), [0.0, 0.0])


def test_a_report_is_a_table() -> None:
    report = mlot.testing.check_backend("numpy", cases=1, operations=["had", "inner"])
    heading, rule, *rows = str(report).splitlines()
    assert heading.split("  ")[0] == "quantity"
    assert set(rule) == {"-", " "}
    assert [row.split()[-1] for row in rows[:4]] == ["pass"] * 4
    assert len(report) == 5
    assert rows[5] == "skipped: gradients of numpy: the backend has none, or no gradient= was given"


# -- a backend from another package ----------------------------------------------------------------------


def _python(code: str, *paths: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": ":".join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The example package as an installer leaves it: a package beside its metadata."""
    shutil.copytree(PLUGIN, tmp_path / PLUGIN.name)
    metadata = tmp_path / "mlot_example_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mlot-example-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mlot.backends]\nexample = mlot_example_plugin:SPEC\n")
    return tmp_path


@pytest.mark.slow
def test_a_plugin_is_found_and_conforms(installed: Path) -> None:
    code = """
import sys, numpy as np, mlot, mlot.testing
assert "example" in mlot.available_backends(), mlot.available_backends()
assert "mlot_example_plugin.backend" not in sys.modules
report = mlot.testing.assert_conforms("example", cases=10)
assert {record.operation for record in report if record.passed} == set(mlot.testing.OPERATIONS)
"""
    _python(code, installed, ROOT)


def test_arrays_of_a_plugin_need_no_name(installed: Path) -> None:
    code = """
import numpy as np, mlot
from mlot_example_plugin.array import Array
rng = np.random.default_rng(0)
student, teacher = rng.normal(size=(2, 5, 30)), rng.normal(size=(2, 7, 40))
config = mlot.MultiLevelOTConfig(k=4)
want = mlot.multi_level_ot(student, teacher, config=config)
got = mlot.multi_level_ot(Array(student), Array(teacher), config=config)
assert isinstance(got.loss, Array)
assert float(got.loss) == float(want.loss)
assert (got.diagnostics().matching_gap == want.diagnostics().matching_gap).all()
cost = rng.random((3, 4))
plan = mlot.sinkhorn(Array(cost), Array(np.full(3, 1 / 3)), Array(np.full(4, 1 / 4))).plan
assert isinstance(plan, Array)
assert float(mlot.emd(Array(cost)).value) == float(mlot.emd(cost).value)
try:
    mlot.multi_level_ot(Array(student), teacher)
except TypeError as error:
    assert "array kinds are mixed" in str(error)
else:
    raise SystemExit("mixed kinds were accepted")
"""
    _python(code, installed, ROOT)


def test_without_its_metadata_a_plugin_is_unknown() -> None:
    code = "import mlot; print(mlot.available_backends())"
    assert "example" not in _python(code, PLUGIN.parent, ROOT)
