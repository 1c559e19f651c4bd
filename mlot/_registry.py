"""Finding a backend: by the type of an array, by name, or from an installed plug-in."""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import dataclass
from typing import Any

from mlot._arrays import ArrayOperations

ENTRY_POINT_GROUP = "mlot.backends"


@dataclass(frozen=True)
class BackendSpec:
    """How to find a backend: registering it imports nothing.

    Args:
        name: what ``backend=`` calls it.
        module: module that defines it, imported at first use.
        array_types: dotted names of the array types it serves, such as ``"torch.Tensor"``; subclasses count.
        attribute: name in ``module`` of the `Backend` subclass (or of a function that returns a backend).

    Raises:
        TypeError, ValueError: a field is of the wrong kind, or empty.
    """

    name: str
    module: str
    array_types: tuple[str, ...]
    attribute: str = "BACKEND"

    def __post_init__(self) -> None:
        for field in ("name", "module", "attribute"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                raise TypeError(f"{field}: expected a non-empty string, got {value!r}")
        if not isinstance(self.array_types, tuple) or not self.array_types:
            raise TypeError(
                f"array_types: expected a non-empty tuple of dotted names, got {self.array_types!r}"
            )
        for dotted in self.array_types:
            if not isinstance(dotted, str) or "." not in dotted:
                raise ValueError(f"array_types: expected dotted names such as 'torch.Tensor', got {dotted!r}")

    def distance(self, array_type: type) -> int | None:
        """How many steps of inheritance a type is from one that is served; ``None`` if it is not served.

        Looks only at modules that are already imported.
        """
        best = None
        for dotted in self.array_types:
            module, _, name = dotted.rpartition(".")
            served = getattr(sys.modules.get(module), name, None)
            if isinstance(served, type) and issubclass(array_type, served):
                steps = array_type.__mro__.index(served)
                best = steps if best is None else min(best, steps)
        return best


_specs: dict[str, BackendSpec] = {}
_loaded: dict[str, ArrayOperations] = {}
_plugins_read = False


def register_backend(spec: BackendSpec, *, replace: bool = False) -> None:
    """Make a backend known by name and by the array types it serves.

    Args:
        spec: the record.
        replace: allow a backend of that name to be replaced.

    Raises:
        TypeError: ``spec`` is no `BackendSpec`.
        ValueError: the name is taken.
    """
    if not isinstance(spec, BackendSpec):
        raise TypeError(f"spec: expected a BackendSpec, got {type(spec).__name__}")
    if spec.name in _specs and not replace:
        raise ValueError(f"spec: a backend named {spec.name!r} is already registered; pass replace=True")
    _specs[spec.name] = spec
    _loaded.pop(spec.name, None)


def available_backends() -> tuple[str, ...]:
    """Names of all registered backends, those of installed plug-ins included; no backend is loaded.

    Returns:
        The names, ours first.

    Raises:
        RuntimeWarning: as a warning: a plug-in cannot be read and is left out; the message says why.
    """
    _read_plugins()
    return tuple(_specs)


def get_backend(name: str) -> ArrayOperations:
    """Load a backend by name.

    Args:
        name: one of `available_backends`.

    Raises:
        TypeError: ``name`` is no string, or what the record points at is no backend.
        ValueError: no backend of that name is registered.
        ImportError: the backend needs a package that is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: expected a name, got {type(name).__name__}")
    if name not in _specs:
        _read_plugins()
    if name not in _specs:
        raise ValueError(f"backend: expected one of {sorted(_specs)}, got {name!r}")
    _ensure_loaded(name)
    return _loaded[name]


def _ensure_loaded(name: str) -> bool:
    if name not in _loaded:
        _loaded[name] = _load(_specs[name])
    return True


# A first call may be one that torch.compile traces: this is run then, not traced, as
# `torch.compiler.assume_constant_result` would have it, which is not imported here.
_ensure_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def find_backend(value: Any) -> str | None:
    """Name of the backend that serves the type of ``value`` most closely; ``None`` if there is none."""
    name, steps = _closest(type(value))
    if steps != 0 and not _plugins_read:  # a plug-in may serve this very type
        _read_plugins()
        name, _ = _closest(type(value))
    return name


def _closest(array_type: type) -> tuple[str | None, int | None]:
    closest: tuple[str | None, int | None] = (None, None)
    for spec in tuple(_specs.values()):
        steps = spec.distance(array_type)
        if steps is not None and (closest[1] is None or steps < closest[1]):
            closest = (spec.name, steps)
    return closest


def _load(spec: BackendSpec) -> ArrayOperations:
    try:
        module = importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        root = spec.array_types[0].split(".")[0]
        if error.name == root:
            raise ImportError(
                f'backend: {spec.name!r} needs {root}, which is not installed; pip install "mlot[{root}]"'
            ) from error
        raise
    made = getattr(module, spec.attribute, None)
    if isinstance(made, type) or (callable(made) and not isinstance(made, ArrayOperations)):
        made = made()
    if not isinstance(made, ArrayOperations):
        raise TypeError(
            f"backend: {spec.module}.{spec.attribute} should be or return a mlot.backends.Backend, "
            f"got {type(made).__name__}"
        )
    return made


def _read_plugins() -> None:
    global _plugins_read
    if _plugins_read:
        return
    _plugins_read = True
    from importlib.metadata import entry_points  # takes a while to import

    failures = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = point.load()
        except Exception as error:  # whatever a plug-in raises, others must not suffer for it
            failures.append(f"{point.name!r}: {type(error).__name__}: {error}")
            continue
        if not isinstance(spec, BackendSpec):
            failures.append(f"{point.name!r}: expected a BackendSpec, got {type(spec).__name__}")
        elif spec.name not in _specs:
            register_backend(spec)
    for failure in failures:
        warnings.warn(
            f"entry point of group {ENTRY_POINT_GROUP!r} left out: {failure}", RuntimeWarning, stacklevel=3
        )


register_backend(BackendSpec("numpy", "mlot.backends.numpy.backend", ("numpy.ndarray",), "NumpyBackend"))
register_backend(BackendSpec("torch", "mlot.backends.torch.backend", ("torch.Tensor",), "TorchBackend"))
