"""The registry: found by type, by name, from plug-ins; nothing imported before it is needed."""

import importlib.metadata
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

import mlot
from mlot import _registry as registry
from mlot.backends.numpy.backend import NumpyBackend


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_specs", "_loaded"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))


class Tagged(np.ndarray):
    """An array type of its own."""


class TaggedBackend(NumpyBackend):
    name = "tagged"


def not_a_backend() -> int:
    return 3


def spec(**changes: object) -> mlot.BackendSpec:
    settings = {
        "name": "tagged",
        "module": __name__,
        "array_types": (f"{__name__}.Tagged",),
        "attribute": "TaggedBackend",
    }
    return mlot.BackendSpec(**{**settings, **changes})


def test_ours_are_there() -> None:
    assert set(mlot.available_backends()) >= {"numpy", "torch"}
    assert mlot.get_backend("numpy").name == "numpy"
    assert mlot.get_backend("torch") is mlot.get_backend("torch")
    for name in ("numpy", "torch"):
        assert isinstance(mlot.get_backend(name), mlot.Backend)


def test_the_type_of_the_arrays_decides() -> None:
    assert registry.find_backend(np.zeros(2)) == "numpy"
    assert registry.find_backend(torch.zeros(2)) == "torch"
    assert registry.find_backend(torch.nn.Parameter(torch.zeros(2))) == "torch"
    assert registry.find_backend([1.0]) is None


def test_a_backend_is_found_by_its_name_and_by_its_type() -> None:
    mlot.register_backend(spec(array_types=("nowhere.Array",)))
    assert "tagged" in mlot.available_backends()
    assert isinstance(mlot.get_backend("tagged"), TaggedBackend)
    result = mlot.multi_level_ot(np.zeros((1, 2, 3)), np.zeros((1, 2, 3)), backend="tagged")
    assert float(result.had) == 0
    mlot.register_backend(spec(), replace=True)
    wrapped = np.zeros((1, 2, 3)).view(Tagged)
    assert registry.find_backend(wrapped) == "tagged"  # closer than the ndarray that it also is
    assert registry.find_backend(np.zeros(2)) == "numpy"


def test_a_name_is_taken_once() -> None:
    mlot.register_backend(spec())
    with pytest.raises(
        ValueError, match=r"^spec: a backend named 'tagged' is already registered; pass replace=True"
    ):
        mlot.register_backend(spec())
    before = mlot.get_backend("tagged")
    mlot.register_backend(spec(), replace=True)
    assert mlot.get_backend("tagged") is not before


def test_plug_ins_are_found_by_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("tagged", f"{__name__}:SPEC", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "mlot.backends" else []
    )
    monkeypatch.setattr(registry, "_plugins_read", False)
    assert "tagged" in mlot.available_backends()
    assert mlot.get_backend("tagged").name == "tagged"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (f"{__name__}:not_a_backend", "'wrong': expected a BackendSpec, got function"),
        (
            "no_such_module_anywhere:SPEC",
            "'wrong': ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        ),
    ],
)
def test_a_broken_plug_in_is_left_out_with_a_warning(
    wrong: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        EntryPoint(n, value, registry.ENTRY_POINT_GROUP)
        for n, value in (("wrong", wrong), ("tagged", f"{__name__}:SPEC"))
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_plugins_read", False)
    with pytest.warns(RuntimeWarning, match=f"^entry point of group 'mlot.backends' left out: {message}"):
        assert "tagged" in mlot.available_backends()
    assert mlot.get_backend("tagged").name == "tagged"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": ""}, TypeError, "name: expected a non-empty string, got ''"),
        ({"module": None}, TypeError, "module: expected a non-empty string, got None"),
        (
            {"array_types": "torch.Tensor"},
            TypeError,
            "array_types: expected a non-empty tuple of dotted names",
        ),
        ({"array_types": ()}, TypeError, "array_types: expected a non-empty tuple of dotted names"),
        (
            {"array_types": ("Tensor",)},
            ValueError,
            "array_types: expected dotted names such as 'torch.Tensor'",
        ),
    ],
)
def test_wrong_records(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        spec(**changes)


def test_wrong_registrations() -> None:
    with pytest.raises(TypeError, match="^spec: expected a BackendSpec, got str"):
        mlot.register_backend("numpy")  # type: ignore[arg-type]
    mlot.register_backend(spec(name="three", attribute="not_a_backend"))
    with pytest.raises(
        TypeError, match=r"^backend: .*not_a_backend should be or return a .*Backend, got int"
    ):
        mlot.get_backend("three")
    mlot.register_backend(spec(name="lost", module="no_such_module_anywhere"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        mlot.get_backend("lost")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_mlot_imports_neither_torch_nor_pot() -> None:
    code = (
        "import sys, mlot, numpy as np\n"
        "mlot.multi_level_ot(np.zeros((1, 2, 3)), np.zeros((1, 2, 4)))\n"
        "mlot.available_backends()\n"
        "print(sorted({'torch', 'ot', 'transformers', 'safetensors', 'matplotlib'} & set(sys.modules)))"
    )
    assert run(code) == "[]\n"


@pytest.mark.parametrize("module", ["align", "bounds", "saved", "serving", "teachers", "testing", "topk"])
def test_importing_a_module_imports_nothing_optional(module: str) -> None:
    optional = ("torch", "ot", "transformers", "tokenizers", "safetensors", "matplotlib", "rich", "filelock")
    code = f"import sys, mlot.{module}; print(sorted({set(optional)} & set(sys.modules)))"
    assert run(code) == "[]\n"


@pytest.mark.parametrize(
    ("missing", "call", "message"),
    [
        (
            "torch",
            "mlot.get_backend('torch')",
            "backend: 'torch' needs torch, which is not installed; pip install \"mlot[torch]\"",
        ),
        (
            "ot",
            "mlot.emd(np.zeros((2, 2)))",
            'backend: exact transport needs POT, which is not installed; pip install "mlot[pot]"',
        ),
    ],
)
def test_a_missing_package_is_named(missing: str, call: str, message: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import mlot, numpy as np\n"
        f"try: {call}\n"
        "except ImportError as error: print(error)"
    )
    assert run(code) == message + "\n"


SPEC = spec()
